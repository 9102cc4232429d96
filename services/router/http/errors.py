"""Errors as OpenAI's clients know them: a status, a JSON object, and when to come back.

Clients repeat 408, 409, 429 and 5xx by themselves; where that is no use they are told so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from services.common.errors import BriskError, InvalidArgumentError, Reason

BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
METHOD_NOT_ALLOWED: Final = 405
REQUEST_TIMEOUT: Final = 408
TOO_LARGE: Final = 413
UNSUPPORTED_MEDIA: Final = 415
TOO_MANY_REQUESTS: Final = 429
HEAD_TOO_LARGE: Final = 431
INTERNAL: Final = 500
UNAVAILABLE: Final = 503

_STATUSES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "INVALID_ARGUMENT": BAD_REQUEST,
        "NOT_FOUND": NOT_FOUND,
        "UNAUTHENTICATED": 401,
        "FAILED_PRECONDITION": 409,
        "ABORTED": UNAVAILABLE,
        "UNAVAILABLE": UNAVAILABLE,
        "DEADLINE_EXCEEDED": 504,
    }
)
_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {401: "authentication_error", TOO_MANY_REQUESTS: "rate_limit_error"}
)
# OpenAI's own words where clients look for them.
_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {Reason.PROMPT_TOO_LONG: "context_length_exceeded"}
)
_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {Reason.MODEL_NOT_FOUND: "model", Reason.INVALID_NAME: "model"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a client is told."""

    status: int
    message: str
    code: str
    parameter: str | None = None
    retry_after_s: float | None = None
    is_final: bool = False  # no use repeating, whatever the status says
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> dict[str, object]:
        """Return the JSON object."""
        kind = "server_error" if self.status >= INTERNAL else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.parameter,
                "code": self.code,
            }
        }

    def all_headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers, those that say when to come back included."""
        headers = self.headers
        if self.retry_after_s is not None:
            headers += (
                ("retry-after", str(math.ceil(self.retry_after_s))),  # whole seconds, by standard
                ("retry-after-ms", str(math.ceil(self.retry_after_s * 1000))),
            )
        if self.is_final:
            headers += (("x-should-retry", "false"),)
        return headers


class RefusedError(Exception):
    """A request that HTTP itself is reason enough to refuse."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ClientLeftError(Exception):
    """The client is gone: nobody is there to answer."""


def failure_of(error: BriskError) -> Failure:
    """Return what `error` looks like over HTTP."""
    reason = error.reason
    return Failure(
        status=_status(error),
        message=error.message,
        code=_CODES.get(reason, reason.lower()),
        parameter=error.metadata.get("parameter", _PARAMETERS.get(reason)),
        retry_after_s=error.retry_after_s,
        is_final=error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is None,
    )


def _status(error: BriskError) -> int:
    if error.code == "RESOURCE_EXHAUSTED":  # without a time to come back, no waiting helps
        return UNAVAILABLE if error.retry_after_s is None else TOO_MANY_REQUESTS
    return _STATUSES.get(error.code, INTERNAL)


def internal_failure() -> Failure:
    """Return what a client learns of a bug of ours."""
    return Failure(
        status=INTERNAL,
        message="internal error; the service's log has the details",
        code=Reason.INTERNAL.lower(),
    )


def refuse(parameter: str, message: str) -> InvalidArgumentError:
    """Return the error for a parameter that cannot be served."""
    return InvalidArgumentError(message, metadata={"parameter": parameter})
