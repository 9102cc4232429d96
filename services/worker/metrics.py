"""What a worker exports to Prometheus besides what every service does."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_TOKEN_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_PHASE_BUCKETS: Final = (
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0,
)  # fmt: skip

REQUESTS_RUNNING: Final = Gauge(
    "brisk_num_requests_running", "Sequences being decoded.", ["deployment"]
)
REQUESTS_WAITING: Final = Gauge(
    "brisk_num_requests_waiting", "Sequences waiting for a slot or memory.", ["deployment"]
)
TIME_TO_FIRST_TOKEN: Final = Histogram(
    "brisk_time_to_first_token_seconds",
    "From a sequence's arrival on the worker to its first token, its queue included.",
    buckets=_TOKEN_BUCKETS,
)
INTER_TOKEN_LATENCY: Final = Histogram(
    "brisk_inter_token_latency_seconds",
    "Time between two tokens of a sequence as they leave the worker.",
    buckets=_TOKEN_BUCKETS,
)
TOKENS: Final = Counter("brisk_generated_tokens", "Tokens decoded.")
PREEMPTIONS: Final = Counter(
    "brisk_num_preemptions", "Sequences that made way for older ones when memory ran out."
)
PREFIX_QUERIES: Final = Counter(
    "brisk_prefix_cache_queries", "Tokens of sequences that were looked up in the prefix cache."
)
PREFIX_HITS: Final = Counter(
    "brisk_prefix_cache_hits", "Of those, tokens whose keys and values were there."
)
SEQUENCES: Final = Counter("brisk_sequences", "Sequences ended, by how.", ["outcome"])

DEVICE_MEMORY: Final = Gauge("brisk_device_memory_bytes", "The device's memory budget.", ["device"])
DEVICE_MEMORY_USED: Final = Gauge(
    "brisk_device_memory_used_bytes", "What instances have reserved of it.", ["device"]
)
INSTANCES: Final = Gauge("brisk_instances", "Instances by state.", ["state"])

LOADS: Final = Counter("brisk_loads", "Loads ended, by how.", ["outcome"])
LOAD_PHASE: Final = Histogram(
    "brisk_load_phase_seconds", "Time of each phase of a load.", ["phase"], buckets=_PHASE_BUCKETS
)
BYTES_READ: Final = Counter("brisk_load_bytes_read", "Bytes of weight files read into memory.")
BYTES_MAPPED: Final = Counter(
    "brisk_load_bytes_mapped", "Bytes of weight files used in the node's memory, without a copy."
)
BYTES_COPIED: Final = Counter(
    "brisk_load_bytes_copied", "Bytes of weights that could not be used in place."
)
FILES_READ: Final = Counter(
    "brisk_load_files_read", "Weight files read, by way and kind of pages.", ["way", "pages"]
)
