"""Show one answer as it comes: progress of a cold start, the text, where the time went."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from brisk_client.cli.output import err, human_bytes, table, write_text
from brisk_client.results import Chunk, Phase, StartReport, Tier
from brisk_client.results import Progress as StartProgress
from brisk_client.sync import Stream

_WORDS: Final = {
    Phase.QUEUE: "waiting",
    Phase.PLACEMENT: "choosing a device",
    Phase.FETCH: "fetching",
    Phase.LOAD: "loading",
    Phase.INIT: "assembling",
    Phase.FIRST_TOKEN: "first token",
}
_MS: Final = 1_000.0
_GIGA: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that was shown, and its times as the client saw them."""

    text: str
    tokens: int
    first_token_s: float
    total_s: float
    start: StartReport | None

    @property
    def tokens_per_s(self) -> float | None:
        """Return the decoding speed after the first token."""
        decoding_s = self.total_s - self.first_token_s
        return (self.tokens - 1) / decoding_s if self.tokens > 1 and decoding_s > 0 else None


def show(
    stream: Stream, *, console: Console | None = None, heard: list[str] | None = None
) -> Answer:
    """Write the answer to standard output as it comes and return it.

    `heard` gets each piece of text, for callers that need what came before a failure. Raises
    BriskError. An interrupt cancels the request and passes through.
    """
    begun_s = time.monotonic()
    first_s: float | None = None
    texts = [] if heard is None else heard
    tokens = 0
    with stream, _start_bar(console or err()) as bar:
        for event in stream.events():
            if not isinstance(event, Chunk):
                bar.show(event)
                continue
            if first_s is None:
                first_s = time.monotonic()
                bar.close()
            tokens += len(event.token_ids)
            texts.append(event.text)
            write_text(event.text)
    ended_s = time.monotonic()
    return Answer(
        text="".join(texts),
        tokens=tokens,
        first_token_s=(first_s or ended_s) - begun_s,
        total_s=ended_s - begun_s,
        start=stream.start,
    )


def timings(answer: Answer, *, weight_bytes: int | None = None) -> Table:
    """Return the phases of the start as a table in milliseconds.

    With `weight_bytes`, the phases that move the weights show their speed.
    """
    start = answer.start
    made = table("PHASE", ">MS", "")
    if start is not None:
        for entry in start.phases:
            note = _note(entry.phase, start, weight_bytes)
            made.add_row(str(entry.phase), f"{entry.duration_s * _MS:,.1f}", note)
        made.add_row("to the first token", f"{start.total_s * _MS:,.1f}", "", style="bold")
    speed = answer.tokens_per_s
    made.add_row(
        "to the last token",
        f"{answer.total_s * _MS:,.1f}",
        f"{speed:,.1f} tokens/s" if speed else "",
    )
    return made


def headline(answer: Answer) -> str:
    """Return one sentence on how the answer started."""
    kind = "cold" if answer.start is not None and answer.start.cold else "warm"
    return (
        f"{kind} start: first of {answer.tokens} tokens after {answer.first_token_s * _MS:,.0f} ms"
    )


def _note(phase: Phase, start: StartReport, weight_bytes: int | None) -> str:
    """Return where the weights came from and how fast, for the phase that moves them."""
    if phase is not Phase.LOAD or start.source is Tier.UNKNOWN:
        return ""
    duration_s = start.duration_s(phase)
    speed = f", {weight_bytes / duration_s / _GIGA:.2f} GB/s" if weight_bytes and duration_s else ""
    return f"from {start.source}{speed}"


class StartBar:
    """A bar that follows a cold start and disappears with the first token."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def show(self, event: StartProgress) -> None:
        """Show how far the start has come."""
        if self._progress is None:
            return
        fraction = event.fraction
        total = None if fraction is None else 1.0
        words, amount = _WORDS.get(event.phase, str(event.phase)), ""
        if event.detail:
            words = f"{words}: {event.detail}"
        if event.bytes_total:
            amount = f"{human_bytes(event.bytes_done)} of {human_bytes(event.bytes_total)}"
            if event.source is not Tier.UNKNOWN:
                amount += f" from {event.source}"
        if self._task is None:
            self._task = self._progress.add_task(words, total=total, amount=amount)
        self._progress.update(
            self._task, description=words, total=total, completed=fraction or 0.0, amount=amount
        )

    def close(self) -> None:
        """Take the bar away. Idempotent."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def _start_bar(console: Console) -> Iterator[StartBar]:
    if not console.is_terminal:
        yield StartBar(None)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with progress:
        yield StartBar(progress)


def end_line() -> None:
    """End the line of an answer, on a terminal or not."""
    sys.stdout.write("\n")
    sys.stdout.flush()
