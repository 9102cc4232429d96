"""Starts: at most one per deployment, shared by all who wait for it, dropped when nobody does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final

from services.common.errors import (
    BriskError,
    DataLossError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress, StartReport
from services.common.names import near_matches, shorten
from services.common.placement import InstanceState
from services.scheduler import actions, habits, leaving
from services.scheduler.demand import lacking
from services.scheduler.events import AcquireCancelled, AcquireRequested
from services.scheduler.grants import cold_report, grant, release, warm_report
from services.scheduler.instance import Instance
from services.scheduler.state import Start, State, Turn, Waiter

RETRY_AFTER_S: Final = 1.0
_COMPARED_MAX: Final = 500


def acquire(turn: Turn, event: AcquireRequested) -> Start | None:
    """Grant a ready instance, refuse, or let the request wait; return a start that is new."""
    state = turn.state
    if event.request_id in state.waiting_for:
        return None  # the shell lets no id in twice; the first one keeps its place
    release(turn, event.request_id)  # a router that comes back gave the last instance up
    if event.deployment not in state.deployments:
        error: BriskError = unknown(event.deployment, state.deployments)
        turn.do(actions.Refuse(request_id=event.request_id, error=error))
        return None
    turn.scaled[event.deployment] = None
    habits.begun(turn, event.deployment, turn.now_s)
    instance = state.ready_instance(event.deployment, event.excluded)
    if instance is not None:
        grant(turn, instance, event.request_id, warm_report())
        return None
    if (full := _is_full(state, event.deployment)) is not None:
        error = ResourceExhaustedError(
            full,
            reason=Reason.QUEUE_FULL,
            retry_after_s=RETRY_AFTER_S,
        )
        turn.do(actions.Refuse(request_id=event.request_id, error=error))
        return None
    return _join(turn, event)


def _is_full(state: State, deployment: str) -> str | None:
    """Return why no more requests may wait for a deployment, if so."""
    if len(state.waiting_for) >= state.limits.waiters_max:
        return f"at most {state.limits.waiters_max} requests wait for an instance at a time"
    most = state.deployments[deployment].spec.max_queue
    if most is not None:
        waiting = sum(len(start.waiters) for start in state.starts_of(deployment))
        if waiting >= most:
            return f"at most {most} requests wait for an instance of {deployment} at a time"
    return None


def _join(turn: Turn, event: AcquireRequested) -> Start | None:
    state = turn.state
    waiter = Waiter(
        request_id=event.request_id,
        excluded=event.excluded,
        asked_s=turn.now_s,
        deadline_s=event.deadline_s,
    )
    start = _under_way(state, event.deployment)
    if start is not None:
        state.waiting_for[event.request_id] = start.key
        start.waiters[event.request_id] = waiter
        if start.instance_id is None and waiter.deadline_s < math.inf:
            state.dequeue(start)
            state.enqueue(start)
        if start.progress is not None:
            turn.do(actions.TellProgress(request_ids=(event.request_id,), progress=start.progress))
        return None
    start = new(turn, event.deployment)
    start.waiters[event.request_id] = waiter
    state.waiting_for[event.request_id] = start.key
    state.begin(start)
    return start


def new(turn: Turn, deployment: str) -> Start:
    """Return a start of a deployment, not entered yet."""
    state = turn.state
    return Start(
        key=state.new_start_key(deployment),
        placement_id=state.new_placement_id(),
        deployment=deployment,
        arrival=state.next_arrival(),
        asked_s=turn.now_s,
        waits_since_s=turn.now_s,
    )


def _under_way(state: State, deployment: str) -> Start | None:
    """Return the start that will serve first: the oldest load, else the oldest that waits."""
    return min(
        state.starts_of(deployment),
        key=lambda start: (start.instance_id is None, start.arrival),
        default=None,
    )


def cancel(turn: Turn, event: AcquireCancelled) -> None:
    """Take a request out wherever it is; a start that nobody waits for any more is dropped."""
    release(turn, event.request_id)
    key = turn.state.waiting_for.pop(event.request_id, None)
    if key is None:
        return
    start = turn.state.starts[key]
    del start.waiters[event.request_id]
    turn.scaled[start.deployment] = None
    if not start.waiters:
        _left(turn, start)


def serve(turn: Turn, instance: Instance, loaded: StartReport | None = None) -> None:
    """Grant a ready instance to all who wait for its deployment and do not exclude it."""
    own = turn.state.starts.get(instance.start_key)
    for start in turn.state.starts_of(instance.deployment):
        for waiter in tuple(start.waiters.values()):
            if instance.instance_id in waiter.excluded:
                continue
            del start.waiters[waiter.request_id]
            del turn.state.waiting_for[waiter.request_id]
            if loaded is None or own is None:
                report = warm_report(turn.now_s - waiter.asked_s)
            else:
                report = cold_report(turn, own, waiter, loaded)
            grant(turn, instance, waiter.request_id, report)
        if start is not own and not start.waiters:
            _left(turn, start)
    turn.scaled[instance.deployment] = None


def finish(turn: Turn, instance: Instance, loaded: StartReport) -> None:
    """After a load succeeded: serve who waits, and end its start."""
    start = turn.state.starts[instance.start_key]
    serve(turn, instance, loaded)
    instance.start_key = ""
    if start.waiters:  # they all exclude it, whatever their router means by that
        restart(turn, start)
    else:
        turn.state.end(start)


def _left(turn: Turn, start: Start) -> None:
    """End a start that nobody waits for any more, unless its deployment wants it all the same."""
    if is_kept(turn, start):
        unclaim(turn, start)
    else:
        drop(turn, start)


def is_kept(turn: Turn, start: Start) -> bool:
    """Whether a start that nobody waits for goes on: its deployment wants another instance."""
    return is_held(turn, start) or lacking(turn.state, start.deployment) >= 0


def is_held(turn: Turn, start: Start) -> bool:
    """Whether a start goes on for a while whatever is wanted: it is loading, or was begun ahead."""
    has_begun = start.instance_id is not None or start.is_ahead
    return has_begun and turn.now_s < start.kept_until_s


def drop(turn: Turn, start: Start) -> None:
    """End a start: leave the queue, give its claim up, undo its load."""
    state = turn.state
    if start.instance_id is None:
        state.dequeue(start)
        unclaim(turn, start)
        state.end(start)
        return
    state.end(start)
    instance = state.instances[start.instance_id]
    if instance.state is InstanceState.LOADING:
        leaving.undo(turn, instance)


def refuse_all(turn: Turn, start: Start, error: BriskError) -> None:
    """Refuse all who wait for a start, and end it."""
    for request_id in start.waiters:
        del turn.state.waiting_for[request_id]
        turn.do(actions.Refuse(request_id=request_id, error=error))
    start.waiters.clear()
    drop(turn, start)


def start_failed(turn: Turn, start: Start, worker_id: str, error: BriskError) -> None:
    """After a load failed: try elsewhere if that may help, at most so many times."""
    limits = turn.state.limits
    start.instance_id = None
    turn.state.enqueue(start)
    if _is_final(error) or start.attempts >= limits.attempts_max:
        turn.state.held_until_s[start.deployment] = turn.now_s + limits.hold_s
        turn.scaled[start.deployment] = None
        refuse_all(turn, start, _for_callers(error))
        return
    start.avoided[worker_id] = None
    start.retry_s = turn.now_s + limits.backoff_s * 2.0 ** (start.attempts - 1)
    _wait_again(turn, start)


def start_lost(turn: Turn, start: Start) -> None:
    """After its worker was lost: place a start anew, at most so many times."""
    start.instance_id = None
    turn.state.enqueue(start)
    start.has_lost_worker = True
    if start.attempts >= turn.state.limits.attempts_max:
        refuse_all(turn, start, worker_lost(start))
        return
    _wait_again(turn, start)


def restart(turn: Turn, start: Start) -> None:
    """Begin a start anew because its deployment has changed or its worker leaves."""
    if start.instance_id is not None:
        start.instance_id = None
        turn.state.enqueue(start)
    unclaim(turn, start)
    start.attempts, start.retry_s = 0, 0.0
    start.avoided.clear()
    _wait_again(turn, start)


def _wait_again(turn: Turn, start: Start) -> None:
    start.waits_since_s, start.chosen_s = turn.now_s, None
    turn.again[start.key] = None


def unclaim(turn: Turn, start: Start) -> None:
    """Give the claim of a start up, if it has one; others may have use for it."""
    if start.claim is not None:
        turn.state.ledger.unclaim(start.claim, start.key)
        turn.changed[start.claim] = None
        start.claim = None


def forget_claims(state: State, claimants: Iterable[str]) -> None:
    """After a device is closed: the claims on it are void."""
    for key in claimants:
        state.starts[key].claim = None


def tell(turn: Turn, start: Start, progress: StartProgress) -> None:
    """Tell all who wait for a start how far it has come, unless they know."""
    if progress != start.progress:
        start.progress = progress
        if start.waiters:
            told = actions.TellProgress(request_ids=tuple(start.waiters), progress=progress)
            turn.do(told)


def tell_queued(turn: Turn, start: Start, detail: str) -> None:
    """Tell all who wait for a start what it waits for."""
    tell(turn, start, StartProgress(phase=StartPhase.QUEUE, detail=detail))


def unknown(name: str, known: Collection[str]) -> NotFoundError:
    """Return the refusal for a deployment that does not exist, naming near matches."""
    # Comparing takes time: of very many names, only those with the same beginning.
    alike = (each for each in known if each[:1].casefold() == name[:1].casefold())
    few = tuple(islice(known, _COMPARED_MAX + 1))
    near = near_matches(name, few if len(few) <= _COMPARED_MAX else islice(alike, _COMPARED_MAX))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return NotFoundError(
        f"no deployment is named {shorten(name)}{hint}",
        reason=Reason.MODEL_NOT_FOUND,
        metadata={"near_matches": ",".join(near)} if near else None,
    )


def worker_lost(start: Start) -> UnavailableError:
    """Return the refusal for a start whose worker is gone and that has no other place."""
    return UnavailableError(
        f"the worker that was loading {start.deployment} is lost",
        reason=Reason.WORKER_LOST,
        retry_after_s=RETRY_AFTER_S,
    )


def _is_final(error: BriskError) -> bool:
    """Whether no other worker could do better."""
    return isinstance(error, InvalidArgumentError | DataLossError)


def _for_callers(error: BriskError) -> BriskError:
    """Return what those who wait hear of a failed load."""
    match error:
        case (
            InvalidArgumentError()
            | DataLossError()
            | NotFoundError()
            | ResourceExhaustedError()
            | InternalError()
        ):
            return error
        case UnavailableError() if error.reason == Reason.STORE_UNREACHABLE:
            reason = Reason.STORE_UNREACHABLE
        case _ if error.reason == Reason.STALE_EPOCH:
            reason = Reason.NOT_LEADER
        case _:  # its worker went, leaves or took too long: to the caller all the same
            reason = Reason.WORKER_LOST
    return UnavailableError(
        error.message,
        reason=reason,
        retry_after_s=error.retry_after_s or RETRY_AFTER_S,
        metadata=error.metadata,
    )
