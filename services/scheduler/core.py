"""The scheduler's decisions: `decide(state, event) -> (state, actions)`, and nothing else.

No clock, no I/O, no randomness: the same events give the same actions, in the service, in the
tests' dialogues and in a simulation. The state belongs to the caller, is changed in place and
handed back; actions are to be done in their order, and their outcomes come back as events.
"""

from __future__ import annotations

from services.common.placement import InstanceState
from services.scheduler import autoscale, leaving, loads, reports, starts
from services.scheduler.actions import Action, WakeAt
from services.scheduler.estimates import Estimates, Priors
from services.scheduler.events import (
    AcquireCancelled,
    AcquireRequested,
    DemandReported,
    DeploymentPut,
    DeploymentRemoved,
    Event,
    LoadFailed,
    LoadProgressed,
    LoadSucceeded,
    Released,
    StoreChanged,
    StoreLost,
    StoreReported,
    Tick,
    UnloadFailed,
    UnloadRefused,
    UnloadSucceeded,
    WorkerLost,
    WorkerReported,
    WorkersLearned,
)
from services.scheduler.grants import (
    expire,
    keep_alive_ends_s,
    refresh_kept,
    release,
    remind_of_keep_alive,
)
from services.scheduler.instance import Exit, Instance
from services.scheduler.placement import place_new, place_waiting
from services.scheduler.soonest import Soonest
from services.scheduler.state import Limits, Policy, State, Turn
from services.scheduler.timers import Kind


def new_state(
    *,
    epoch: int,
    term: int = 0,
    now_s: float,
    limits: Limits | None = None,
    policy: Policy | None = None,
    priors: Priors | None = None,
) -> State:
    """Return what the leader of `epoch` knows when it begins: nothing yet.

    A leader that loses its lease and wins it back in time keeps its epoch; `term` counts that.
    """
    limits = limits or Limits()
    return State(
        epoch=epoch,
        instance_prefix=f"i{epoch:x}.{term}" if term else f"i{epoch:x}",
        learning_until_s=now_s + limits.learning_s,
        limits=limits,
        policy=policy or Soonest(),
        estimates=Estimates(priors or Priors()),
    )


