"""What a policy is asked and what it answers: the ways to start a model, with their estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from services.common.model import ModelInfo, Tier
from services.scheduler.first_fit import DeviceKey


class Way(StrEnum):
    """How a device gets room for a start."""

    FREE = "free"  # there is room, or will be in a moment
    EVICT = "evict"  # idle instances make room
    WAIT = "wait"  # busy instances are waited for
    MIGRATE = "migrate"  # busy instances go on elsewhere


class Estimate(NamedTuple):
    """Milliseconds from the decision to an instance that serves, in the order of the phases."""

    room_ms: float  # until the device has room
    queue_ms: float  # then, until the node's other loads are done
    transfer_ms: float
    init_ms: float

    @property
    def total_ms(self) -> float:
        """Return the sum."""
        return self.room_ms + self.queue_ms + self.transfer_ms + self.init_ms


class Candidate(NamedTuple):
    """One way to start a model on one device."""

    way: Way
    device: DeviceKey
    tier: Tier  # where most of the weights come from
    estimate: Estimate
    loss_ms: float = 0.0  # what others will wait for having to be started again
    victims: tuple[str, ...] = ()  # the instances that make room
    destinations: tuple[DeviceKey, ...] = ()  # MIGRATE: where each of them goes on
    refused: str = ""  # why it cannot be chosen here; empty if it can

    @property
    def cost_ms(self) -> float:
        """Return the estimate and the loss: less is better."""
        return self.estimate.total_ms + self.loss_ms


class Choice(NamedTuple):
    """What a policy chose, and from what."""

    chosen: Candidate | None  # None: nothing is possible now
    considered: tuple[Candidate, ...] = ()


class Reach(NamedTuple):
    """How soon a node would have the model on a device with room, in milliseconds."""

    tier: Tier
    wait_ms: float  # for the node's other loads
    transfer_ms: float
    init_ms: float

    @property
    def least_ms(self) -> float:
        """Return the sum: no start there takes less."""
        return self.wait_ms + self.transfer_ms + self.init_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The question where a deployment should start."""

    claimant: str  # the start, as it is named in claims
    deployment: str
    model: ModelInfo
    need_bytes: int  # of device memory
    now_s: float
    asked_s: float  # when its first request came
    claim: DeviceKey | None = None  # where it waits for room already
    avoided: Mapping[str, None]  # workers that failed it
    nodes: dict[str, Reach] = field(default_factory=dict)  # what was found out while choosing
