"""Admission's promise: never over the slots or the memory, strictly in order, bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Reason, ResourceExhaustedError
from services.worker.admission import Admission


def enter(admission: Admission, ticket: str, kv_bytes: int = 1) -> bool:
    return admission.enter(ticket, kv_bytes, retry_after_s=1.5)


def test_slots_are_filled_and_the_rest_waits_in_order() -> None:
    admission = Admission(slots=2, kv_bytes=10, waiting_max=3)
    assert [enter(admission, ticket) for ticket in "abcd"] == [True, True, False, False]
    assert (admission.running, admission.waiting) == (2, 2)
    assert admission.leave("b") == ("c",)
    assert admission.leave("a") == ("d",)
    assert admission.leave("d") == ()
    assert admission.leave("c") == ()
    assert admission.is_idle


def test_memory_is_set_aside_for_all_tokens_at_once() -> None:
    admission = Admission(slots=9, kv_bytes=10, waiting_max=9)
    assert enter(admission, "a", 7)
    assert not enter(admission, "b", 4)
    assert admission.leave("a") == ("b",)
    assert enter(admission, "c", 6)


def test_a_short_sequence_does_not_overtake_a_long_one() -> None:
    admission = Admission(slots=9, kv_bytes=10, waiting_max=9)
    assert enter(admission, "a", 7)
    assert not enter(admission, "long", 9)
    assert not enter(admission, "short", 1)
    assert admission.leave("a") == ("long", "short")


def test_one_leaving_may_admit_several() -> None:
    admission = Admission(slots=4, kv_bytes=10, waiting_max=9)
    enter(admission, "a", 10)
    for ticket in "bcd":
        enter(admission, ticket, 3)
    assert admission.leave("a") == ("b", "c", "d")


def test_what_could_never_fit_is_refused_at_once_with_the_numbers() -> None:
    admission = Admission(slots=1, kv_bytes=10, waiting_max=9)
    with pytest.raises(ResourceExhaustedError) as refused:
        enter(admission, "a", 11)
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY
    assert refused.value.retry_after_s is None
    assert refused.value.metadata == {"needed_bytes": "11", "available_bytes": "10"}
    assert admission.is_idle
    assert enter(admission, "b", 10)


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    admission = Admission(slots=1, kv_bytes=10, waiting_max=1)
    enter(admission, "a")
    admission.refuse_if_full(retry_after_s=1.5)
    enter(admission, "b")
    for refuse in (
        lambda: enter(admission, "c"),
        lambda: admission.refuse_if_full(retry_after_s=1.5),
    ):
        with pytest.raises(ResourceExhaustedError) as refused:
            refuse()
        assert refused.value.reason == Reason.QUEUE_FULL
        assert refused.value.retry_after_s == 1.5
    assert (admission.running, admission.waiting) == (1, 1)


def test_one_that_gives_up_waiting_is_forgotten() -> None:
    admission = Admission(slots=1, kv_bytes=10, waiting_max=9)
    for ticket in "abc":
        enter(admission, ticket)
    assert admission.leave("b") == ()
    assert admission.leave("a") == ("c",)


def test_one_long_waiting_sequence_that_leaves_lets_the_next_in() -> None:
    admission = Admission(slots=2, kv_bytes=10, waiting_max=9)
    enter(admission, "a", 5)
    enter(admission, "long", 9)
    enter(admission, "b", 5)
    assert admission.leave("long") == ("b",)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8)), max_size=60))
def test_nothing_is_lost_or_overbooked_whatever_comes(events: list[tuple[int, int]]) -> None:
    admission = Admission(slots=3, kv_bytes=10, waiting_max=4)
    running: dict[int, int] = {}
    waiting: dict[int, int] = {}
    for ticket, size in events:
        if ticket in running or ticket in waiting:
            running.pop(ticket, None)
            waiting.pop(ticket, None)
            for admitted in map(int, admission.leave(str(ticket))):
                running[admitted] = waiting.pop(admitted)
        else:
            try:
                is_admitted = enter(admission, str(ticket), size)
            except ResourceExhaustedError:
                assert len(waiting) == 4
                continue
            (running if is_admitted else waiting)[ticket] = size
        admission.audit()
        assert (admission.running, admission.waiting) == (len(running), len(waiting))
        assert len(running) <= 3
        assert sum(running.values()) <= 10
        if waiting:  # somebody waits only because the first in line does not fit
            first = next(iter(waiting.values()))
            assert len(running) == 3 or sum(running.values()) + first > 10


def test_sequences_that_share_memory_are_counted_by_slots_alone() -> None:
    admission = Admission(slots=2, kv_bytes=10, waiting_max=9, shares_memory=True)
    assert enter(admission, "a", 9)
    assert enter(admission, "b", 9)
    assert not enter(admission, "c", 1)
    admission.audit()
    assert admission.leave("a") == ("c",)
    with pytest.raises(ResourceExhaustedError) as refused:
        enter(admission, "alone", 11)
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY
    for ticket in "bc":
        admission.leave(ticket)
    admission.audit()
    assert admission.is_idle
