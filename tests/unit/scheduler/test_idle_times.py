"""From its own idle times a deployment learns when its next request is likely."""

from random import Random

import pytest

from services.scheduler.idle_times import IdleTimes


def learned(*idle_s: float) -> IdleTimes:
    times = IdleTimes()
    for each in idle_s:
        times.add(each)
    return times


def test_a_few_times_tell_nothing() -> None:
    assert learned(*[60.0] * 7).window() is None
    assert learned(*[60.0] * 8).window() is not None


@pytest.mark.parametrize("period_s", [2.0, 30.0, 600.0, 7200.0])
def test_a_regular_request_is_expected_around_its_period(period_s: float) -> None:
    random = Random(1)  # noqa: S311 - a game
    window = learned(*[period_s * random.uniform(0.95, 1.05) for _ in range(50)]).window()
    assert window is not None
    assert 0.6 * period_s < window.opens_s < 0.95 * period_s
    assert 1.05 * period_s < window.closes_s < 1.6 * period_s


def test_requests_at_any_time_leave_no_pause_to_use() -> None:
    random = Random(1)  # noqa: S311 - a game
    window = learned(*[random.expovariate(1 / 60.0) for _ in range(200)]).window()
    assert window is not None
    assert window.opens_s < 10.0
    assert window.closes_s > 150.0


def test_times_too_long_to_wait_for_tell_nothing_if_they_are_the_most() -> None:
    assert learned(*[60.0] * 10, *[10**6] * 11).window() is None
    assert learned(*[60.0] * 12, *[10**6] * 11).window() is not None


def test_old_habits_fade() -> None:
    window = learned(*[3600.0] * 400, *[10.0] * 2000).window()
    assert window is not None
    assert window.closes_s < 30.0


def test_odd_times_are_counted_somewhere() -> None:
    times = learned(0.0, 1e-9, 0.25, 1e300, 15_000.0, 20_000.0)
    assert sum(times.counts) + times.out == 6
