"""Says once in a process what makes loading slow here: the logger is brisk_native."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

_log: Final = logging.getLogger("brisk_native")
_lock: Final = threading.Lock()
_said: Final[set[str]] = set()


def note_read(path: str, buffered_bytes: int, is_in_pool: bool, huge_pages: bool) -> None:  # noqa: FBT001
    """Take how a read went. Called by the compiled loader when it was not at its best."""
    if buffered_bytes:
        _warn_once(
            "buffered",
            "the file system of %s refuses direct reads: they go through the page cache, slower",
            path,
        )
    if is_in_pool and not huge_pages:
        _warn_once("small", "the pool has 4 KiB pages, no huge ones: reads into it are slower")


def note_pool(refusals: Mapping[str, str]) -> None:
    """Take why a pool has no huge pages: a reason for each kind of memory that could be better."""
    reasons = "; ".join(f"{kind}: {reason}" for kind, reason in refusals.items())
    _warn_once(
        "small", "the pool has 4 KiB pages, no huge ones: reads into it are slower (%s)", reasons
    )


def _warn_once(key: str, message: str, *arguments: str) -> None:
    with _lock:
        if key in _said:
            return
        _said.add(key)
    _log.warning(message, *arguments)
