"""The members of a JSON object, taken one by one with their types checked.

What is left over at the end is refused by name: an argument that we do not know might change the
answer. Absent and null are the same, as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.common.errors import InvalidArgumentError
from services.common.names import near_matches, shorten
from services.router.http.errors import refuse

_SHOWN_CHARS_MAX: Final = 60
_INTEGER_MIN: Final = -(2**63)
_INTEGER_MAX: Final = 2**64 - 1


class Fields:
    """One object. `path` is put before the names of its members in messages."""

    def __init__(self, members: Mapping[str, Any], path: str = "") -> None:
        self._left = dict(members)
        self._path = path
        self._known: list[str] = []

    def take(self, name: str) -> Any:
        """Return a member as it is, or None."""
        self._known.append(name)
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        """Return a string."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "must be a string", value)
        return value

    def integer(self, name: str) -> int | None:
        """Return a whole number of at most 64 bits, signed or not."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "must be a whole number", value)
        if not _INTEGER_MIN <= value <= _INTEGER_MAX:
            raise self.wrong(name, "must be a whole number of at most 64 bits", value)
        return value

    def number(self, name: str) -> float | None:
        """Return a number; a whole one too large to compute with becomes infinite."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(name, "must be a number", value)
        try:
            return float(value)
        except OverflowError:
            return float("inf")

    def flag(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "must be true or false", value)
        return value

    def object(self, name: str) -> Fields | None:
        """Return an object's members."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "must be an object", value)
        return Fields(value, self._full(name) + ".")

    def within(self, members: Mapping[str, Any], place: str) -> Fields:
        """Return the members of an object at `place` within this one."""
        return Fields(members, self._full(place) + ".")

    def list(self, name: str) -> list[Any] | None:
        """Return a list."""
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "must be a list", value)
        return value

    def only(self, name: str, neutral: Iterable[Any]) -> None:
        """Refuse a member that we cannot serve, unless its value changes nothing."""
        value = self.take(name)
        if value is None or any(_is_same(value, each) for each in neutral):
            return
        full = self._full(name)
        raise refuse(full, f"{full} is not supported here. Given: {shown(value)}")

    def skip(self, names: Iterable[str]) -> None:
        """Ignore members that change no answer."""
        for name in names:
            self.take(name)

    def missing(self, name: str) -> InvalidArgumentError:
        """Return the error for a member that must be there."""
        full = self._full(name)
        return refuse(full, f"{full} is required")

    def wrong(self, name: str, rule: str, value: Any) -> InvalidArgumentError:
        """Return the error for a member that breaks a rule."""
        full = self._full(name)
        return refuse(full, f"{full} {rule}. Given: {shown(value)}")

    def end(self) -> None:
        """Refuse whatever is left. Call it when all that is known has been taken."""
        for name, value in self._left.items():
            if value is None:
                continue
            near = near_matches(name, self._known, at_most=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise refuse(
                self._full(name)[:_SHOWN_CHARS_MAX],
                f"unknown argument {shorten(self._full(name))}{hint}",
            )

    def _full(self, name: str) -> str:
        return self._path + name


def shown(value: Any) -> str:
    """Return a value as a message may show it: short, and never the whole of a big one."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return shorten(value)
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object of {len(value)}"
        case _:
            return str(value)[:_SHOWN_CHARS_MAX]


def _is_same(value: Any, neutral: Any) -> bool:
    """Return whether the two are equal; true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
