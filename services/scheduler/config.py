"""What a scheduler can be told: `BRISK_SCHEDULER_<FIELD>`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.common.config import ServiceConfig


class SchedulerConfig(ServiceConfig):
    """Settings of one scheduler."""

    service: ClassVar[str] = "scheduler"
    purpose: ClassVar[str] = (
        "A scheduler: decides which worker loads which model. One leads, the others stand by."
    )

    waiters_max: int = Field(default=2048, ge=1, le=100_000)
    """Requests that wait for an instance; more are refused."""
    watchers_max: int = Field(default=1024, ge=1, le=100_000)
    """Open route watches, one for each router; more are refused."""
    learning_s: float = Field(default=3.0, ge=0.0, le=60.0)
    """Seconds in which a new leader hears of workers before it says that there are none."""
    load_s_max: float = Field(default=1800.0, gt=0.0, le=86_400.0)
    """Longest load of a model in seconds."""
    turn_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    """Seconds that a start waits for room before busy instances are drained for it."""
    reuse_s: float = Field(default=60.0, ge=0.0, le=86_400.0)
    """How far ahead, in seconds, the next use of an evicted model counts when a place is chosen."""
    dram_bytes_per_s: float = Field(default=8e9, gt=0.0)
    """Bandwidth from a node's memory to a device that is assumed until loads have been measured."""
    ssd_bytes_per_s: float = Field(default=1.5e9, gt=0.0)
    """The same from a node's disk."""
    peer_bytes_per_s: float = Field(default=1e9, gt=0.0)
    """The same from another node."""
    remote_bytes_per_s: float = Field(default=2e8, gt=0.0)
    """The same from a remote store."""
    init_s: float = Field(default=0.1, gt=0.0)
    """Seconds that a model takes around its weights, assumed until starts have been measured."""
