"""What an answer must look like, validated as far as that is possible without a model.

Whether it can be compiled for a model's tokens is found out by the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic_core import from_json

from services.common.errors import InvalidArgumentError, Reason

CONSTRAINT_BYTES_MAX: Final = 65_536
NESTING_MAX: Final = 100
_OPENING: Final = frozenset("([{")
_CLOSING: Final = frozenset(")]}")


class ConstraintKind(StrEnum):
    """How a constraint is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Raises InvalidArgumentError (INVALID_CONSTRAINT) when built with a text that is none."""

    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        size_bytes = len(self.text.encode(errors="replace"))
        if not 1 <= size_bytes <= CONSTRAINT_BYTES_MAX:
            raise self.refused(
                f"{self.kind} must have 1 to {CONSTRAINT_BYTES_MAX} bytes. Given: {size_bytes}"
            )
        # Compilers descend into brackets by recursion, and a stack that overflows ends a process.
        if (depth := _depth(self.text)) > NESTING_MAX:
            raise self.refused(
                f"brackets of {self.kind} must be at most {NESTING_MAX} deep. Given: {depth}"
            )
        if self.kind is ConstraintKind.JSON_SCHEMA:
            self._check_schema()

    def refused(self, message: str) -> InvalidArgumentError:
        """Return the error for a constraint that does not work."""
        return InvalidArgumentError(
            message, reason=Reason.INVALID_CONSTRAINT, metadata={"parameter": str(self.kind)}
        )

    def _check_schema(self) -> None:
        try:
            schema = from_json(self.text, cache_strings=False)
        except ValueError as error:  # its messages name a place, never the content
            raise self.refused(f"json_schema is not valid JSON: {error}") from error
        if not isinstance(schema, dict | bool):
            raise self.refused("json_schema must be an object, true or false")


def _depth(text: str) -> int:
    """Return how deep the brackets of a text are, those in quotes counted too."""
    depth = deepest = 0
    for letter in text:
        if letter in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif letter in _CLOSING:
            depth = max(0, depth - 1)
    return deepest
