"""Retries are few, never too early, never without budget, and only for UNAVAILABLE."""

import pytest
from brisk_client.errors import (
    BriskError,
    ConnectionFailedError,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from brisk_client.retry import RetryBudget, RetryPolicy, pause_s

POLICY = RetryPolicy()
LONG = 100.0


def pause(
    error: BriskError, attempt: int = 1, remaining_s: float = LONG, noise: float = 0.0
) -> float | None:
    return pause_s(POLICY, error, attempt=attempt, remaining_s=remaining_s, noise=noise)


@pytest.mark.parametrize("kind", [UnavailableError, ConnectionFailedError])
def test_unavailable_is_tried_three_times(kind: type[BriskError]) -> None:
    error = kind("not now")
    assert [pause(error, attempt) is not None for attempt in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("kind", [InternalError, DeadlineExceededError, ResourceExhaustedError])
def test_nothing_else_is_tried_again(kind: type[BriskError]) -> None:
    assert pause(kind("no", retry_after_s=0.1)) is None


@pytest.mark.parametrize("noise", [-1.0, -0.3, 0.0, 1.0])
def test_a_retry_is_never_earlier_than_the_server_asks(noise: float) -> None:
    waited = pause(UnavailableError("not now", retry_after_s=2.0), noise=noise)
    assert waited is not None
    assert 2.0 <= waited <= 2.4


def test_pauses_grow_and_jitter_spreads_them() -> None:
    error = UnavailableError("not now")
    first, second = pause(error, 1), pause(error, 2)
    assert first is not None
    assert second is not None
    assert second > first
    assert pause(error, 1, noise=-1.0) == pytest.approx(first * 0.8)
    assert pause(error, 1, noise=1.0) == pytest.approx(first * 1.2)


def test_a_pause_beyond_the_deadline_or_the_limit_is_not_begun() -> None:
    assert pause(UnavailableError("not now", retry_after_s=2.0), remaining_s=1.9) is None
    assert pause(UnavailableError("not now", retry_after_s=11.0)) is None


def test_the_budget_ends_retries_when_most_calls_fail_and_successes_earn_it_back() -> None:
    budget = RetryBudget()
    failures = 0
    while budget.allows:
        budget.failed()
        failures += 1
    assert failures == 5
    for _ in range(5):
        budget.failed()
    for _ in range(49):
        budget.succeeded()
        assert not budget.allows
    budget.succeeded()
    budget.succeeded()
    assert budget.allows


def test_the_budget_neither_overflows_nor_goes_below_nothing() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.failed()
    for _ in range(51):
        budget.succeeded()
    assert budget.allows
    for _ in range(1_000):
        budget.succeeded()
    for _ in range(5):
        budget.failed()
    assert not budget.allows
