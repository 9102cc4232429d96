"""How a remote source is refused: what was wrong, and what to do, without secrets.

A fault that may pass is a `PassingError`; whoever reads tries again, and says `unavailable` in the
end. All else is final and a BriskError at once.
"""

from __future__ import annotations

from services.common.errors import (
    AbortedError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)

_RETRY_S = 5.0


class PassingError(Exception):
    """A source did not answer as it should; it may do so next time."""

    def __init__(self, problem: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after_s = retry_after_s  # as the source asks


def not_found(what: str) -> NotFoundError:
    """Return the error for a source, or a file of it, that is not there."""
    return NotFoundError(f"the source has no {what}", reason=Reason.SOURCE_NOT_FOUND)


def forbidden(what: str, advice: str) -> InvalidArgumentError:
    """Return the error for a source that must not be read."""
    return InvalidArgumentError(
        f"the source does not let the store manager read {what}; {advice}",
        reason=Reason.SOURCE_UNREADABLE,
    )


def changed(what: str) -> AbortedError:
    """Return the error for a source that is not what it was when the import began."""
    return AbortedError(
        f"{what} changed at the source while it was fetched; import it again",
        reason=Reason.SOURCE_CHANGED,
        metadata={"file": what},
    )


def mismatch(what: str, chunk: int) -> DataLossError:
    """Return the error for bytes that are not those the source's own checksums promise."""
    return DataLossError(
        f"{what}: chunk {chunk} is not what the source's brisk.json says; repair the source",
        reason=Reason.CHECKSUM_MISMATCH,
        metadata={"file": what, "chunk": str(chunk)},
    )


def unavailable(what: str, problem: str, tries: int) -> UnavailableError:
    """Return the error for a source that failed once too often."""
    return UnavailableError(
        f"{what} could not be fetched in {tries} tries: {problem}; what was fetched is kept, "
        "import it again to go on",
        reason=Reason.SOURCE_UNAVAILABLE,
        retry_after_s=_RETRY_S,
    )


def unusable(problem: str) -> InvalidArgumentError:
    """Return the error for a source that works otherwise than we need."""
    return InvalidArgumentError(problem, reason=Reason.SOURCE_UNUSABLE)
