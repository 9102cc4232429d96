"""Arrivals from a CSV file: `at_s,model,prompt_tokens,output_tokens`, in order of time.

A file from outside is hostile until it is parsed: every line is checked against stated limits, and
a refusal names the line, the rule and what was given, shortened.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.common.errors import InvalidArgumentError
from services.common.names import parse_model_name, shorten
from sim.request import Arrival
from sim.shapes import CONTEXT_TOKENS

COLUMNS: Final = ("at_s", "model", "prompt_tokens", "output_tokens")
LINE_CHARS_MAX: Final = 256
ARRIVALS_MAX: Final = 10_000_000
AT_S_MAX: Final = 30 * 86_400.0
MODELS_MAX: Final = 100_000


class TraceError(ValueError):
    """A trace breaks a rule."""


def read(path: Path) -> tuple[Arrival, ...]:
    """Return a trace's arrivals. Raises TraceError naming the line, and OSError."""
    with path.open(encoding="ascii", errors="strict", newline="") as file:
        try:
            return tuple(_parsed(_lines(file)))
        except UnicodeDecodeError as error:
            raise TraceError(f"{path.name} has a byte that is not ASCII") from error


def _lines(file: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, none of them too long; a huge one is never held whole."""
    number = 0
    readline = file.readline  # type: ignore[attr-defined] # a text file has it
    while line := readline(LINE_CHARS_MAX + 2):
        number += 1
        text = line.rstrip("\r\n")
        if len(text) > LINE_CHARS_MAX:
            raise TraceError(f"line {number} has more than {LINE_CHARS_MAX} characters")
        yield number, text


def _parsed(lines: Iterator[tuple[int, str]]) -> Iterator[Arrival]:
    _, header = next(lines, (0, ""))
    if header != ",".join(COLUMNS):
        raise TraceError(f"line 1 must be {','.join(COLUMNS)}. Given: {shorten(header)}")
    last_s, count, known = 0.0, 0, set[str]()
    for number, line in lines:
        arrival = _arrival(number, line)
        count += 1
        known.add(arrival.deployment)
        if arrival.at_s < last_s:
            raise TraceError(f"line {number}: at_s goes back from {last_s:g} to {arrival.at_s:g}")
        if count > ARRIVALS_MAX or len(known) > MODELS_MAX:
            raise TraceError(
                f"line {number}: at most {ARRIVALS_MAX} arrivals of {MODELS_MAX} models"
            )
        last_s = arrival.at_s
        yield arrival
    if not count:
        raise TraceError("the trace has no arrivals")


def _arrival(number: int, line: str) -> Arrival:
    try:
        row = next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise TraceError(f"line {number}: {error}") from error
    if len(row) != len(COLUMNS):
        raise TraceError(f"line {number} must have {len(COLUMNS)} columns. Given: {len(row)}")
    try:
        model = parse_model_name(row[1])
    except InvalidArgumentError as error:
        raise TraceError(f"line {number}: {error.message}") from error
    prompt = _whole(number, COLUMNS[2], row[2])
    output = _whole(number, COLUMNS[3], row[3])
    if prompt + output > CONTEXT_TOKENS:
        raise TraceError(
            f"line {number}: at most {CONTEXT_TOKENS} tokens. Given: {prompt + output}"
        )
    return Arrival(_time(number, row[0]), model, prompt, output)


def _time(number: int, given: str) -> float:
    try:
        # float() also takes "1_0" and blanks around it; a trace should not need either.
        at_s = float(given) if given.strip("0123456789.eE+-") == "" else math.nan
    except ValueError:
        at_s = math.nan
    if not 0.0 <= at_s <= AT_S_MAX:
        raise TraceError(
            f"line {number}: at_s must be from 0 to {AT_S_MAX:.0f}. Given: {shorten(given)}"
        )
    return at_s


def _whole(number: int, column: str, given: str) -> int:
    is_plain = given.isascii() and given.isdigit() and len(given) <= len(str(CONTEXT_TOKENS))
    if not is_plain or not 1 <= int(given) <= CONTEXT_TOKENS:
        raise TraceError(
            f"line {number}: {column} must be from 1 to {CONTEXT_TOKENS}. Given: {shorten(given)}"
        )
    return int(given)
