"""What can go wrong with a call, as one tree. Each class stands for one gRPC status code.

    BriskError
    ├── InvalidRequestError      INVALID_ARGUMENT: wrong in any state; fix the request
    ├── NotFoundError            NOT_FOUND: no such deployment, model or folder
    ├── FailedPreconditionError  FAILED_PRECONDITION: not in the present state
    ├── ResourceExhaustedError   RESOURCE_EXHAUSTED: no room; see `retry_after_s` and `metadata`
    ├── UnavailableError         UNAVAILABLE: try again, after `retry_after_s` where it is set
    │   └── ConnectionFailedError   nobody answers at the endpoint, or the connection broke
    ├── DeadlineExceededError    DEADLINE_EXCEEDED: the call's time is up
    ├── DataLossError            DATA_LOSS: stored bytes are not what they should be
    ├── AbortedError             ABORTED: overtaken by another change
    ├── UnauthenticatedError     UNAUTHENTICATED: credentials missing or wrong
    ├── UnimplementedError       UNIMPLEMENTED: the server does not know the call
    ├── RequestCancelledError    CANCELLED: the server gave the request up
    └── InternalError            INTERNAL, UNKNOWN: a bug on our side
        └── StreamBrokenError       the answer has a gap, a repeat or no end

Leaving a stream or cancelling the task that reads it is no error: the usual
`asyncio.CancelledError` passes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # ships without annotations
    error_details_pb2,
    status_pb2,
)

_DETAILS_KEY = "grpc-status-details-bin"


class BriskError(Exception):
    """Every failure of a call.

    `code` is the gRPC status code's name, `reason` a stable name for programs, `message` a
    sentence for people, `retry_after_s` when trying again makes sense (None: not said), and
    `metadata` the figures behind the message, for example `needed_bytes`.
    """

    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.retry_after_s = retry_after_s
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"


class InvalidRequestError(BriskError):
    """INVALID_ARGUMENT: the request is wrong in any state; the message names limit and value."""

    code = "INVALID_ARGUMENT"


class NotFoundError(BriskError):
    """NOT_FOUND: the message names what is missing and what comes near."""

    code = "NOT_FOUND"


class FailedPreconditionError(BriskError):
    """FAILED_PRECONDITION: refused in the present state; trying again alone does not help."""

    code = "FAILED_PRECONDITION"


class ResourceExhaustedError(BriskError):
    """RESOURCE_EXHAUSTED: a queue is full or memory or disk does not suffice."""

    code = "RESOURCE_EXHAUSTED"


class UnavailableError(BriskError):
    """UNAVAILABLE: not now; the same call may succeed after `retry_after_s`."""

    code = "UNAVAILABLE"


class ConnectionFailedError(UnavailableError):
    """UNAVAILABLE from the transport: nobody answers, or the connection broke."""


class DeadlineExceededError(BriskError):
    """DEADLINE_EXCEEDED: the call's time is up; what it held is released."""

    code = "DEADLINE_EXCEEDED"


class DataLossError(BriskError):
    """DATA_LOSS: stored bytes fail their checksum."""

    code = "DATA_LOSS"


class AbortedError(BriskError):
    """ABORTED: overtaken by another change."""

    code = "ABORTED"


class UnauthenticatedError(BriskError):
    """UNAUTHENTICATED: credentials are missing or wrong."""

    code = "UNAUTHENTICATED"


class UnimplementedError(BriskError):
    """UNIMPLEMENTED: the server at the endpoint does not know the call."""

    code = "UNIMPLEMENTED"


class RequestCancelledError(BriskError):
    """CANCELLED by the server; the caller's own cancelling never becomes this."""

    code = "CANCELLED"


class InternalError(BriskError):
    """INTERNAL or UNKNOWN: a bug on Brisk's side; the logs have it under the request id."""

    code = "INTERNAL"


class StreamBrokenError(InternalError):
    """The answer has a gap or a repeat, or ended without a finish reason."""


_CLASSES: Mapping[grpc.StatusCode, type[BriskError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
        grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
        grpc.StatusCode.NOT_FOUND: NotFoundError,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
        grpc.StatusCode.ALREADY_EXISTS: FailedPreconditionError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
        grpc.StatusCode.UNAVAILABLE: UnavailableError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
        grpc.StatusCode.DATA_LOSS: DataLossError,
        grpc.StatusCode.ABORTED: AbortedError,
        grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
        grpc.StatusCode.PERMISSION_DENIED: UnauthenticatedError,
        grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
        grpc.StatusCode.CANCELLED: RequestCancelledError,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimit:
    """How long a call may take, and whether that is over."""

    seconds: float
    is_over: bool

    def explains(self, code: grpc.StatusCode) -> bool:
        """Return whether a call that ended with `code` ended because its time was up."""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return True
        return self.is_over and code in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


def from_status(
    code: grpc.StatusCode,
    message: str,
    trailing: Iterable[tuple[str, str | bytes]] = (),
    *,
    endpoint: str = "the endpoint",
    limit: TimeLimit | None = None,
) -> BriskError:
    """Return the error for a call that ended with `code`.

    Without our details, the end of a call at its `limit` is told in our words: gRPC's differ with
    who noticed first, and may even be CANCELLED or UNKNOWN. UNAVAILABLE without our details comes
    from the transport, not from a service, and becomes ConnectionFailedError naming `endpoint`.
    """
    details = _parse_details(trailing)
    if details.reason is None and limit is not None and limit.explains(code):
        return DeadlineExceededError(f"the time was up after {limit.seconds:g} s")
    kind = _CLASSES.get(code, InternalError)
    if kind is UnavailableError and details.reason is None:
        cause = message.rpartition(": ")[2]  # before it comes gRPC's own story
        return ConnectionFailedError(
            f"no connection to {endpoint}: {cause}", reason="CONNECTION_FAILED"
        )
    return kind(
        message or code.name,
        reason=details.reason,
        retry_after_s=details.retry_after_s,
        metadata=details.metadata,
    )


def from_rpc_error(
    error: grpc.RpcError, *, endpoint: str = "the endpoint", limit: TimeLimit | None = None
) -> BriskError:
    """Return the error for `error` as grpc's sync or asyncio API raised it."""
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return InternalError(str(error))
    trailing = tuple(error.trailing_metadata() or ())
    return from_status(
        error.code(), error.details() or "", trailing, endpoint=endpoint, limit=limit
    )


class _Details:
    """The parts of a google.rpc.Status that we use."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.retry_after_s: float | None = None
        self.metadata: dict[str, str] = {}


def _parse_details(trailing: Iterable[tuple[str, str | bytes]]) -> _Details:
    """Read the rich status of a reply. A malformed one, from a foreign server, counts as none."""
    details = _Details()
    for key, value in trailing:
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        status = status_pb2.Status()
        try:
            status.ParseFromString(value)
            for packed in status.details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if packed.Unpack(info):
                    details.reason = info.reason or None
                    details.metadata = dict(info.metadata)
                elif packed.Unpack(retry):
                    details.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        except DecodeError:
            return _Details()
    return details
