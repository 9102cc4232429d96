"""A limit on everybody in the house, and a time to come back that follows from what was seen."""

import pytest

from services.common.errors import Reason, ResourceExhaustedError
from services.router.admission import RETRY_S_MAX, RETRY_S_MIN, Admission, FreeingRate


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def an_admission(clock: Clock, *, requests_max: int = 2, queue_max: int = 1) -> Admission:
    return Admission(requests_max=requests_max, queue_max=queue_max, clock=clock)


def test_the_permit_lives_as_long_as_the_block(clock: Clock) -> None:
    admission = an_admission(clock, requests_max=1)
    with admission.admit():
        assert admission.requests == 1
        with pytest.raises(ResourceExhaustedError) as refused, admission.admit():
            pass
        assert refused.value.reason == Reason.QUEUE_FULL
        assert "requests in flight are limited to 1" in refused.value.message
    with admission.admit():
        pass
    assert admission.requests == 0


def test_a_failing_request_gives_its_permit_back(clock: Clock) -> None:
    admission = an_admission(clock, requests_max=1)
    with pytest.raises(ValueError, match="boom"), admission.admit(), admission.queue("m"):
        raise ValueError("boom")
    assert (admission.requests, admission.waiting) == (0, 0)


def test_each_model_has_a_queue_of_its_own(clock: Clock) -> None:
    admission = an_admission(clock)
    with admission.queue("a"), admission.queue("b"):
        assert admission.waiting == 2
        with pytest.raises(ResourceExhaustedError, match="requests waiting for a are limited to 1"):
            admission.queue("a").__enter__()
    with admission.queue("a"):
        assert admission.waiting == 1


def test_no_model_is_remembered_once_nobody_waits(clock: Clock) -> None:
    admission = an_admission(clock)
    for number in range(100):
        with admission.queue(f"m{number}"):
            pass
    assert not admission._queues  # noqa: SLF001 - the promise is about memory


def test_the_time_to_come_back_is_the_mean_gap_between_completions(clock: Clock) -> None:
    rate = FreeingRate(clock)
    rate.begin()
    for _ in range(10):
        clock.now_s += 0.4
        rate.freed()
    assert rate.refuse() == pytest.approx(0.4)


def test_callers_refused_together_are_told_different_times(clock: Clock) -> None:
    rate = FreeingRate(clock)
    rate.begin()
    clock.now_s += 0.5
    rate.freed()
    assert [rate.refuse() for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5])
    rate.freed()  # one of the places waited for is there
    assert rate.refuse() == pytest.approx(0.25 * 3)


def test_a_standstill_makes_the_time_grow(clock: Clock) -> None:
    rate = FreeingRate(clock)
    rate.begin()
    clock.now_s += 3.0
    assert rate.refuse() == pytest.approx(3.0)


def test_the_time_stays_within_its_limits(clock: Clock) -> None:
    rate = FreeingRate(clock)
    assert rate.refuse() == RETRY_S_MIN
    rate.begin()
    clock.now_s += 10_000
    assert rate.refuse() == RETRY_S_MAX


def test_what_was_before_an_idle_time_does_not_count(clock: Clock) -> None:
    admission = an_admission(clock, requests_max=1)
    with admission.admit():
        clock.now_s += 0.1
    clock.now_s += 1000
    with admission.admit():
        clock.now_s += 0.2
        with pytest.raises(ResourceExhaustedError) as refused:
            admission.admit().__enter__()
    assert refused.value.retry_after_s == pytest.approx(0.2)
