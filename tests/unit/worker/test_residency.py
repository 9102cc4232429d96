"""The ledger's promise: free plus held bytes always make up the budget, exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
)
from services.common.placement import InstanceState
from services.worker.residency import EpochFence, Ledger


def free(ledger: Ledger) -> dict[str, int]:
    return {device.device_id: device.free_bytes for device in ledger.devices()}


def test_a_reservation_takes_its_bytes_until_it_is_freed() -> None:
    ledger = Ledger({"cpu:0": 100, "cpu:1": 50})
    ledger.reserve("a", "cpu:0", 60)
    assert free(ledger) == {"cpu:0": 40, "cpu:1": 50}
    ledger.ready("a")
    ledger.leaving("a")
    assert free(ledger) == {"cpu:0": 40, "cpu:1": 50}
    ledger.free("a")
    assert free(ledger) == {"cpu:0": 100, "cpu:1": 50}
    assert ledger.state_of("a") is None


def test_the_last_byte_can_be_reserved_and_not_one_more() -> None:
    ledger = Ledger({"cpu:0": 100})
    ledger.reserve("a", "cpu:0", 99)
    with pytest.raises(ResourceExhaustedError, match=r"1 bytes free\. Needed: 2") as refused:
        ledger.reserve("b", "cpu:0", 2)
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY
    assert refused.value.metadata == {"needed_bytes": "2", "available_bytes": "1"}
    assert ledger.state_of("b") is None
    ledger.reserve("b", "cpu:0", 1)
    ledger.audit()


def test_a_reservation_grows_into_what_is_free_and_not_one_byte_more() -> None:
    ledger = Ledger({"cpu:0": 100, "cpu:1": 50})
    ledger.reserve("a", "cpu:0", 60)
    ledger.reserve("b", "cpu:0", 10)
    ledger.resize("a", 90)
    assert free(ledger) == {"cpu:0": 0, "cpu:1": 50}
    with pytest.raises(ResourceExhaustedError, match=r"90 bytes .* Needed: 91") as refused:
        ledger.resize("a", 91)
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY
    assert refused.value.metadata == {"needed_bytes": "91", "available_bytes": "90"}
    ledger.audit()
    ledger.resize("a", 20)
    assert free(ledger) == {"cpu:0": 70, "cpu:1": 50}
    ledger.free("a")
    assert free(ledger) == {"cpu:0": 90, "cpu:1": 50}
    ledger.audit()


def test_an_instance_goes_through_its_states_in_order() -> None:
    ledger = Ledger({"cpu:0": 100})
    ledger.reserve("a", "cpu:0", 1)
    assert ledger.state_of("a") is InstanceState.LOADING
    with pytest.raises(RuntimeError, match="is loading, not ready"):
        ledger.leaving("a")
    ledger.ready("a")
    assert ledger.state_of("a") is InstanceState.READY
    with pytest.raises(RuntimeError, match="is ready, not loading"):
        ledger.ready("a")
    ledger.leaving("a")
    assert ledger.state_of("a") is InstanceState.LEAVING


def test_an_instance_cannot_be_reserved_twice() -> None:
    ledger = Ledger({"cpu:0": 100})
    ledger.reserve("a", "cpu:0", 1)
    with pytest.raises(FailedPreconditionError) as refused:
        ledger.reserve("a", "cpu:0", 1)
    assert refused.value.reason == Reason.INSTANCE_BUSY
    assert free(ledger) == {"cpu:0": 99}


@pytest.mark.parametrize(("device", "size"), [("cpu:7", 1), ("cpu:0", 0)])
def test_an_order_that_makes_no_sense_is_refused_with_the_given_value(
    device: str, size: int
) -> None:
    with pytest.raises(InvalidArgumentError, match="Given: "):
        Ledger({"cpu:0": 100}).reserve("a", device, size)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(("x", "y")), st.integers(1, 60)),
        max_size=40,
    )
)
def test_the_books_add_up_after_any_row_of_events(events: list[tuple[str, str, int]]) -> None:
    ledger = Ledger({"x": 100, "y": 30})
    for instance, device, size in events:
        match ledger.state_of(instance):
            case None:
                before = ledger.devices()
                try:
                    ledger.reserve(instance, device, size)
                except ResourceExhaustedError:
                    assert ledger.devices() == before
            case InstanceState.LOADING:
                before = ledger.devices()
                try:
                    ledger.resize(instance, 2 * size)
                except ResourceExhaustedError:
                    assert ledger.devices() == before
                if size % 2:
                    ledger.ready(instance)
                else:
                    ledger.free(instance)
            case InstanceState.READY:
                ledger.leaving(instance)
            case _:
                ledger.free(instance)
        ledger.audit()


def test_the_audit_finds_a_lost_byte() -> None:
    ledger = Ledger({"cpu:0": 100})
    ledger.reserve("a", "cpu:0", 10)
    ledger._free["cpu:0"] -= 1  # noqa: SLF001 - the fault to be found
    with pytest.raises(RuntimeError, match="89 free and 10 held of 100"):
        ledger.audit()


def test_an_older_leader_is_refused_and_the_newest_is_remembered() -> None:
    fence = EpochFence()
    fence.check(5)
    fence.check(5)
    fence.check(7)
    with pytest.raises(FailedPreconditionError, match=r"at least 7\. Given: 6") as refused:
        fence.check(6)
    assert refused.value.reason == Reason.STALE_EPOCH
    fence.check(7)
