"""JSON from untrusted files: bounded, without duplicate keys, and as the standard has it.

Python's parser takes more than RFC 8259 (NaN, repeated keys, lone surrogates, UTF-16) and puts no
bound on what it builds, so that 100 MB of "[]," cost gigabytes. Here the structure is counted
before anything is built.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final, NoReturn, TypeGuard

from services.common.names import shorten
from services.storemgr.refusal import MalformedError

_INTEGER_DIGITS_MAX: Final = 20  # 2^64 - 1 has that many
_NUMBER_CHARS_MAX: Final = 64
_KINDS: Final = {dict: "an object", list: "a list", str: "a string", type(None): "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonRules:
    """What one kind of file may hold."""

    size_bytes_max: int
    containers_max: int  # objects and lists together
    values_max: int  # members of all of them
    infinities: bool = False  # transformers writes them into some config.json


def parse_object(raw: bytes, rules: JsonRules) -> dict[str, object]:
    """Return the JSON object that `raw` holds, its numbers as int and float.

    Raises MalformedError.
    """
    if len(raw) > rules.size_bytes_max:
        raise MalformedError(f"must have at most {rules.size_bytes_max} bytes. Given: {len(raw)}")
    _check_structure(raw, rules)
    try:
        text = raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise MalformedError(f"is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=float if rules.infinities else _refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise MalformedError(f"is not JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise MalformedError("is nested too deep") from None
    if not is_object(value):
        raise MalformedError(f"must hold an object, not {described(value)}")
    if b"\\u" in raw:
        _refuse_half_surrogates(value)
    return value


def is_object(value: object) -> TypeGuard[dict[str, object]]:
    """Return whether `value` is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[object]]:
    """Return whether `value` is a JSON list."""
    return isinstance(value, list)


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether `value` is a JSON integer; Python also calls true one."""
    return isinstance(value, int) and not isinstance(value, bool)


def described(value: object) -> str:
    """Return what kind of JSON value `value` is, for a message."""
    if isinstance(value, bool):
        return "a boolean"
    return _KINDS.get(type(value), "a number")


def text_in(members: dict[str, object], key: str) -> str:
    """Return the text that `members` has as `key`. Raises MalformedError."""
    value = members.get(key)
    if not isinstance(value, str):
        raise MalformedError(f"has {described(value)} as {key}")
    return value


def list_in(members: dict[str, object], key: str) -> list[object]:
    """Return the list that `members` has as `key`. Raises MalformedError."""
    value = members.get(key)
    if not is_list(value):
        raise MalformedError(f"has {described(value)} as {key}")
    return value


def _check_structure(raw: bytes, rules: JsonRules) -> None:
    """Bound what the parser can build. Signs in strings count too: too strict, never too lax."""
    containers = raw.count(b"{") + raw.count(b"[")
    if containers > rules.containers_max:
        raise MalformedError(f"has more than {rules.containers_max} objects and lists")
    if raw.count(b",") + containers > rules.values_max:
        raise MalformedError(f"has more than {rules.values_max} values")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedError(f"has the key {shorten(key)} twice")
            seen.add(key)
    return made


def _refuse_constant(literal: str) -> NoReturn:
    raise MalformedError(f"holds {literal}, which is not JSON")


def _integer(literal: str) -> int:
    if len(literal.lstrip("-")) > _INTEGER_DIGITS_MAX:
        raise MalformedError(f"holds an integer of more than {_INTEGER_DIGITS_MAX} digits")
    if literal == "-0":  # an integer to Python, a float to everyone else
        raise MalformedError("holds the integer -0")
    return int(literal)


def _finite(literal: str) -> float:
    value = float(literal) if len(literal) <= _NUMBER_CHARS_MAX else math.inf
    if not math.isfinite(value):
        raise MalformedError(f"holds the number {shorten(literal)}, which is out of range")
    return value


def _refuse_half_surrogates(root: object) -> None:
    """Half a surrogate pair has no UTF-8 form: it would break whoever writes it out again."""
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise MalformedError(f"holds half a surrogate pair in {shorten(value)}") from None
        elif is_object(value):
            pending.extend(value)
            pending.extend(value.values())
        elif is_list(value):
            pending.extend(value)
