"""JSON of a known shape in plain Python: the mirror of src/json_scanner.cpp, fault by fault.

The caller says what must come next, so that what nests deeper than expected, or is of another
kind, is a fault at its first byte; there is no recursion and nothing is built that was not asked
for.
"""

from __future__ import annotations

import json
import re
from typing import Final, NoReturn

_SPACE: Final = re.compile(rb"[ \n\r\t]*")
_STRING: Final = re.compile(
    rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+)"', re.DOTALL
)
_INTEGER: Final = re.compile(rb"0|[1-9][0-9]*+")
_DIGITS_MAX: Final = 20


class JsonFault(Exception):  # noqa: N818 - it is turned into a typed error before anyone sees it
    """The text is not what the caller expected."""


class JsonScanner:
    """Walks through `text`."""

    def __init__(self, text: bytes) -> None:
        self._text, self._at = text, 0

    def take(self, sign: bytes) -> bool:
        """Step over `sign` if it comes next, after any white space; return whether it did."""
        self._skip_space()
        if not self._text.startswith(sign, self._at):
            return False
        self._at += 1
        return True

    def expect(self, sign: bytes) -> None:
        """Step over `sign`. Raises JsonFault if something else comes next."""
        if not self.take(sign):
            self._fault(f"there must be '{sign.decode()}'")

    def string(self) -> str:
        """Return the string that comes next. Raises JsonFault."""
        self._skip_space()
        if not self._text.startswith(b'"', self._at):
            self._fault("there must be a string")
        found = _STRING.match(self._text, self._at)
        if found is None:
            self._fault("a string that is not JSON in UTF-8")
        try:
            value = found[1].decode()
            if b"\\" in found[1]:
                value = str(json.loads(found[0]))
                value.encode()  # refuses half a surrogate pair
        except ValueError:
            self._fault("a string that is not JSON in UTF-8")
        self._at = found.end()
        return value

    def integer(self, at_most: int) -> int:
        """Return the integer that comes next, from 0 to `at_most`. Raises JsonFault."""
        self._skip_space()
        found = _INTEGER.match(self._text, self._at)
        if found is None:
            self._fault("there must be an integer of at least 0")
        value = int(found[0][:_DIGITS_MAX])
        if value > at_most:
            self._fault(f"there must be an integer of at most {at_most}")
        self._at = found.end()
        return value

    def expect_end(self) -> None:
        """Raise JsonFault if anything but white space is left."""
        self._skip_space()
        if self._at < len(self._text):
            self._fault("there must be nothing more")

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _fault(self, problem: str) -> NoReturn:
        raise JsonFault(f"at byte {self._at} of the header: {problem}")
