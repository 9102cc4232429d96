"""As many instances as a deployment should have: started at once, several in one decision.

Nothing is scaled down here: an instance that is idle leaves when its keep-alive is over, or when
others need its room. Only starts that nobody needs any more are dropped.
"""

from __future__ import annotations

from typing import Final

from services.common.placement import InstanceState
from services.scheduler import starts
from services.scheduler.demand import lacking
from services.scheduler.events import DemandReported
from services.scheduler.habits import opens_at_s, window
from services.scheduler.state import Start, Turn
from services.scheduler.timers import Kind

STARTS_MAX: Final = 64  # made by one decision; the next makes more
HOLD_S: Final = 10.0  # a load that was begun for a burst is not undone for this long
AHEAD_MAX: Final = 4  # starts ahead of a request at a time, in the whole cluster
ROUTER_S: Final = 5.0  # how long a router's word about its lines holds


def follow(turn: Turn, deployment: str) -> None:
    """Start what lacks, drop what is too much."""
    state = turn.state
    known = state.deployments.get(deployment)
    if known is None:
        return
    is_plain = known.spec.max_replicas <= 1 and known.spec.min_replicas == 0
    if is_plain and not state.starts_of(deployment):
        return  # its first request starts it
    count = lacking(state, deployment)
    if count < 0:
        _drop(turn, deployment, -count)
        return
    held_until_s = state.held_until_s.get(deployment, 0.0)
    if count > 0 and turn.now_s < held_until_s:
        state.timers.push(held_until_s, Kind.SCALE, deployment)
        return
    for _ in range(min(count, STARTS_MAX)):
        start = starts.new(turn, deployment)
        start.kept_until_s = turn.now_s + HOLD_S
        state.begin(start)
        turn.again[start.key] = None


def follow_all(turn: Turn) -> None:
    """Follow every deployment whose demand has changed."""
    scaled = tuple(turn.scaled)
    turn.scaled.clear()
    for deployment in scaled:
        follow(turn, deployment)


def hear(turn: Turn, event: DemandReported) -> None:
    """Take in how long a router's lines are; what it does not name has none."""
    state = turn.state
    forget(turn, event.router_id)
    for line in event.lines:
        if line.waiting > 0 and line.deployment in state.deployments:
            state.lines.setdefault(line.deployment, {})[event.router_id] = line.waiting
            state.lines_of.setdefault(event.router_id, {})[line.deployment] = None
            turn.scaled[line.deployment] = None
    if event.router_id in state.lines_of:
        state.heard_s[event.router_id] = turn.now_s
        state.timers.push(turn.now_s + ROUTER_S, Kind.ROUTER, event.router_id)


def forget(turn: Turn, router_id: str) -> None:
    """Forget a router's lines."""
    state = turn.state
    state.heard_s.pop(router_id, None)
    for deployment in state.lines_of.pop(router_id, {}):
        lines = state.lines[deployment]
        del lines[router_id]
        if not lines:
            del state.lines[deployment]
        turn.scaled[deployment] = None


def forget_if_silent(turn: Turn, router_id: str) -> None:
    """Forget the lines of a router that has not repeated them."""
    heard_s = turn.state.heard_s.get(router_id)
    if heard_s is None:
        return
    if heard_s + ROUTER_S <= turn.now_s:
        forget(turn, router_id)
    else:
        turn.state.timers.push(heard_s + ROUTER_S, Kind.ROUTER, router_id)


def _drop(turn: Turn, deployment: str, count: int) -> None:
    """Drop starts that nobody waits for: those without a place, then loads, the newest first."""

    def order(start: Start) -> tuple[bool, int]:
        return start.instance_id is not None, -start.arrival

    for start in sorted(turn.state.starts_of(deployment), key=order):
        if count <= 0:
            return
        if not start.waiters and not starts.is_held(turn, start):
            starts.drop(turn, start)
            count -= 1


def start_ahead(turn: Turn, deployment: str) -> None:
    """Start a deployment whose next request is near, where nobody has to go for it."""
    state = turn.state
    found, opens_s = window(state, deployment), opens_at_s(state, deployment)
    if found is None or opens_s is None or state.starts_of(deployment):
        return
    if turn.now_s < opens_s:
        state.timers.push(opens_s, Kind.AHEAD, deployment)
        return
    closes_s = found[0] + found[1].closes_s
    is_there = any(
        each.state is not InstanceState.LEAVING for each in state.instances_of(deployment)
    )
    if is_there or turn.now_s >= closes_s or len(state.ahead) >= AHEAD_MAX:
        return
    start = starts.new(turn, deployment)
    start.kept_until_s, start.is_ahead = closes_s, True
    state.begin(start)
    turn.again[start.key] = None
