"""An error that crosses the wire arrives as what it was, and strangers' words stay outside."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import (  # type: ignore[import-untyped]  # ships none
    error_details_pb2,
    status_pb2,
)
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import (
    BriskError,
    InternalError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.status import DETAILS_KEY, from_rpc_error, from_status, to_status

CLASSES = BriskError.__subclasses__()


def rpc_error(code: grpc.StatusCode, *trailing: tuple[str, str | bytes]) -> AioRpcError:
    return AioRpcError(
        code, Metadata(), Metadata(*trailing), details="failed to connect to 10.0.0.7:4711"
    )


@given(
    st.sampled_from(CLASSES),
    st.text(max_size=100),
    st.sampled_from(Reason),
    st.none() | st.floats(0, 3600).map(lambda seconds: round(seconds, 6)),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
)
def test_every_error_survives_the_journey(
    kind: type[BriskError],
    message: str,
    reason: Reason,
    retry_after_s: float | None,
    metadata: dict[str, str],
) -> None:
    sent = kind(message, reason=reason, retry_after_s=retry_after_s, metadata=metadata)
    details = to_status(sent).SerializeToString()
    arrived = from_rpc_error(rpc_error(grpc.StatusCode[kind.code], (DETAILS_KEY, details)))
    assert type(arrived) is kind
    assert (arrived.message, arrived.reason) == (message, str(reason))
    assert arrived.retry_after_s == pytest.approx(retry_after_s)
    assert dict(arrived.metadata) == metadata


def test_a_status_carries_error_info_of_our_domain_and_retry_info() -> None:
    error = ResourceExhaustedError("full", reason=Reason.QUEUE_FULL, retry_after_s=1.25)
    status = to_status(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.domain, info.reason) == ("brisk", "QUEUE_FULL")
    assert retry.retry_delay.ToMilliseconds() == 1250


def test_an_error_without_a_time_to_come_back_has_no_retry_info() -> None:
    assert len(to_status(NotFoundError("gone")).details) == 1


def test_a_reason_that_we_do_not_know_yet_is_kept() -> None:
    status = to_status(UnavailableError("x", reason="FROM_THE_FUTURE"))
    arrived = from_status(status)
    assert arrived is not None
    assert arrived.reason == "FROM_THE_FUTURE"


def test_a_message_is_cut_to_what_metadata_can_carry() -> None:
    assert len(to_status(InternalError("x" * 9000)).message) == 1024


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_every_code_of_a_stranger_becomes_an_error_without_its_words(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code))
    assert "10.0.0.7" not in str(error)
    assert error.message == f"call failed: {code.name}"
    known = {kind.code: kind for kind in CLASSES}
    if code.name in known:
        assert type(error) is known[code.name]
    assert error.code not in ("UNKNOWN", "CANCELLED")


def test_a_peer_that_cancels_is_going_away() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.CANCELLED))
    assert isinstance(error, UnavailableError)
    assert error.reason == Reason.CANCELLED


def foreign() -> status_pb2.Status:
    status = status_pb2.Status(code=14, message="secret")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="example.com"))
    return status


def broken() -> status_pb2.Status:
    detail = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    return status_pb2.Status(code=14, message="secret", details=[detail])


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff",
        b"",
        foreign().SerializeToString(),
        broken().SerializeToString(),
        status_pb2.Status(code=14, message="secret").SerializeToString(),
    ],
)
def test_details_that_are_not_ours_are_ignored(details: bytes) -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, (DETAILS_KEY, details)))
    assert isinstance(error, UnavailableError)
    assert error.message == "call failed: UNAVAILABLE"


def test_an_absurd_retry_time_is_bounded() -> None:
    status = to_status(UnavailableError("x"))
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = 10**9
    status.details.add().Pack(retry)
    arrived = from_status(status)
    assert arrived is not None
    assert arrived.retry_after_s == 3600.0


def test_a_code_out_of_range_is_internal() -> None:
    status = to_status(NotFoundError("x"))
    status.code = 99
    assert isinstance(from_status(status), InternalError)
