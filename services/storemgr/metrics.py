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
