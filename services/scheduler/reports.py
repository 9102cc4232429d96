"""What workers say: how the core's picture follows theirs, and what it means to lose one.

Reports race with the answers to loads and unloads, so an answer counts for more than a report:
a load's stream says when it is ready, an unload's answer says when it is gone.
"""

from __future__ import annotations

from services.common.placement import Instance as Reported
from services.common.placement import InstanceState
from services.scheduler import actions, habits, leaving
from services.scheduler.events import (
    StoreChanged,
    StoreLost,
    StoreReported,
    WorkerLost,
    WorkerReported,
)
from services.scheduler.first_fit import DeviceKey
from services.scheduler.grants import IDLE_WAVER_S, refresh_idle
from services.scheduler.instance import Exit, Instance
from services.scheduler.node_io import NodeIo
from services.scheduler.starts import forget_claims, restart, serve, start_lost
from services.scheduler.state import Turn, Worker
from services.scheduler.timers import Kind


def report(turn: Turn, event: WorkerReported) -> None:
    """Follow a worker's report; an older one than seen is ignored."""
    state, said = turn.state, event.worker
    worker = state.workers.get(said.worker_id)
    if worker is not None and worker.last.node_id != said.node_id:
        lose(turn, WorkerLost(now_s=turn.now_s, worker_id=said.worker_id))  # it is another one
        worker = None
    if worker is None:
        worker = state.workers[said.worker_id] = Worker(last=said, seen_s=turn.now_s)
        silence_s = turn.now_s + state.limits.silence_s
        state.timers.push(silence_s, Kind.SILENCE, said.worker_id)
    elif said.sequence < worker.last.sequence:
        return
    worker.last, worker.seen_s = said, turn.now_s
    if said.draining and not worker.draining:
        _drain(turn, worker)
    if not worker.draining:
        _follow_devices(turn, worker)
    for reported in said.instances:
        _follow(turn, worker, reported)
    listed = {reported.instance_id for reported in said.instances}
    for instance_id in tuple(worker.instances):
        if instance_id not in listed:
            _missing(turn, state.instances[instance_id])


def lose(turn: Turn, event: WorkerLost) -> None:
    """Enter that a worker is gone: its instances with it, its starts go elsewhere."""
    state = turn.state
    if (worker := state.workers.get(event.worker_id)) is None:
        return
    for instance_id in tuple(worker.instances):
        instance = state.instances[instance_id]
        was_loading = instance.state is InstanceState.LOADING
        leaving.vanish(turn, instance)
        if was_loading:
            turn.do(actions.CancelLoad(instance_id=instance_id))
            start_lost(turn, state.starts[instance.start_key])
    for key in worker.devices:
        forget_claims(state, state.ledger.drop(key))
    del state.workers[event.worker_id]
    turn.is_room_changed = True


def follow_store(turn: Turn, event: StoreReported | StoreChanged | StoreLost) -> None:
    """Take in what a store manager has, or that nobody knows any more."""
    state = turn.state
    if isinstance(event, StoreLost):
        state.residency.forget(event.node_id)
        state.estimates.forget_node(event.node_id)
        return
    if isinstance(event, StoreReported):
        state.residency.follow(event.node_id, event.stored)
    else:
        state.residency.change(event.node_id, event.stored, event.removed)
    if event.busy_s > 0.0:
        io = state.io.setdefault(event.node_id, NodeIo())
        io.stated_s = turn.now_s + event.busy_s


def lose_if_silent(turn: Turn, worker_id: str) -> None:
    """Enter that a worker is gone if it has said nothing for too long."""
    if (worker := turn.state.workers.get(worker_id)) is None:
        return
    due_s = worker.seen_s + turn.state.limits.silence_s
    if due_s <= turn.now_s:
        lose(turn, WorkerLost(now_s=turn.now_s, worker_id=worker_id))
    else:
        turn.state.timers.push(due_s, Kind.SILENCE, worker_id)


def _follow_devices(turn: Turn, worker: Worker) -> None:
    ledger, said = turn.state.ledger, worker.last
    for device in said.devices:
        key = DeviceKey(said.node_id, said.worker_id, device.device_id)
        known = ledger.devices.get(key)
        if known is None or known.memory_bytes != device.memory_bytes:
            ledger.open(key, device.memory_bytes)
            worker.devices[key] = None
            turn.is_room_changed = True


