"""A deadline gives every hop what is left, never more than asked and never less than nothing."""

import math
from datetime import UTC

import pytest

from services.common import deadline as module
from services.common.clock import monotonic_s, wall_clock
from services.common.deadline import Deadline


class Caller:
    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(module, "monotonic_s", lambda: clock[0])
    return clock


def test_what_is_left_shrinks_to_zero_and_stays_there(now_s: list[float]) -> None:
    deadline = Deadline.after(2.0)
    assert (deadline.remaining_s(), deadline.expired) == (2.0, False)
    now_s[0] += 1.5
    assert (deadline.remaining_s(), deadline.expired) == (0.5, False)
    now_s[0] += 0.5
    assert (deadline.remaining_s(), deadline.expired) == (0.0, True)
    now_s[0] += 9.0
    assert (deadline.remaining_s(), deadline.expired) == (0.0, True)


def test_a_hop_gets_no_more_than_its_own_budget(now_s: list[float]) -> None:
    assert Deadline.after(2.0).remaining_s(at_most=0.3) == 0.3
    assert Deadline.after(0.2).remaining_s(at_most=0.3) == pytest.approx(0.2)
    assert Deadline.after(math.inf).remaining_s(at_most=0.3) == 0.3


@pytest.mark.parametrize(("left_s", "expected_s"), [(5.0, 5.0), (None, 30.0), (math.inf, 30.0)])
def test_the_callers_deadline_wins_and_a_missing_one_is_the_default(
    now_s: list[float], left_s: float | None, expected_s: float
) -> None:
    assert Deadline.from_context(Caller(left_s), 30.0).remaining_s() == expected_s


def test_the_clock_for_intervals_never_goes_back() -> None:
    readings = [monotonic_s() for _ in range(100)]
    assert readings == sorted(readings)


def test_the_clock_for_people_knows_its_zone() -> None:
    assert wall_clock().tzinfo is UTC
