"""Deployments whose keep-alive is learned: when they were used, and when they will be again."""

from __future__ import annotations

from typing import Final

from services.common.model import Tier
from services.scheduler.deployment import Deployment
from services.scheduler.idle_times import Habit, Window
from services.scheduler.state import State, Turn
from services.scheduler.timers import Kind

_GRACE_S: Final = 10.0  # an instance that leaves until the window opens stays for this long
_WORTH: Final = 2.0  # times its start that the pause must be longer, or it stays
_WAVER_S: Final = 0.25  # what reports say about times wavers


def begun(turn: Turn, deployment: str, at_s: float) -> None:
    """Enter that a request has come for a deployment."""
    known = turn.state.deployments.get(deployment)
    if known is None or not known.spec.learns_keep_alive:
        return
    habit = turn.state.habits.setdefault(deployment, Habit())
    if habit.ended_s is not None:
        habit.idle_times.add(max(0.0, at_s - habit.ended_s))
        habit.ended_s = None


def ended(turn: Turn, deployment: str, at_s: float) -> None:
    """Enter since when a deployment has no sequences, and have it started in time."""
    habit = turn.state.habits.get(deployment)
    if habit is None:
        return
    if habit.ended_s is not None:
        if at_s <= habit.ended_s + _WAVER_S:
            return
        # A sequence came and went between two reports.
        habit.idle_times.add(at_s - habit.ended_s)
    habit.ended_s = at_s
    opens_s = opens_at_s(turn.state, deployment)
    if opens_s is not None and opens_s > turn.now_s:
        turn.state.timers.push(opens_s, Kind.AHEAD, deployment)


def stays_until_s(state: State, deployment: Deployment, idle_since_s: float) -> float | None:
    """Return until when an idle instance stays; None: nothing is known, as it was specified."""
    found = window(state, deployment.name)
    if found is None:
        return None
    ended_s, expected = found
    opens_s = opens_at_s(state, deployment.name)
    if opens_s is not None and idle_since_s < opens_s:
        return idle_since_s + _GRACE_S
    return ended_s + expected.closes_s


def window(state: State, deployment: str) -> tuple[float, Window] | None:
    """Return when a deployment's last sequence ended and when the next is likely to come."""
    habit = state.habits.get(deployment)
    if habit is None or habit.ended_s is None:
        return None
    expected = habit.idle_times.window()
    return None if expected is None else (habit.ended_s, expected)


def opens_at_s(state: State, deployment: str) -> float | None:
    """Return when to start a deployment again; None if it had better stay in between."""
    found, known = window(state, deployment), state.deployments.get(deployment)
    if found is None or known is None:
        return None
    ended_s, expected = found
    ref, estimates = known.model.ref, state.estimates
    start_s = estimates.init_s(ref)
    start_s += estimates.transfer_s("", Tier.SSD, ref, known.model.weight_bytes)
    pause_s = expected.opens_s - start_s
    return ended_s + pause_s if pause_s > _GRACE_S + _WORTH * start_s else None
