"""How instances leave: evicted when idle, drained when outdated, undone when half loaded."""

from __future__ import annotations

from services.common.placement import InstanceState
from services.scheduler import actions, loads
from services.scheduler.grants import refresh_idle, refresh_kept
from services.scheduler.instance import Exit, Instance
from services.scheduler.state import Turn
from services.scheduler.timers import Kind


def make_way(turn: Turn, instance: Instance) -> None:
    """Evict an idle instance for another deployment's start."""
    turn.state.evicted_s.pop(instance.deployment, None)  # the newest are last
    turn.state.evicted_s[instance.deployment] = turn.now_s
    evict(turn, instance)


def evict(turn: Turn, instance: Instance) -> None:
    """Unload an idle instance. Its worker may refuse: a sequence may be on its way to it."""
    _leave(turn, instance, Exit.IF_IDLE)
    order_unload(turn, instance)


def retire(turn: Turn, instance: Instance) -> None:
    """Let an instance finish its sequences and go."""
    if instance.state is InstanceState.LEAVING:
        return
    if instance.state is InstanceState.LOADING:
        undo(turn, instance)
        return
    _leave(turn, instance, Exit.DRAINED)
    order_unload(turn, instance)


def undo(turn: Turn, instance: Instance) -> None:
    """Stop a load. The unload that follows is answered when its memory is free."""
    _leave(turn, instance, Exit.CANCELLED)
    turn.do(actions.CancelLoad(instance_id=instance.instance_id))
    order_unload(turn, instance)


def leave_with_worker(turn: Turn, instance: Instance) -> None:
    """Send nothing more to an instance whose worker is shutting down."""
    if instance.state is InstanceState.LOADING:
        turn.do(actions.CancelLoad(instance_id=instance.instance_id))
    if instance.state is not InstanceState.LEAVING:
        _leave(turn, instance, Exit.WITH_WORKER)


def stay(turn: Turn, instance: Instance) -> None:
    """Take an instance back that turned out to be busy."""
    instance.state, instance.exit = InstanceState.READY, None
    instance.unload_in_flight = False
    instance.reported_idle_since_s = None
    turn.state.ledger.count(instance)
    turn.do(actions.RouteUp(route=turn.state.route_of(instance)))
    refresh_kept(turn, instance.deployment)


def order_unload(turn: Turn, instance: Instance) -> None:
    """Have a leaving instance's worker remove it."""
    instance.unload_in_flight = True
    turn.state.ledger.count(instance)
    turn.do(
        actions.StartUnload(
            instance_id=instance.instance_id,
            worker_id=instance.worker_id,
            address=turn.state.address_of(instance.worker_id),
            only_if_idle=instance.exit is Exit.IF_IDLE,
        )
    )


def repeat_unload_later(turn: Turn, instance: Instance) -> None:
    """After an unload of unknown outcome: ask again, more and more rarely."""
    limits = turn.state.limits
    pause_s = limits.unload_backoff_s * 2.0 ** min(instance.unload_failures, 16)
    instance.unload_in_flight = False
    instance.unload_failures += 1
    turn.state.ledger.count(instance)
    turn.changed[instance.device] = None  # who counted on its memory has to look elsewhere
    due_s = turn.now_s + min(pause_s, limits.unload_backoff_s_max)
    turn.state.timers.push(due_s, Kind.UNLOAD, instance.instance_id)


def end(turn: Turn, instance: Instance) -> None:
    """Enter that an instance is gone for good; late reports may still list it."""
    turn.state.gone[instance.instance_id] = turn.now_s + turn.state.limits.gone_s
    vanish(turn, instance)


def vanish(turn: Turn, instance: Instance) -> None:
    """Enter that an instance is not there any more; if a report lists it again, it is back."""
    turn.scaled[instance.deployment] = None
    loads.end(turn, instance)
    if instance.state is InstanceState.READY:
        turn.do(actions.RouteDown(instance_id=instance.instance_id))
    turn.state.remove(instance)
    refresh_kept(turn, instance.deployment)
    turn.changed[instance.device] = None


def learn(turn: Turn, instance: Instance) -> None:
    """Learn how long an idle instance took to leave."""
    if instance.is_gone_soon and instance.exit is Exit.IF_IDLE:
        turn.state.estimates.learn_unload(turn.now_s - instance.leaving_since_s)


def _leave(turn: Turn, instance: Instance, how: Exit) -> None:
    loads.end(turn, instance)
    if instance.state is InstanceState.READY:
        turn.do(actions.RouteDown(instance_id=instance.instance_id))
    instance.state, instance.exit = InstanceState.LEAVING, how
    instance.leaving_since_s = turn.now_s
    refresh_idle(turn, instance)
    turn.state.ledger.count(instance)
    refresh_kept(turn, instance.deployment)
