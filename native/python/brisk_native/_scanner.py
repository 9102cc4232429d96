"""JSON of a known shape in plain Python: the mirror of src/json_scanner.cpp, fault by fault.

The caller says what must come next, so that what nests deeper than expected, or is of another
kind, is a fault at its first byte, and nothing is built that was not asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn

_SPACE: Final = re.compile(rb"[ \n\r\t]*")
_STRING: Final = re.compile(
    rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+)"', re.DOTALL
)
_INTEGER: Final = re.compile(rb"0|[1-9][0-9]*+")
_NUMBER: Final = re.compile(
    rb"-?(?:0|[1-9][0-9]*+)(?![0-9])(?:\.[0-9]++|(?!\.))(?:[eE][+-]?[0-9]++|(?![eE]))"
)
_DIGITS_MAX: Final = 20
_DEPTH_MAX: Final = 8
_MEMBERS_MAX: Final = 64
_NAME_BYTES_MAX: Final = 256
_VALUES_MAX: Final = 262_144


class JsonFault(Exception):  # noqa: N818 - it is turned into a typed error before anyone sees it
    """The text is not what the caller expected."""


class JsonScanner:
    """Walks through `text`."""

    def __init__(self, text: bytes) -> None:
        self._text, self._at = text, 0
        self._skipped = 0  # values

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

    def members(self) -> Iterator[str]:
        """Yield the names of the object that comes next; the caller steps over each value.

        Raises JsonFault, also for a name that is there twice, and beyond the limits.
        """
        self.expect(b"{")
        if self.take(b"}"):
            return
        names: set[str] = set()
        more = True
        while more:
            begin = self._at
            name = self.string()
            self._add(names, name, begin)
            self.expect(b":")
            yield name
            more = self.take(b",")
        self.expect(b"}")

    def skip(self, depth: int = 0) -> None:
        """Step over one value of any kind. Raises JsonFault."""
        self._skip_space()
        self._skipped += 1
        if self._skipped > _VALUES_MAX:
            self._fault(f"more than {_VALUES_MAX} values of no use")
        sign = self._text[self._at : self._at + 1]
        if sign in {b"{", b"["}:
            if depth == _DEPTH_MAX:
                self._fault(f"nested deeper than {_DEPTH_MAX}")
            if sign == b"{":
                for _ in self.members():
                    self.skip(depth + 1)
            else:
                self._skip_elements(depth + 1)
        elif sign == b'"':
            self.string()
        elif not any(self._skip_word(word) for word in (b"true", b"false", b"null")):
            self._skip_number()

    def _add(self, names: set[str], name: str, begin: int) -> None:
        if len(name.encode()) > _NAME_BYTES_MAX:
            raise JsonFault(f"at byte {begin}: a name of more than {_NAME_BYTES_MAX} bytes")
        if len(names) == _MEMBERS_MAX:
            raise JsonFault(f"at byte {begin}: an object of more than {_MEMBERS_MAX} members")
        if name in names:
            raise JsonFault(f"at byte {begin}: a name that is there twice")
        names.add(name)

    def _skip_elements(self, depth: int) -> None:
        self.expect(b"[")
        if self.take(b"]"):
            return
        self.skip(depth)
        while self.take(b","):
            self.skip(depth)
        self.expect(b"]")

    def _skip_word(self, word: bytes) -> bool:
        found = self._text.startswith(word, self._at)
        self._at += len(word) if found else 0
        return found

    def _skip_number(self) -> None:
        found = _NUMBER.match(self._text, self._at)
        if found is None:
            self._fault("there must be a value")
        self._at = found.end()

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _fault(self, problem: str) -> NoReturn:
        raise JsonFault(f"at byte {self._at}: {problem}")
