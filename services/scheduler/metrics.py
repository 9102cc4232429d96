"""What the scheduler exports besides the calls that every server counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

IS_LEADER: Final = Gauge("brisk_scheduler_is_leader", "1 while this scheduler leads.")
EPOCH: Final = Gauge("brisk_scheduler_epoch", "The epoch of our leadership; 0 while we stand by.")
DECISIONS: Final = Counter("brisk_scheduler_decisions", "Decisions made.", ["event"])
DECISION_SECONDS: Final = Histogram(
    "brisk_scheduler_decision_seconds",
    "Time that the core took for one decision.",
    buckets=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
)
ACQUIRES: Final = Counter(
    "brisk_scheduler_acquires",
    "Acquire calls answered, by outcome: warm, cold, cancelled or the refusal's reason.",
    ["outcome"],
)
STARTS: Final = Counter(
    "brisk_scheduler_starts",
    "Loads ended, by outcome: ready, cancelled or the failure's reason.",
    ["outcome"],
)
START_PHASE_SECONDS: Final = Histogram(
    "brisk_scheduler_start_phase_seconds",
    "Time that cold requests spent in each phase of a start.",
    ["phase"],
    buckets=(0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
)
QUEUE_LENGTH: Final = Gauge("brisk_scheduler_queue_length", "Starts that wait for a place.")
WAITERS: Final = Gauge("brisk_scheduler_waiters", "Requests that wait for an instance.")
WORKERS: Final = Gauge("brisk_scheduler_workers", "Workers that report.")
INSTANCES: Final = Gauge("brisk_scheduler_instances", "Instances by state.", ["state"])
DEPLOYMENTS: Final = Gauge("brisk_scheduler_deployments", "Deployments.")
_ERRORS_S: Final = (0.005, 0.01, 0.04, 0.1, 0.3, 1, 3, 10, 30)
ESTIMATE_ERROR_SECONDS: Final = Histogram(
    "brisk_scheduler_estimate_error_seconds",
    "What was predicted of a phase of a start minus what it took; transfer is fetch and load.",
    ["phase", "tier"],
    buckets=(*(-each for each in reversed(_ERRORS_S)), 0, *_ERRORS_S),
)
