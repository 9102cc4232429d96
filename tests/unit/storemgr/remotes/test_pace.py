"""The cap on bandwidth holds over all readers, and pauses between tries grow within their limit."""

from __future__ import annotations

import pytest

from services.storemgr.remotes.pace import Backoff, Pace, Speed


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_cap_nobody_waits() -> None:
    assert Pace(None).pause_s(1 << 40) == 0.0


def test_what_was_read_at_once_is_waited_for_one_after_the_other() -> None:
    clock = Clock()
    pace = Pace(1000, clock=clock)
    assert pace.pause_s(500) == pytest.approx(0.5)
    assert pace.pause_s(500) == pytest.approx(1.0)
    clock.now_s += 10  # what was not used is not saved up
    assert pace.pause_s(1000) == pytest.approx(1.0)


def test_pauses_double_up_to_a_limit_and_are_spread() -> None:
    backoff = Backoff(tries_max=9, first_s=0.2, pause_s_max=2.0)
    assert [backoff.pause_s(n, 0.5) for n in (1, 2, 3, 4, 5, 9)] == pytest.approx(
        [0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    )
    assert backoff.pause_s(1, 0.0) == pytest.approx(0.15)
    assert backoff.pause_s(1, 1.0) == pytest.approx(0.25)


def test_what_the_source_asks_for_counts_up_to_the_limit() -> None:
    backoff = Backoff(tries_max=9, first_s=0.2, pause_s_max=2.0)
    assert backoff.pause_s(1, 0.5, 1.0) == pytest.approx(1.0)
    assert backoff.pause_s(1, 0.5, 3600.0) == pytest.approx(2.0)


def test_the_speed_follows_what_comes() -> None:
    clock = Clock()
    speed = Speed(clock=clock)
    assert speed.bytes_per_s == 0
    for _ in range(4):
        clock.now_s += 1
        speed.add(1000)
    assert speed.bytes_per_s == 1000
    for _ in range(8):
        clock.now_s += 1
        speed.add(3000)
    assert 2900 < speed.bytes_per_s <= 3000
