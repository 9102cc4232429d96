"""A gate lets in as many as it has permits, refuses the next at once and forgets nobody."""

import pytest

from services.common.errors import ResourceExhaustedError
from services.common.limits import AdmissionGate


def test_the_gate_is_full_at_its_limit_and_free_again_after_a_leave() -> None:
    gate = AdmissionGate(2)
    assert [gate.try_enter() for _ in range(3)] == [True, True, False]
    assert (gate.used, gate.limit) == (2, 2)
    gate.leave()
    assert gate.try_enter()


def test_a_refusal_says_what_is_full_and_when_to_come_back() -> None:
    gate = AdmissionGate(1, what="streams")
    assert gate.try_enter()
    refused = pytest.raises(ResourceExhaustedError, match="at most 1 streams")
    with refused as caught, gate.enter(retry_after_s=2.0):
        pass
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 2.0)
    assert gate.used == 1


def test_a_permit_comes_back_when_the_work_fails() -> None:
    gate = AdmissionGate(1)
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    assert gate.used == 0


def test_a_gate_without_permits_and_a_leave_without_a_permit_are_bugs() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AdmissionGate(0)
    with pytest.raises(RuntimeError, match="without try_enter"):
        AdmissionGate(1).leave()
