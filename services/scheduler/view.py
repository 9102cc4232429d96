"""The cluster as operators see it: pictures of the core's state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.common.model import Tier
from services.common.placement import Instance, InstanceState, WorkerState
from services.scheduler.deployment import Deployment
from services.scheduler.grants import keep_alive_ends_s
from services.scheduler.ports import Peer
from services.scheduler.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentView:
    """A deployment and how many instances it has."""

    deployment: Deployment
    instances_ready: int
    instances_loading: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIoView:
    """What was learnt and is predicted of a node."""

    loads: int
    wait_s: float
    ssd_bytes_per_s: float
    dram_bytes_per_s: float
    models_on_ssd: int | None  # None: its store manager has not told
    models_in_dram: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A host: its store manager and its workers."""

    node_id: str
    storemgr_address: str  # empty if none is registered
    workers: tuple[WorkerState, ...]
    io: NodeIoView


def deployments(state: State) -> tuple[DeploymentView, ...]:
    """Return all deployments, sorted by name."""
    return tuple(deployment(state, each) for _, each in sorted(state.deployments.items()))


def deployment(state: State, shown: Deployment) -> DeploymentView:
    """Return one deployment with its counts."""
    states = [instance.state for instance in state.instances_of(shown.name)]
    return DeploymentView(
        deployment=shown,
        instances_ready=states.count(InstanceState.READY),
        instances_loading=states.count(InstanceState.LOADING),
    )


def instances(state: State, now_s: float, of: str | None = None) -> tuple[Instance, ...]:
    """Return all instances, or those of one deployment, sorted by deployment, then by id."""
    found = state.instances.values() if of is None else state.instances_of(of)
    shown: list[Instance] = []
    for each in sorted(found, key=lambda each: (each.deployment, each.instance_id)):
        since_s, ends_s = each.reported_idle_since_s, keep_alive_ends_s(state, each)
        is_ready = each.state is InstanceState.READY
        shown.append(
            Instance(
                instance_id=each.instance_id,
                deployment=each.deployment,
                model=each.model,
                worker_id=each.worker_id,
                device_id=each.device.device_id,
                memory_bytes=each.memory_bytes,
                slots=each.slots,
                state=each.state,
                running=each.running,
                waiting=each.waiting,
                idle_s=max(0.0, now_s - since_s) if is_ready and since_s is not None else None,
                keep_alive_left_s=None if ends_s is None else max(0.0, ends_s - now_s),
            )
        )
    return tuple(shown)


def nodes(state: State, stores: Iterable[Peer], now_s: float) -> tuple[NodeView, ...]:
    """Return all nodes that have a store manager or a worker, sorted by id."""
    addresses = {store.node_id: store.address for store in stores}
    workers: dict[str, list[WorkerState]] = {}
    for worker in state.workers.values():
        workers.setdefault(worker.last.node_id, []).append(worker.last)
    return tuple(
        NodeView(
            node_id=node_id,
            storemgr_address=addresses.get(node_id, ""),
            workers=tuple(sorted(workers.get(node_id, ()), key=lambda each: each.worker_id)),
            io=_io(state, node_id, now_s),
        )
        for node_id in sorted({*addresses, *workers})
    )


def _io(state: State, node_id: str, now_s: float) -> NodeIoView:
    io, counts = state.io.get(node_id), state.residency.counts(node_id)
    return NodeIoView(
        loads=0 if io is None else len(io.loads),
        wait_s=0.0 if io is None else io.wait_s(now_s),
        ssd_bytes_per_s=state.estimates.bytes_per_s(node_id, Tier.SSD),
        dram_bytes_per_s=state.estimates.bytes_per_s(node_id, Tier.DRAM),
        models_on_ssd=None if counts is None else counts[0],
        models_in_dram=None if counts is None else counts[1],
    )
