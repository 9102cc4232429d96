"""The memory that this process may use: the host's, or what its control groups allow of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")  # lines of "number:controllers:/path"
_MEMINFO: Final = Path("/proc/meminfo")
_AVAILABLE: Final = "MemAvailable:"


def memory_limit_bytes(own: Path = _OWN_CGROUPS, root: Path = _CGROUPS) -> int:
    """Return the host's memory, or what our control groups allow of it if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder, is_second in _groups(own, root):
        limit = _number(folder / ("memory.max" if is_second else "memory.limit_in_bytes"))
        if limit is not None:
            total = min(total, limit)
    return total


def memory_available_bytes(
    own: Path = _OWN_CGROUPS, root: Path = _CGROUPS, meminfo: Path = _MEMINFO
) -> int:
    """Return what could be taken now without taking it from anyone: caches count as free."""
    available = memory_limit_bytes(own, root)
    for line in _read(meminfo).splitlines():
        if line.startswith(_AVAILABLE):
            available = min(available, int(line.split()[1]) * 1024)
    for folder, is_second in _groups(own, root):
        limit = _number(folder / ("memory.max" if is_second else "memory.limit_in_bytes"))
        used = _number(folder / ("memory.current" if is_second else "memory.usage_in_bytes"))
        if limit is None or used is None:
            continue
        cached = _stat(folder, "inactive_file" if is_second else "total_inactive_file")
        available = min(available, max(0, limit - max(0, used - cached)))
    return available


def _groups(own: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each control group that limits our memory, and whether of version 2."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = root
        elif "memory" in controllers.split(","):
            base = root / "memory"
        else:
            continue
        for level in (Path(), *Path(path.strip("/")).parents, Path(path.strip("/"))):
            yield base / level, not controllers


def _number(path: Path) -> int | None:
    """Return the number in a file; None without one, such as "max" where there is no limit."""
    text = _read(path)
    return int(text) if text.isdigit() else None


def _stat(folder: Path, name: str) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _read(path: Path) -> str:
    """Return a small file's text, or nothing if it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
