"""Exit codes, and each failure as one line of what was wrong and one of what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from brisk_client.errors import (
    BriskError,
    ConnectionFailedError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)


class ExitCode(IntEnum):
    """What `brisk` exits with; the epilogue of `brisk --help` lists the same."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    NO_ROOM = 5
    DEADLINE = 6
    INTERRUPTED = 130


HELP: Final = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or request, 3 not found, 4 nobody answers or not "
    "now, 5 no room (memory, disk or queue), 6 the time was up, 130 interrupted."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a failed command ends."""

    code: ExitCode
    message: str
    hint: str | None


_CODES: Final[tuple[tuple[type[BriskError], ExitCode], ...]] = (
    (UnavailableError, ExitCode.UNAVAILABLE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (InvalidRequestError, ExitCode.USAGE),
    (ResourceExhaustedError, ExitCode.NO_ROOM),
    (DeadlineExceededError, ExitCode.DEADLINE),
)

_SOURCE_HINTS: Final = {
    "SOURCE_NOT_FOUND": "a folder has to be on each machine that runs a store manager; of a URL, "
    "check bucket, path and revision",
    "SOURCE_NOT_A_FOLDER": "give the folder that has config.json and the *.safetensors files",
    "SOURCE_UNREADABLE": "let the user that runs the store manager read it: `chmod -R a+rX` on the "
    "folder, and `chmod a+x` on those above; for a URL, give the store managers credentials",
    "SOURCE_NOT_ALLOWED": "set BRISK_STOREMGR_SOURCES where the store managers run to allow it",
    "INVALID_SOURCE": "give an absolute path of a folder on the store manager's machine, or a URL "
    "as `brisk import --help` shows",
}


def failure(error: BriskError) -> Failure:
    """Return how a command ends that failed with `error`."""
    codes = (code for kind, code in _CODES if isinstance(error, kind))
    return Failure(code=next(codes, ExitCode.FAILED), message=error.message, hint=_hint(error))


def _hint(error: BriskError) -> str | None:
    hint: str | None = None
    match error:
        case ConnectionFailedError():
            hint = (
                "start a cluster with `brisk up`, or name another one with --endpoint or "
                "BRISK_ENDPOINT"
            )
        case NotFoundError(reason="MODEL_NOT_FOUND"):
            hint = "`brisk ls` lists what is deployed"
        case NotFoundError(reason="PLACEMENT_NOT_FOUND"):
            hint = (
                "the scheduler keeps the newest few thousand starts; a request whose model was "
                "warm may never have reached it"
            )
        case BriskError(reason=reason) if reason in _SOURCE_HINTS:
            hint = _SOURCE_HINTS[reason]
        case ResourceExhaustedError(reason="INSUFFICIENT_MEMORY"):
            hint = (
                "give the device more memory (`brisk up --device`), or deploy with fewer --slots "
                "or a shorter --context"
            )
        case UnavailableError() | ResourceExhaustedError():
            hint = _try_again(error)
        case DeadlineExceededError():
            hint = "allow more with --timeout"
        case UnimplementedError():
            hint = "the server may be of another version, or its reflection is off"
        case InternalError():
            hint = "the services' logs say more; `brisk status` shows where they are"
    return hint


def _try_again(error: BriskError) -> str:
    if error.retry_after_s is None:
        return "try again in a moment"
    return f"try again in {error.retry_after_s:.3g} s"