def _drain(turn: Turn, worker: Worker) -> None:
    """Send nothing more to a worker that shuts down; it never comes back under its id."""
    state = turn.state
    worker.draining = True
    for instance_id in tuple(worker.instances):
        instance = state.instances[instance_id]
        was_loading = instance.state is InstanceState.LOADING
        leaving.leave_with_worker(turn, instance)
        if was_loading:
            restart(turn, state.starts[instance.start_key])
    for key in worker.devices:
        forget_claims(state, state.ledger.close(key))
    turn.is_room_changed = True


def _follow(turn: Turn, worker: Worker, said: Reported) -> None:
    instance = turn.state.instances.get(said.instance_id)
    if instance is None:
        if said.instance_id not in turn.state.gone:
            _adopt(turn, worker, said)
        return
    if instance.worker_id != worker.last.worker_id:
        return  # not its to tell about
    instance.is_reported = True
    if (instance.running, instance.waiting) != (said.running, said.waiting):
        instance.running, instance.waiting = said.running, said.waiting
        turn.scaled[instance.deployment] = None
    if instance.state is not InstanceState.READY:
        return
    if said.state is InstanceState.LEAVING:  # on its own account: learn when it is gone
        leaving.retire(turn, instance)
    elif said.state is InstanceState.READY:
        _follow_idle(turn, instance, said)


def _follow_busy(turn: Turn, instance: Instance, said: Reported) -> None:
    """Learn for how long instances have sequences once they have one."""
    if said.idle_s is None:
        if instance.busy_since_s is None:
            instance.busy_since_s = turn.now_s
            habits.begun(turn, instance.deployment, turn.now_s)
        return
    idle_since_s = turn.now_s - max(0.0, said.idle_s)
    if idle_since_s > instance.ready_s + IDLE_WAVER_S:  # else it has been idle from the start
        habits.ended(turn, instance.deployment, idle_since_s)
    if instance.busy_since_s is not None:
        busy_for_s = idle_since_s - instance.busy_since_s
        instance.busy_since_s = None
        if busy_for_s > 0.0:
            turn.state.estimates.learn_busy(instance.deployment, busy_for_s)


def _follow_idle(turn: Turn, instance: Instance, said: Reported) -> None:
    _follow_busy(turn, instance, said)
    if said.idle_s is None:
        instance.reported_idle_since_s = None
    else:
        since_s = turn.now_s - max(0.0, said.idle_s)
        before_s = instance.reported_idle_since_s
        # The order of idleness should not waver with the time that reports travel.
        if before_s is None or abs(since_s - before_s) > IDLE_WAVER_S:
            instance.reported_idle_since_s = since_s
    refresh_idle(turn, instance)


def _missing(turn: Turn, instance: Instance) -> None:
    """Enter that a worker has lost an instance, unless its report may just be too early."""
    match instance.state:
        case InstanceState.READY:
            age_s = turn.now_s - instance.ready_s
            if instance.is_reported or age_s > turn.state.limits.unreported_s:
                leaving.vanish(turn, instance)
        case InstanceState.LEAVING if not instance.unload_in_flight:
            leaving.vanish(turn, instance)
        case _:
            pass  # the load's stream or the unload's answer will tell


def _adopt(turn: Turn, worker: Worker, said: Reported) -> None:
    """Take over an instance that an earlier leader started, or that was thought lost."""
    state = turn.state
    key = DeviceKey(worker.last.node_id, worker.last.worker_id, said.device_id)
    if key not in state.ledger.devices:
        return  # nothing can be placed there either
    instance = Instance(
        instance_id=said.instance_id,
        deployment=said.deployment,
        model=said.model,
        device=key,
        memory_bytes=said.memory_bytes,
        slots=said.slots,
        state=InstanceState.LEAVING,
        ready_s=turn.now_s,
        is_reported=True,
        running=said.running,
        waiting=said.waiting,
    )
    deployment = state.deployments.get(said.deployment)
    is_wanted = deployment is not None and deployment.made(
        ref=said.model, slots=said.slots, memory_bytes=said.memory_bytes
    )
    state.add(instance)
    if worker.draining:
        instance.exit = Exit.WITH_WORKER
    elif is_wanted and said.state is InstanceState.READY:
        leaving.stay(turn, instance)
        _follow_idle(turn, instance, said)
        serve(turn, instance)
    else:  # a load that its leader has left behind is undone like one that is outdated
        instance.exit = Exit.DRAINED
        leaving.order_unload(turn, instance)
