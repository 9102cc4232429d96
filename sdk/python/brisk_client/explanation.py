"""Why a start went where it went: what `Client.explain` returns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from brisk_client.results import StartReport, Tier


class Way(StrEnum):
    """How a device gets room for a start."""

    UNKNOWN = "unknown"
    FREE = "free"
    EVICT = "evict"
    WAIT = "wait"
    MIGRATE = "migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to start a model on one device, with its estimate."""

    way: Way
    node_id: str
    worker_id: str
    device_id: str
    source: Tier
    room_s: float  # until the device has room
    queue_s: float  # then, until the node's other loads are done
    transfer_s: float
    init_s: float
    loss_s: float  # what others are expected to wait for having to be started again
    victims: tuple[str, ...]  # instances that make room
    refused: str  # why it could not be chosen; empty if it could

    @property
    def start_s(self) -> float:
        """Return the estimate as a whole."""
        return self.room_s + self.queue_s + self.transfer_s + self.init_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One decision about a start."""

    at_s: float  # counted from the first
    chosen: Candidate | None  # None: nothing was possible
    considered: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One load, what was expected of it and how it went."""

    instance_id: str
    expected: Candidate
    ordered_s: float  # counted from the first decision
    took_s: float
    report: StartReport | None  # None: it failed
    failure: str  # why; empty if it did not


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """A request that got an instance of the start, and what it waited for."""

    request_id: str
    start: StartReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that the scheduler keeps of a start."""

    placement_id: str
    deployment: str
    began_at: datetime
    choices: tuple[Choice, ...]
    attempts: tuple[Attempt, ...]
    served: tuple[ServedRequest, ...]
