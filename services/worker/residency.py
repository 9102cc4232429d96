"""Who holds how much of which device: a ledger, exact to the byte, without I/O or clock.

An instance reserves its bytes before anything is read and keeps them until everything is freed;
where its weights take more than was ordered, the reservation grows first. Its states are
LOADING → READY → LEAVING → gone, or LOADING → gone. The ledger never guesses; `audit` proves that
what is free and what is held add up to each device's budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
)
from services.common.names import shorten
from services.common.placement import Device, InstanceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """An instance's bytes on a device."""

    instance_id: str
    device_id: str
    memory_bytes: int
    state: InstanceState


class Ledger:
    """Owned by the event loop."""

    def __init__(self, budgets: Mapping[str, int]) -> None:
        self._budgets = dict(budgets)
        self._free = dict(budgets)
        self._held: dict[str, Reservation] = {}

    def reserve(self, instance_id: str, device_id: str, memory_bytes: int) -> None:
        """Take `memory_bytes` of a device for a new instance, LOADING.

        Raises InvalidArgumentError for an unknown device or a size that is none,
        FailedPreconditionError (INSTANCE_BUSY) if it is here already, and ResourceExhaustedError
        (INSUFFICIENT_MEMORY) with needed and available bytes; then nothing was taken.
        """
        if device_id not in self._budgets:
            raise InvalidArgumentError(
                f"device must be one of {', '.join(self._budgets)}. Given: {shorten(device_id)}"
            )
        if memory_bytes < 1:
            raise InvalidArgumentError(f"memory_bytes must be at least 1. Given: {memory_bytes}")
        if instance_id in self._held:
            state = self._held[instance_id].state.value
            raise FailedPreconditionError(
                f"the instance is {state} here already", reason=Reason.INSTANCE_BUSY
            )
        available = self._free[device_id]
        if memory_bytes > available:
            raise ResourceExhaustedError(
                f"{device_id} has {available} bytes free. Needed: {memory_bytes}",
                reason=Reason.INSUFFICIENT_MEMORY,
                metadata={"needed_bytes": str(memory_bytes), "available_bytes": str(available)},
            )
        self._free[device_id] = available - memory_bytes
        self._held[instance_id] = Reservation(
            instance_id=instance_id,
            device_id=device_id,
            memory_bytes=memory_bytes,
            state=InstanceState.LOADING,
        )

    def resize(self, instance_id: str, memory_bytes: int) -> None:
        """Make an instance's reservation larger or smaller.

        Raises ResourceExhaustedError (INSUFFICIENT_MEMORY) with the bytes it then needs in all and
        those it could have; then nothing has changed.
        """
        held = self._held[instance_id]
        available = self._free[held.device_id] + held.memory_bytes
        if memory_bytes > available:
            raise ResourceExhaustedError(
                f"{held.device_id} has {available} bytes for the instance. Needed: {memory_bytes}",
                reason=Reason.INSUFFICIENT_MEMORY,
                metadata={"needed_bytes": str(memory_bytes), "available_bytes": str(available)},
            )
        self._free[held.device_id] = available - memory_bytes
        self._held[instance_id] = replace(held, memory_bytes=memory_bytes)

    def ready(self, instance_id: str) -> None:
        """Mark a LOADING instance READY."""
        self._move(instance_id, InstanceState.LOADING, InstanceState.READY)

    def leaving(self, instance_id: str) -> None:
        """Mark a READY instance LEAVING."""
        self._move(instance_id, InstanceState.READY, InstanceState.LEAVING)

    def free(self, instance_id: str) -> None:
        """Give an instance's bytes back and forget it."""
        held = self._held.pop(instance_id)
        self._free[held.device_id] += held.memory_bytes

    def state_of(self, instance_id: str) -> InstanceState | None:
        """Return an instance's state, or None if it is not here."""
        held = self._held.get(instance_id)
        return held.state if held else None

    def devices(self) -> tuple[Device, ...]:
        """Return all devices in the order they were declared."""
        return tuple(
            Device(device_id=name, memory_bytes=budget, free_bytes=self._free[name])
            for name, budget in self._budgets.items()
        )

    def audit(self) -> None:
        """Raise RuntimeError unless free and held bytes add up to every device's budget."""
        held = dict.fromkeys(self._budgets, 0)
        for reservation in self._held.values():
            held[reservation.device_id] += reservation.memory_bytes
        for name, budget in self._budgets.items():
            if self._free[name] < 0 or self._free[name] + held[name] != budget:
                raise RuntimeError(
                    f"{name}: {self._free[name]} free and {held[name]} held of {budget} bytes"
                )

    def _move(self, instance_id: str, before: InstanceState, after: InstanceState) -> None:
        held = self._held[instance_id]
        if held.state is not before:
            raise RuntimeError(f"{instance_id} is {held.state.value}, not {before.value}")
        self._held[instance_id] = replace(held, state=after)


class EpochFence:
    """Remembers the newest leader, so that an order of an older one is refused."""

    def __init__(self) -> None:
        self._newest = 0

    def check(self, leader_epoch: int) -> None:
        """Accept an order. Raises FailedPreconditionError (STALE_EPOCH) if it is outdated."""
        if leader_epoch < self._newest:
            raise FailedPreconditionError(
                f"leader_epoch must be at least {self._newest}. Given: {leader_epoch}",
                reason=Reason.STALE_EPOCH,
                metadata={"newest_epoch": str(self._newest)},
            )
        self._newest = leader_epoch
