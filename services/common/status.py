"""Brisk's errors as `google.rpc.Status` on the wire, and back.

A status carries ErrorInfo (domain "brisk", the reason, metadata) and RetryInfo if there is a time
to come back. A peer's text is passed on only if it bears our domain: what gRPC itself says names
addresses.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships none

from services.common.errors import (
    AbortedError,
    BriskError,
    DataLossError,
    DeadlineError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

DOMAIN: Final = "brisk"
DETAILS_KEY: Final = "grpc-status-details-bin"
MESSAGE_CHARS_MAX: Final = 1024  # statuses travel in metadata, which is limited to 8 KiB
_RETRY_AFTER_S_MAX: Final = 3600.0

_CLASSES: Final[dict[grpc.StatusCode, type[BriskError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ALREADY_EXISTS: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: UnauthenticatedError,
}


def to_status(error: BriskError) -> status_pb2.Status:
    """Return `error` as the rich status that a server ends a call with."""
    status = status_pb2.Status(
        code=grpc.StatusCode[error.code].value[0], message=error.message[:MESSAGE_CHARS_MAX]
    )
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    info.metadata.update(error.metadata)
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(error.retry_after_s * 1e6))
        status.details.add().Pack(retry)
    return status


def from_status(status: status_pb2.Status) -> BriskError | None:
    """Return the error that `to_status` packed, or None if it is not one of ours."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    is_ours, retry_after_s = False, None
    try:
        for detail in status.details:
            if detail.Unpack(info):
                is_ours = info.domain == DOMAIN
            elif detail.Unpack(retry):
                left_s = retry.retry_delay.ToMicroseconds() / 1e6
                retry_after_s = min(max(left_s, 0.0), _RETRY_AFTER_S_MAX)
    except DecodeError:
        return None
    if not is_ours:
        return None
    error = _class_of(status.code)(
        status.message, reason=info.reason, retry_after_s=retry_after_s, metadata=info.metadata
    )
    error.is_peers = True
    return error


def from_rpc_error(error: grpc.aio.AioRpcError) -> BriskError:
    """Return what a failed call means to us; raise it `from error` to keep gRPC's own words.

    A call that we cancelled ourselves raises CancelledError and never comes here. A peer that
    answers CANCELLED is going away, which is UnavailableError (CANCELLED): gRPC's server says so
    to calls that arrive in the moment when it stops.
    """
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                ours = from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
            if ours is not None:
                return ours
    code = error.code()
    kind = _CLASSES.get(code, InternalError)
    reason = Reason.CANCELLED if code is grpc.StatusCode.CANCELLED else None
    return kind(f"call failed: {code.name}", reason=reason)


def _class_of(code: int) -> type[BriskError]:
    for known, kind in _CLASSES.items():
        if known.value[0] == code:
            return kind
    return InternalError
