"""Names from outside: the one validator for model names, request ids and identifiers.

Names end up in paths, Redis keys, log lines and metric labels, so nothing but a small ASCII
alphabet gets through. A refusal shows the given value escaped and shortened, never as it came.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterable
from typing import Final, NewType

from services.common.errors import InvalidArgumentError, Reason

ModelName = NewType("ModelName", str)
RequestId = NewType("RequestId", str)

MODEL_NAME_CHARS_MAX: Final = 96
ID_CHARS_MAX: Final = 64
_SHOWN_CHARS_MAX: Final = 60

_SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL_NAME: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})?")
_ID: Final = re.compile(r"[A-Za-z0-9._-]+")


def shorten(value: str) -> str:
    """Return `value` quoted, escaped to printable ASCII and at most about 80 characters long."""
    if len(value) <= _SHOWN_CHARS_MAX:
        shown = ascii(value)
        if len(shown) <= _SHOWN_CHARS_MAX + 2:
            return shown
    # Cut the escaped form, not the value: one character may become ten.
    return f"{ascii(value[:_SHOWN_CHARS_MAX])[:_SHOWN_CHARS_MAX]}...' ({len(value)} characters)"


def parse_model_name(given: str) -> ModelName:
    """Return `given` as a model's or deployment's name.

    Raises InvalidArgumentError (INVALID_NAME) naming the rule that it breaks.
    """
    if problem := _model_name_problem(given):
        raise InvalidArgumentError(
            f"model name {problem}. Given: {shorten(given)}", reason=Reason.INVALID_NAME
        )
    return ModelName(given)


def _model_name_problem(given: str) -> str | None:
    if not given:
        return "must not be empty"
    if len(given) > MODEL_NAME_CHARS_MAX:
        return f"must have at most {MODEL_NAME_CHARS_MAX} characters"
    if not _MODEL_NAME.fullmatch(given):
        return (
            'must be one or two segments joined by "/", each of the characters A-Z a-z 0-9 . _ - '
            "and starting with a letter or digit"
        )
    if ".." in given:
        return 'must not contain ".."'
    if "--" in given:  # stands for "/" in the store's folder names
        return 'must not contain "--"'
    return None


def parse_request_id(given: str) -> RequestId:
    """Return `given` as a request id. Raises InvalidArgumentError (INVALID_ARGUMENT)."""
    return RequestId(parse_id(given, what="request id"))


def parse_id(given: str, *, what: str) -> str:
    """Return `given` as an identifier of 1..64 characters of A-Z a-z 0-9 . _ -.

    Raises InvalidArgumentError (INVALID_ARGUMENT) calling it `what`.
    """
    if len(given) > ID_CHARS_MAX or not _ID.fullmatch(given):
        raise InvalidArgumentError(
            f"{what} must have 1 to {ID_CHARS_MAX} characters of A-Z a-z 0-9 . _ -. "
            f"Given: {shorten(given)}"
        )
    return given


def new_request_id() -> RequestId:
    """Return a request id that nobody has used."""
    return RequestId(secrets.token_hex(8))


def new_id(prefix: str) -> str:
    """Return an id that nobody has used, for example `worker-1f0c9a52d4e7`."""
    return f"{prefix}-{secrets.token_hex(6)}"


def near_matches(name: str, known: Iterable[str], *, at_most: int = 3) -> tuple[str, ...]:
    """Return the names in `known` that `name` may be a slip for, nearest first."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(
        name[:MODEL_NAME_CHARS_MAX].casefold(), by_folded, n=at_most, cutoff=0.6
    )
    return tuple(by_folded[folded] for folded in found)
