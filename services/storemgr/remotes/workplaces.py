"""Where remote models are put together before they are published, kept when that is interrupted.

    store/fetches/<source and name>/
      mark              which version of the source this is of
      files/            the source's folder in small: support files, weights with their headers
      parts/            the weights as they will be stored, and the journals of what has come

An import that is stopped, fails for the source's trouble, or dies with the process leaves its place
to the next one of the same source and name, for `keep_s` seconds. Everything here blocks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.common.clock import wall_clock
from services.common.log import get_logger
from services.storemgr.remotes.refusals import unusable

log = get_logger(__name__)

PLACES_MAX: Final = 32  # that wait to be gone on with; older ones go
_MARK: Final = "mark"


class Workplace:
    """The place of one import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.parts = folder / "parts"

    def begin(self, fingerprint: str) -> bool:
        """Make it ready for this version of the source; return whether it holds some of it."""
        mark = self.folder / _MARK
        try:
            is_known = mark.read_text(encoding="ascii") == fingerprint
        except (OSError, ValueError):
            is_known = False
        if not is_known:
            self.clear()
            self.files.mkdir(parents=True)
            self.parts.mkdir()
            with mark.open("x", encoding="ascii") as file:
                file.write(fingerprint)
                file.flush()
                os.fsync(file.fileno())
        os.utime(mark)
        return is_known

    def clear(self) -> None:
        """Remove all of it. Raises OSError."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def age_s(self) -> float:
        """Return how long ago an import last began here; infinite if none ever did."""
        try:
            return max(0.0, wall_clock().timestamp() - (self.folder / _MARK).stat().st_mtime)
        except OSError:
            return float("inf")


class Workplaces:
    """All places. Its methods may be called from any thread."""

    def __init__(self, root: Path, *, keep_s: float) -> None:
        self._root = root
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._used: set[Path] = set()

    @contextmanager
    def place(self, *key: str) -> Iterator[Workplace]:
        """Give the place of an import, which nobody else gets meanwhile."""
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]
        folder = self._root / digest
        with self._lock:
            if folder in self._used:
                raise unusable("the same source is just being imported under this name")
            self._used.add(folder)
        try:
            self._root.mkdir(exist_ok=True)
            yield Workplace(folder)
        finally:
            with self._lock:
                self._used.discard(folder)

    def sweep(self) -> int:
        """Remove what nobody came back to in time and return how many places that were."""
        return self._drop(self._keep_s, PLACES_MAX)

    def drop_idle(self) -> int:
        """Remove all that no import uses now: its room is needed. Returns how many that were."""
        return self._drop(0.0, 0)

    def _drop(self, older_than_s: float, keep_max: int) -> int:
        if not self._root.is_dir():
            return 0
        with self._lock:
            idle = sorted(
                (Workplace(path) for path in self._root.iterdir() if path not in self._used),
                key=lambda place: place.age_s,
            )
            late = [
                place
                for number, place in enumerate(idle)
                if number >= keep_max or place.age_s >= older_than_s
            ]
            for place in late:
                try:
                    place.clear()
                except OSError as error:
                    log.warning("unfinished import not removed", error=error.strerror)
        return len(late)
