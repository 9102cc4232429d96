"""How values look: to people in tables, to programs as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table

_BINARY_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BINARY_STEP: Final = 1024
_COUNT_UNITS: Final = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_TEN: Final = 10
_PIPE_WIDTH: Final = 1_000
_HARMLESS: Final = "\n\t\u00a0\u200c\u200d"  # line ends, spaces, and what joins emoji
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400


def out() -> Console:
    """Return the console for results; into a pipe, tables are as wide as they need to be."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def err() -> Console:
    """Return the console for progress, notices and errors."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """Tell something by the way, on standard error."""
    err().print(text, style="dim")


def complain(message: str, hint: str | None) -> None:
    """Say what was wrong and what to do about it, on standard error."""
    console = err()
    console.print("error: ", style="bold red", end="")
    console.print(printable(message))
    if hint:
        console.print("hint:  ", style="dim", end="")
        console.print(hint)


def print_json(value: object) -> None:
    """Print `value`, a dataclass or a collection of them, as JSON."""
    typer.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False))


def jsonable(value: object) -> Any:
    """Return `value` as JSON knows it: infinity as null, times in ISO 8601."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [jsonable(entry) for entry in value]
    return value


def table(*columns: str) -> Table:
    """Return an empty table in the house look. A column that starts with ">" is right-aligned.

    A row is a line: on a narrow terminal the widest entries end in an ellipsis.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            overflow="ellipsis",
            no_wrap=True,
        )
    return made


def human_bytes(count: float) -> str:
    """Return a size: 1536 is "1.5 KiB"."""
    for unit in _BINARY_UNITS:
        if count < _BINARY_STEP or unit == _BINARY_UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _BINARY_STEP
    raise AssertionError("the last unit takes all")


def human_count(count: int) -> str:
    """Return a number of parameters: 1534000 is "1.5M"."""
    for size, unit in _COUNT_UNITS:
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def human_seconds(seconds: float) -> str:
    """Return a length of time: 90 is "1m 30s"; infinity is "forever"."""
    if math.isinf(seconds):
        return "forever"
    if seconds < _TEN:
        return f"{seconds:.1f}s" if seconds % 1 else f"{seconds:.0f}s"
    whole = round(seconds)
    for size, unit, below, below_unit in (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "m"),
        (_MINUTE_S, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit} {rest}{below_unit}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def human_milliseconds(seconds: float) -> str:
    """Return a short length of time: 0.0123 is "12 ms", 0.0004 "0.4 ms"."""
    milliseconds = seconds * 1_000
    digits = 0 if milliseconds >= _TEN or milliseconds == 0 else 1
    return f"{milliseconds:,.{digits}f} ms"


def human_age(moment: datetime) -> str:
    """Return how long ago `moment` was."""
    return human_seconds(max((datetime.now(UTC) - moment).total_seconds(), 0.0))


def printable(text: str) -> str:
    """Return `text` without control characters: a model's words must not steer the terminal."""
    return "".join(
        character if character in _HARMLESS or character.isprintable() else "\ufffd"
        for character in text
        if character != "\r"
    )


def write_text(text: str) -> None:
    """Write a piece of an answer at once; to a terminal only what is harmless there."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
