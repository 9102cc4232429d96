"""A bar on a terminal that says how far a job is and how fast it goes."""

from __future__ import annotations

import time
from typing import Final, TextIO

_WIDTH: Final = 30
_INTERVAL_S: Final = 0.1


class ProgressBar:
    """Redraws one line of `stream`; draws nothing where that is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._drawn_s, self._is_drawn = stream, 0.0, False
        self._begin_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done."""
        now_s = time.monotonic()
        is_due = now_s - self._drawn_s >= _INTERVAL_S or done == total
        if not is_due or not self._stream.isatty():
            return
        self._drawn_s, self._is_drawn = now_s, True
        full = _WIDTH * done // total if total else _WIDTH
        speed = done / 1e9 / max(1e-9, now_s - self._begin_s)
        bar = "#" * full + "-" * (_WIDTH - full)
        self._stream.write(
            f"\r[{bar}] {done / 1e9:.2f} of {total / 1e9:.2f} GB, {speed:.2f} GB/s\033[K"
        )
        self._stream.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._is_drawn:
            self._stream.write("\r\033[K")
            self._stream.flush()
        self._is_drawn = False
