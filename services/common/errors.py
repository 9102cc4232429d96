"""All errors that Brisk raises on purpose, each with its gRPC code and a stable reason.

    BriskError                    an answer to a caller; crosses the wire as google.rpc.Status
    ├── InvalidArgumentError      INVALID_ARGUMENT     wrong in any state: do not repeat
    ├── NotFoundError             NOT_FOUND            no such thing
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED   after the pause in `retry_after_s`, if any
    ├── FailedPreconditionError   FAILED_PRECONDITION  not before the state changes
    ├── AbortedError              ABORTED              repeat one level up
    ├── UnavailableError          UNAVAILABLE          repeat the same call
    ├── DeadlineError             DEADLINE_EXCEEDED    the time was up
    ├── DataLossError             DATA_LOSS            stored bytes are damaged
    ├── UnauthenticatedError      UNAUTHENTICATED      who are you
    └── InternalError             INTERNAL             our bug
    ConfigError                   a service refuses to start; never crosses the wire

Messages are for callers: they name limit and given value, never paths, keys or addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar


class Reason(StrEnum):
    """Why a call failed, for programs. Names never change once released."""

    # What a caller got wrong.
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    INVALID_NAME = "INVALID_NAME"
    INVALID_MODEL = "INVALID_MODEL"
    INVALID_SAMPLING = "INVALID_SAMPLING"
    INVALID_SPEC = "INVALID_SPEC"
    INVALID_SOURCE = "INVALID_SOURCE"
    SOURCE_NOT_A_FOLDER = "SOURCE_NOT_A_FOLDER"
    SOURCE_UNREADABLE = "SOURCE_UNREADABLE"
    SOURCE_NOT_ALLOWED = "SOURCE_NOT_ALLOWED"
    SOURCE_UNUSABLE = "SOURCE_UNUSABLE"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    NO_CHAT_TEMPLATE = "NO_CHAT_TEMPLATE"
    NO_TOOLS = "NO_TOOLS"
    TEMPLATE_FAILED = "TEMPLATE_FAILED"
    INVALID_CONSTRAINT = "INVALID_CONSTRAINT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    # What is not there.
    NOT_FOUND = "NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    PLACEMENT_NOT_FOUND = "PLACEMENT_NOT_FOUND"
    SOURCE_NOT_FOUND = "SOURCE_NOT_FOUND"
    # What is full.
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    QUEUE_FULL = "QUEUE_FULL"
    INSUFFICIENT_MEMORY = "INSUFFICIENT_MEMORY"
    DISK_FULL = "DISK_FULL"
    # What is away for now.
    UNAVAILABLE = "UNAVAILABLE"
    NO_WORKER = "NO_WORKER"
    NO_NODE = "NO_NODE"
    NO_LEADER = "NO_LEADER"
    NOT_LEADER = "NOT_LEADER"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    WORKER_LOST = "WORKER_LOST"
    STORE_UNREACHABLE = "STORE_UNREACHABLE"
    SOURCE_UNAVAILABLE = "SOURCE_UNAVAILABLE"
    # What has changed under the caller.
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    STALE_EPOCH = "STALE_EPOCH"
    INSTANCE_GONE = "INSTANCE_GONE"
    INSTANCE_BUSY = "INSTANCE_BUSY"
    MODEL_LEASED = "MODEL_LEASED"
    SOURCE_CHANGED = "SOURCE_CHANGED"
    ABORTED = "ABORTED"
    CANCELLED = "CANCELLED"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    # What broke.
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    DATA_LOSS = "DATA_LOSS"
    ENGINE_FAILED = "ENGINE_FAILED"
    INTERNAL = "INTERNAL"


class BriskError(Exception):
    """An answer to a caller. Raise one of the subclasses."""

    code: ClassVar[str] = "UNKNOWN"  # the gRPC status code's name
    default_reason: ClassVar[Reason] = Reason.INTERNAL

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
        self.reason: str = str(reason or self.default_reason)  # a peer's may be newer than ours
        self.retry_after_s = retry_after_s
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.is_peers = False  # a peer's own answer, logged where it arose; we only pass it on


class InvalidArgumentError(BriskError):
    """The request is wrong in any state."""

    code = "INVALID_ARGUMENT"
    default_reason = Reason.INVALID_ARGUMENT


class NotFoundError(BriskError):
    """What the request names does not exist."""

    code = "NOT_FOUND"
    default_reason = Reason.NOT_FOUND


class ResourceExhaustedError(BriskError):
    """A limit is reached; `retry_after_s` says when to come back, None that waiting is no use."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = Reason.RESOURCE_EXHAUSTED


class FailedPreconditionError(BriskError):
    """The state does not allow it; the same call fails until that changes."""

    code = "FAILED_PRECONDITION"
    default_reason = Reason.FAILED_PRECONDITION


class AbortedError(BriskError):
    """Given up half-way; repeat one level up."""

    code = "ABORTED"
    default_reason = Reason.ABORTED


class UnavailableError(BriskError):
    """Away for now; repeat the same call after `retry_after_s`."""

    code = "UNAVAILABLE"
    default_reason = Reason.UNAVAILABLE


class DeadlineError(BriskError):
    """The caller's time was up."""

    code = "DEADLINE_EXCEEDED"
    default_reason = Reason.DEADLINE_EXCEEDED


class DataLossError(BriskError):
    """Stored bytes are not what was written."""

    code = "DATA_LOSS"
    default_reason = Reason.DATA_LOSS


class UnauthenticatedError(BriskError):
    """The caller has not proved who it is."""

    code = "UNAUTHENTICATED"
    default_reason = Reason.UNAUTHENTICATED


class InternalError(BriskError):
    """A bug of ours."""

    code = "INTERNAL"
    default_reason = Reason.INTERNAL


class ConfigError(Exception):
    """A service refuses to start: `setting` names the variable at fault."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting
        self.problem = problem
