"""Tell the leading scheduler how this worker is: every second, and at once when it changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Never

from services.common.errors import BriskError
from services.common.log import get_logger
from services.common.placement import Instance, InstanceState, WorkerState
from services.worker import metrics
from services.worker.instances import Instances, Resident
from services.worker.ports import LeaderReports

log = get_logger(__name__)

REPORT_PAUSE_S: Final = 1.0
REPORT_GAP_S: Final = 0.02  # changes closer together than this share a report


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this worker is."""

    worker_id: str  # never used twice
    node_id: str
    address: str


class StateSource:
    """Takes numbered pictures of the worker."""

    def __init__(self, identity: Identity, instances: Instances) -> None:
        self._identity = identity
        self._instances = instances
        self._sequence = 0
        self._exported: set[str] = set()  # deployments

    def take(self) -> WorkerState:
        """Return the state now; each one has a higher sequence. Audits the books."""
        instances = self._instances
        instances.ledger.audit()
        self._sequence += 1
        state = WorkerState(
            worker_id=self._identity.worker_id,
            node_id=self._identity.node_id,
            address=self._identity.address,
            devices=instances.ledger.devices(),
            instances=tuple(self._instance(each) for each in instances.residents.values()),
            draining=instances.is_draining,
            sequence=self._sequence,
        )
        self._export(state)
        return state

    def _instance(self, resident: Resident) -> Instance:
        order = resident.order
        sequences = resident.serving.sequences if resident.serving is not None else None
        state = self._instances.ledger.state_of(order.instance_id)
        return Instance(
            instance_id=order.instance_id,
            deployment=order.deployment,
            model=order.model,
            worker_id=self._identity.worker_id,
            device_id=order.device_id,
            memory_bytes=order.memory_bytes,
            slots=order.slots,
            state=state or InstanceState.UNSPECIFIED,
            running=sequences.running if sequences else 0,
            waiting=sequences.waiting if sequences else 0,
            idle_s=sequences.idle_s if sequences else None,
            serial_reason=resident.serial_reason,
        )

    def _export(self, state: WorkerState) -> None:
        for device in state.devices:
            metrics.DEVICE_MEMORY.labels(device.device_id).set(device.memory_bytes)
            used = device.memory_bytes - device.free_bytes
            metrics.DEVICE_MEMORY_USED.labels(device.device_id).set(used)
        for kind in (InstanceState.LOADING, InstanceState.READY, InstanceState.LEAVING):
            count = sum(instance.state is kind for instance in state.instances)
            metrics.INSTANCES.labels(kind.value).set(count)
        running, waiting = Counter[str](), Counter[str]()
        for instance in state.instances:
            running[instance.deployment] += instance.running
            waiting[instance.deployment] += instance.waiting
        for gauge, counts in (
            (metrics.REQUESTS_RUNNING, running),
            (metrics.REQUESTS_WAITING, waiting),
        ):
            for deployment, count in counts.items():
                gauge.labels(deployment).set(count)
            for deployment in self._exported - counts.keys():
                gauge.remove(deployment)
        self._exported = set(running)


async def report_forever(
    source: StateSource, changed: asyncio.Event, leader: LeaderReports
) -> Never:
    """Report until cancelled. A leader that is away is told again at the next report."""
    is_heard = True
    while True:
        changed.clear()
        try:
            await leader.report(source.take())
            if not is_heard:
                log.info("leader hears us again")
            is_heard = True
        except BriskError as error:
            if is_heard:
                log.warning("leader does not hear us", reason=error.reason)
            is_heard = False
        await asyncio.sleep(REPORT_GAP_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_PAUSE_S):
                await changed.wait()
