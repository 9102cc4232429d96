"""A model is free exactly when nobody holds a lease on it, and leases are bounded."""

from __future__ import annotations

import pytest

from services.common.errors import FailedPreconditionError, ResourceExhaustedError
from services.common.model import ModelRef
from services.common.names import ModelName
from services.storemgr.leases import Lease, LeaseBook

REF = ModelRef(name=ModelName("a"), revision="1")
OTHER = ModelRef(name=ModelName("a"), revision="2")


def lease(number: int, ref: ModelRef = REF) -> Lease:
    return Lease(lease_id=f"lease-{number}", ref=ref, holder="worker-1")


def test_a_model_is_in_use_until_its_last_lease_ends() -> None:
    book = LeaseBook(leases_max=9)
    book.grant(lease(1))
    book.grant(lease(2))
    assert book.count(REF) == 2
    book.end("lease-1")
    with pytest.raises(FailedPreconditionError, match="1 leases are held") as refusal:
        book.check_free(REF)
    assert refusal.value.reason == "MODEL_LEASED"
    book.end("lease-2")
    book.check_free(REF)
    assert len(book) == 0


def test_leases_of_one_revision_leave_others_free() -> None:
    book = LeaseBook(leases_max=9)
    book.grant(lease(1, OTHER))
    book.check_free(REF)


def test_ending_twice_or_the_unknown_changes_nothing() -> None:
    book = LeaseBook(leases_max=9)
    book.grant(lease(1))
    book.grant(lease(2))
    assert book.end("lease-1") == lease(1)
    assert book.end("lease-1") is None
    assert book.end("no such lease") is None
    assert book.count(REF) == 1


def test_leases_beyond_the_limit_are_refused_with_a_time_to_come_back() -> None:
    book = LeaseBook(leases_max=1)
    book.grant(lease(1))
    with pytest.raises(ResourceExhaustedError) as refusal:
        book.grant(lease(2))
    assert refusal.value.reason == "QUEUE_FULL"
    assert refusal.value.retry_after_s
    book.end("lease-1")
    book.grant(lease(2))


def test_a_lease_id_is_never_held_twice() -> None:
    book = LeaseBook(leases_max=9)
    book.grant(lease(1))
    with pytest.raises(ValueError, match="lease-1"):
        book.grant(lease(1, OTHER))
