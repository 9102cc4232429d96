"""Which way of reading suits a file system: measured once, remembered beside other caches.

Differences between good settings are smaller than what a busy disk does from one moment to the
next, so the default stands unless another is clearly faster.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Final

from brisk_native._chunks import check_settings
from brisk_native._implementation import IMPLEMENTATION, trial_read
from brisk_native._types import CHUNK_BYTES, ReadSettings, ShortReadError

DEFAULTS: Final = ReadSettings()

CANDIDATES: Final = (
    DEFAULTS,
    ReadSettings(engine="pread", threads=16),
    ReadSettings(engine="uring", threads=4, depth=16),  # where one core cannot check what comes
)
"""The default first."""

CALIBRATE_BYTES_MIN: Final = 1024**3
"""Reads of fewer bytes are over before a calibration would pay."""

SECONDS_MAX: Final = 0.3
"""What all reads of a calibration take, unless single ones take longer; getting memory for them
comes on top."""

_GAIN_MIN: Final = 1.10
_ROUNDS: Final = 2
_TRIAL_CHUNKS_MIN: Final = 6  # fewer are read before any way is at its speed
_CACHE_BYTES_MAX: Final = 4096

_lock: Final = threading.Lock()
_known: Final[dict[str, ReadSettings]] = {}


def settings_for(paths: Sequence[str | os.PathLike[str]]) -> ReadSettings:
    """Return how to read these files: as remembered, or measured if they are large, or defaults.

    Never raises for files that cannot be read: reading them will say what is wrong.
    """
    if not paths or IMPLEMENTATION != "native":
        return DEFAULTS
    try:
        sizes = {os.fspath(path): Path(path).stat().st_size for path in paths}
        largest = max(sizes, key=lambda path: sizes[path])
        found = _remembered(_key(largest))
        if found is not None or sum(sizes.values()) < CALIBRATE_BYTES_MIN:
            return found or DEFAULTS
        return calibrate(largest)
    except (MemoryError, OSError, ShortReadError):  # the read itself may do with less
        return DEFAULTS


def calibrate(path: str | os.PathLike[str]) -> ReadSettings:
    """Measure how to read from the file system of `path`, a large file; remember and return it.

    Reads parts of the file for about half a second, past the page cache; returns the defaults
    where that is refused. What was remembered before is replaced. A file of less than about 150 MB
    tells nothing: the defaults are returned, and nothing is remembered.

    `read_files` and the loaders ask for it by themselves. It is kept in $XDG_CACHE_HOME/brisk, or
    ~/.cache/brisk, one file for each file system, kernel and version; a folder that cannot be used
    is no error.

    Raises OSError, ShortReadError and MemoryError as `read_file` does.
    """
    with _lock:  # two at once would measure one another
        key = _key(path)
        best = _fastest(path)
        if best is None:
            return DEFAULTS
        _known[key] = best
        with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
            _write(_cache_file(key), best)
        return best


def _fastest(path: str | os.PathLike[str]) -> ReadSettings | None:
    """Return the fastest way; None if the file is too small to tell."""
    trials = [
        index
        for turn in range(_ROUNDS)
        for index in (
            range(len(CANDIDATES)) if turn % 2 == 0 else range(len(CANDIDATES) - 1, -1, -1)
        )
    ]
    count = -(-Path(path).stat().st_size // CHUNK_BYTES) // len(trials)
    if count < _TRIAL_CHUNKS_MIN:
        return None
    read = [0] * len(CANDIDATES)
    spent_s = [0.0] * len(CANDIDATES)
    for number, index in enumerate(trials):
        wanted = CANDIDATES[index]
        size, seconds, engine, direct = trial_read(
            path, wanted, first=number * count, count=count, seconds_max=SECONDS_MAX / len(trials)
        )
        if not direct:
            return DEFAULTS
        if engine == wanted.engine:
            read[index] += size
            spent_s[index] += seconds
    return choose([size / max(1e-9, spent) for size, spent in zip(read, spent_s, strict=True)])


def choose(bytes_per_s: Sequence[float]) -> ReadSettings:
    """Return the candidate of these speeds to use: the default unless another is clearly faster."""
    best = max(range(len(CANDIDATES)), key=lambda index: bytes_per_s[index])
    return CANDIDATES[best] if bytes_per_s[best] > _GAIN_MIN * bytes_per_s[0] else DEFAULTS


def _key(path: str | os.PathLike[str]) -> str:
    device = Path(path).stat().st_dev
    try:
        version = metadata.version("brisk-native")
    except metadata.PackageNotFoundError:
        version = "unknown"
    number = f"{os.major(device)}:{os.minor(device)}"
    parts = (number, _file_system(number), os.uname().release, version)
    return "-".join(
        "".join(c if c.isalnum() or c in "._:" else "_" for c in part) for part in parts
    )


def _file_system(number: str) -> str:
    """Return the type of the file system of this device number, such as ext4."""
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split(" ")[2:3] == [number]:
                return source.split(" ")[0]
    return "unknown"


def _cache_file(key: str) -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # What is not absolute is to be ignored, says the XDG base directory specification.
    root = configured if configured.is_absolute() else Path("~/.cache").expanduser()
    return root / "brisk" / f"reading-{key}.json"


def _remembered(key: str) -> ReadSettings | None:
    with _lock:
        if key not in _known:
            found = _read(key)
            if found is None:
                return None
            _known[key] = found
        return _known[key]


def _read(key: str) -> ReadSettings | None:
    """Return what an earlier process found; None if there is nothing that can be believed."""
    try:
        with _cache_file(key).open("rb") as file:
            facts = json.loads(file.read(_CACHE_BYTES_MAX))
        return _parse(facts)
    except (OSError, RuntimeError, RecursionError, ValueError):
        return None  # RuntimeError: there is no home folder


def _parse(facts: object) -> ReadSettings:
    if not isinstance(facts, dict) or set(facts) != set(ReadSettings.__slots__):
        raise ValueError
    numbers = [facts[name] for name in ("threads", "depth", "read_bytes")]
    if any(type(number) is not int for number in numbers):
        raise ValueError
    found = ReadSettings(**facts)
    check_settings(found)
    return found


def _write(path: Path, settings: ReadSettings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(settings), file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
