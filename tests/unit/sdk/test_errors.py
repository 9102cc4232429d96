"""Every gRPC status becomes one typed error that carries all that the server said."""

import grpc
import pytest
from brisk_client import errors
from brisk_client.errors import BriskError, TimeLimit, from_status
from google.protobuf import any_pb2, duration_pb2
from google.rpc import (  # type: ignore[import-untyped]  # ships without annotations
    error_details_pb2,
    status_pb2,
)

KEY = "grpc-status-details-bin"
CLASSES = [
    (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
    (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
    (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPreconditionError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
    (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
    (grpc.StatusCode.DATA_LOSS, errors.DataLossError),
    (grpc.StatusCode.ABORTED, errors.AbortedError),
    (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
    (grpc.StatusCode.UNIMPLEMENTED, errors.UnimplementedError),
    (grpc.StatusCode.CANCELLED, errors.RequestCancelledError),
    (grpc.StatusCode.INTERNAL, errors.InternalError),
    (grpc.StatusCode.UNKNOWN, errors.InternalError),
]


def packed(*details: object) -> bytes:
    status = status_pb2.Status(code=1, message="unused")
    for detail in details:
        entry = any_pb2.Any()
        entry.Pack(detail)  # type: ignore[arg-type]  # google.rpc has no annotations
        status.details.append(entry)
    value: bytes = status.SerializeToString()
    return value


@pytest.mark.parametrize(("code", "kind"), CLASSES, ids=lambda entry: getattr(entry, "name", ""))
def test_each_code_has_its_class(code: grpc.StatusCode, kind: type[BriskError]) -> None:
    error = from_status(code, "what went wrong")
    assert type(error) is kind
    assert error.message == "what went wrong"
    assert error.reason == error.code


def test_reason_retry_time_and_figures_come_from_the_rich_status() -> None:
    details = packed(
        error_details_pb2.ErrorInfo(
            reason="INSUFFICIENT_MEMORY", domain="brisk", metadata={"needed_bytes": "7"}
        ),
        error_details_pb2.RetryInfo(
            retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)
        ),
    )
    error = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", [(KEY, details)])
    assert error.reason == "INSUFFICIENT_MEMORY"
    assert error.retry_after_s == 1.5
    assert error.metadata == {"needed_bytes": "7"}


def test_unavailable_from_a_service_is_told_from_a_broken_connection() -> None:
    details = packed(error_details_pb2.ErrorInfo(reason="NO_WORKER", domain="brisk"))
    refused = from_status(grpc.StatusCode.UNAVAILABLE, "none", [(KEY, details)])
    broken = from_status(
        grpc.StatusCode.UNAVAILABLE, "failed to connect: Connection refused", endpoint="h:1"
    )
    assert type(refused) is errors.UnavailableError
    assert type(broken) is errors.ConnectionFailedError
    assert broken.message == "no connection to h:1: Connection refused"


@pytest.mark.parametrize(
    ("code", "is_over"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, False),  # another clock was first
        (grpc.StatusCode.CANCELLED, True),
        (grpc.StatusCode.UNKNOWN, True),
    ],
    ids=str,
)
def test_the_end_of_the_time_is_told_in_our_words(code: grpc.StatusCode, *, is_over: bool) -> None:
    limit = TimeLimit(seconds=0.1, is_over=is_over)
    error = from_status(code, "Stream removed (Deadline Exceeded)", limit=limit)
    assert type(error) is errors.DeadlineExceededError
    assert (error.message, error.reason) == ("the time was up after 0.1 s", "DEADLINE_EXCEEDED")


def test_what_ended_before_the_time_was_up_or_by_a_services_word_keeps_its_own() -> None:
    early, over = TimeLimit(seconds=9, is_over=False), TimeLimit(seconds=9, is_over=True)
    cancelled = from_status(grpc.StatusCode.CANCELLED, "gone", limit=early)
    assert (type(cancelled), cancelled.message) == (errors.RequestCancelledError, "gone")
    details = packed(error_details_pb2.ErrorInfo(reason="DEADLINE_EXCEEDED", domain="brisk"))
    told = from_status(
        grpc.StatusCode.DEADLINE_EXCEEDED, "while loading", [(KEY, details)], limit=over
    )
    assert told.message == "while loading"
    refused = from_status(grpc.StatusCode.UNAVAILABLE, "x: Connection refused", limit=over)
    assert type(refused) is errors.ConnectionFailedError


@pytest.mark.parametrize("value", [b"\xff\xff\xff", b"", "text"])
def test_a_malformed_rich_status_counts_as_none(value: str | bytes) -> None:
    error = from_status(grpc.StatusCode.NOT_FOUND, "gone", [(KEY, value), ("other", b"\xff")])
    assert type(error) is errors.NotFoundError
    assert error.reason == "NOT_FOUND"


def test_the_tree_in_the_module_names_every_class() -> None:
    tree = errors.__doc__ or ""
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BriskError)
    ]
    assert len(classes) > 10
    assert [name for name in classes if name not in tree] == []