def decide(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """Return the state after `event` and what is to be done about it."""
    state.turn += 1
    turn = Turn(state, event.now_s)
    _forget_gone(turn)
    _handle(turn, event)
    autoscale.follow_all(turn)
    place_waiting(turn)
    wake_s = state.timers.next_s()
    if wake_s is not None and wake_s != state.wake_s:
        state.wake_s = wake_s
        turn.do(WakeAt(at_s=wake_s))
    return state, tuple(turn.actions)


def _handle(turn: Turn, event: Event) -> None:  # noqa: PLR0912 - a case for each kind of event
    match event:
        case AcquireRequested():
            if (start := starts.acquire(turn, event)) is not None:
                place_new(turn, start)
        case AcquireCancelled():
            starts.cancel(turn, event)
        case DemandReported():
            autoscale.hear(turn, event)
        case Released():
            release(turn, event.request_id)
        case WorkerReported():
            reports.report(turn, event)
        case WorkerLost():
            reports.lose(turn, event)
        case WorkersLearned():
            turn.state.learning_until_s = min(turn.state.learning_until_s, turn.now_s)
            turn.is_room_changed = True
        case StoreReported() | StoreChanged() | StoreLost():
            reports.follow_store(turn, event)
        case DeploymentPut():
            _put(turn, event)
        case DeploymentRemoved():
            _remove(turn, event)
        case Tick():
            _tick(turn)
        case _:
            if (instance := turn.state.instances.get(event.instance_id)) is not None:
                _handle_outcome(turn, instance, event)


def _handle_outcome(
    turn: Turn,
    instance: Instance,
    event: LoadProgressed
    | LoadSucceeded
    | LoadFailed
    | UnloadSucceeded
    | UnloadRefused
    | UnloadFailed,
) -> None:
    """Take in how a load or an unload went; what comes too late to matter is ignored."""
    is_loading = instance.state is InstanceState.LOADING
    match event:
        case LoadProgressed() if is_loading:
            starts.tell(turn, turn.state.starts[instance.start_key], event.progress)
        case LoadSucceeded() if is_loading:
            _loaded(turn, instance, event)
        case LoadFailed() if is_loading:
            start = turn.state.starts[instance.start_key]
            loads.fail(turn, instance, event.error)
            leaving.end(turn, instance)
            starts.start_failed(turn, start, instance.worker_id, event.error)
        case UnloadSucceeded() if instance.state is InstanceState.LEAVING:
            leaving.learn(turn, instance)
            leaving.end(turn, instance)
        case UnloadRefused() if instance.exit is Exit.IF_IDLE:
            _stays(turn, instance)
        case UnloadRefused() | UnloadFailed() if instance.state is InstanceState.LEAVING:
            leaving.repeat_unload_later(turn, instance)
        case _:
            pass


def _loaded(turn: Turn, instance: Instance, event: LoadSucceeded) -> None:
    loads.succeed(turn, instance, event.start)
    leaving.stay(turn, instance)
    instance.ready_s = turn.now_s
    starts.finish(turn, instance, event.start)


def _stays(turn: Turn, instance: Instance) -> None:
    """Take an instance back that refused to go; one that is outdated by now has to drain."""
    turn.state.evicted_s.pop(instance.deployment, None)
    worker = turn.state.workers[instance.worker_id]
    deployment = turn.state.deployments.get(instance.deployment)
    if worker.draining:
        instance.exit, instance.unload_in_flight = Exit.WITH_WORKER, False
        turn.state.ledger.count(instance)
    elif deployment is not None and deployment.made(
        ref=instance.model, slots=instance.slots, memory_bytes=instance.memory_bytes
    ):
        leaving.stay(turn, instance)
        starts.serve(turn, instance)
    else:
        instance.exit = Exit.DRAINED
        leaving.order_unload(turn, instance)
    turn.changed[instance.device] = None  # who counted on its memory has to look elsewhere


def _put(turn: Turn, event: DeploymentPut) -> None:
    state, deployment = turn.state, event.deployment
    before = state.deployments.get(deployment.name)
    state.deployments[deployment.name] = deployment
    turn.scaled[deployment.name] = None
    state.held_until_s.pop(deployment.name, None)
    if before is None:
        return
    if before.serves_like(deployment):
        refresh_kept(turn, deployment.name)
        for instance in state.instances_of(deployment.name):
            remind_of_keep_alive(state, instance)
        return
    _retire_all(turn, deployment.name)
    for start in state.starts_of(deployment.name):
        starts.restart(turn, start)


def _remove(turn: Turn, event: DeploymentRemoved) -> None:
    state = turn.state
    if (before := state.deployments.pop(event.name, None)) is None:
        return
    state.estimates.forget_model(event.name, before.model.ref)
    state.held_until_s.pop(event.name, None)
    state.habits.pop(event.name, None)
    for start in state.starts_of(event.name):
        starts.refuse_all(turn, start, starts.unknown(event.name, state.deployments))
    _retire_all(turn, event.name)


def _retire_all(turn: Turn, deployment: str) -> None:
    for instance in turn.state.instances_of(deployment):
        leaving.retire(turn, instance)


def _tick(turn: Turn) -> None:
    """Look at all that is due."""
    turn.state.wake_s = None  # ask again even for the same time: this tick may be early
    while (due := turn.state.timers.pop_due(turn.now_s)) is not None:
        kind, key = due
        match kind:
            case Kind.GRANT:
                expire(turn, key)
            case Kind.QUEUE:
                if key:
                    turn.again[key] = None
                else:
                    turn.is_room_changed = True
            case Kind.ROUTER:
                autoscale.forget_if_silent(turn, key)
            case Kind.AHEAD:
                autoscale.start_ahead(turn, key)
            case Kind.SCALE:
                turn.scaled[key] = None
            case Kind.SILENCE:
                reports.lose_if_silent(turn, key)
            case Kind.KEEP_ALIVE | Kind.UNLOAD:
                if (instance := turn.state.instances.get(key)) is not None:
                    _tick_instance(turn, instance, kind)


def _tick_instance(turn: Turn, instance: Instance, kind: Kind) -> None:
    if kind is Kind.UNLOAD:
        if instance.state is InstanceState.LEAVING and not instance.unload_in_flight:
            leaving.order_unload(turn, instance)
        return
    due_s = keep_alive_ends_s(turn.state, instance)
    if due_s is not None and due_s <= turn.now_s:
        leaving.evict(turn, instance)
    else:
        remind_of_keep_alive(turn.state, instance)


def _forget_gone(turn: Turn) -> None:
    """Drop what no late report can list any more, and old evictions; the oldest come first."""
    evicted, rest_s = turn.state.evicted_s, turn.state.limits.rest_s
    while evicted:
        deployment, at_s = next(iter(evicted.items()))
        if turn.now_s - at_s < rest_s:
            break
        del evicted[deployment]
    gone = turn.state.gone
    while gone:
        instance_id, until_s = next(iter(gone.items()))
        if until_s > turn.now_s:
            return
        del gone[instance_id]
