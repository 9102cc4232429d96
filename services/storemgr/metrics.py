"""What the store manager exports beside the metrics that all services have."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

IMPORTS: Final = Counter(
    "brisk_storemgr_imports",
    "Imports ended: stored, repeated, refused, disk_full, cancelled or failed.",
    ["outcome"],
)
IMPORT_SECONDS: Final = Histogram(
    "brisk_storemgr_import_seconds",
    "Time that an import took, from its thread's start to its end.",
    ["outcome"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
)
MODELS: Final = Gauge("brisk_storemgr_models", "Models in the store, each revision counted.")
STORED_BYTES: Final = Gauge("brisk_storemgr_stored_bytes", "Bytes of the stored models' files.")
FREE_BYTES: Final = Gauge(
    "brisk_storemgr_free_bytes", "Bytes free on the store's file system when last looked at."
)
LEASES: Final = Gauge("brisk_storemgr_leases", "Leases held now.")
UNUSABLE: Final = Gauge(
    "brisk_storemgr_unusable_models", "Folders in the store that are no whole model, at start."
)
LOADER: Final = Gauge(
    "brisk_storemgr_loader_info",
    "Always 1: which loader reads the store, and whether past the page cache.",
    ["implementation", "direct_io"],
)
ARENA_BYTES: Final = Gauge(
    "brisk_storemgr_arena_bytes", "The node's memory for weights: free or used.", ["state"]
)
ARENA_READ_BYTES: Final = Counter(
    "brisk_storemgr_arena_read_bytes", "Bytes read from the disk into the arena."
)
TIER_LOOKUPS: Final = Counter(
    "brisk_storemgr_tier_lookups",
    "Models asked for, by tier and outcome: hit, miss (it was brought there) or no_room.",
    ["tier", "outcome"],
)
EVICTIONS: Final = Counter(
    "brisk_storemgr_evictions", "Models that had to make room for others, by tier.", ["tier"]
)
IO_QUEUED_BYTES: Final = Gauge(
    "brisk_storemgr_io_queued_bytes",
    "Bytes that are being read from a tier or wait to be.",
    ["tier"],
)
IO_BYTES_PER_SECOND: Final = Gauge(
    "brisk_storemgr_io_bytes_per_second", "Moving estimate of what a tier gives.", ["tier"]
)
IO_PREDICTION_ERROR: Final = Histogram(
    "brisk_storemgr_io_prediction_error_seconds",
    "By how much a read ended before or after what was predicted when it was queued.",
    ["tier"],
    buckets=(0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0, 3.0, 10.0),
)
IO_PREDICTION_SHARE: Final = Histogram(
    "brisk_storemgr_io_prediction_error_share",
    "The same as a share of what the read took.",
    ["tier"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
)
FETCHED_BYTES: Final = Counter(
    "brisk_storemgr_fetched_bytes",
    "Bytes of models fetched, by where they came from: s3, http, hub or peer.",
    ["origin"],
)
