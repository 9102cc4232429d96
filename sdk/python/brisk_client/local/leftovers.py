"""What a stopped cluster must not leave behind: processes, ports, sockets, shared memory.

A port counts only if a process of ours listens on it: one that we started, one of its session, or
one whose environment names our data folder. Another program may have got a port that we released.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (looked at, never written)
_LISTENS: Final = "0A"  # the kernel's TCP_LISTEN
_TCP_ADDRESS, _TCP_STATE, _TCP_INODE = 1, 3, 9
_STAT_STATE, _STAT_SESSION = 0, 3
_OURS: Final = "brisk"


@dataclass(slots=True, kw_only=True)
class Traces:
    """What a cluster has used while it ran; only grows."""

    pids: set[int] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    sockets: set[Path] = field(default_factory=set)
    shared_memory_before: frozenset[str] = frozenset()
    folder: Path | None = None  # the data folder: who has it in its environment is ours

    @classmethod
    def begin(cls) -> Traces:
        """Return empty traces; shared memory that exists now is not ours."""
        return cls(shared_memory_before=frozenset(_shared_memory()))

    def leftovers(self) -> list[str]:
        """Return a sentence for each thing that is still there; none after a clean stop.

        A port on which a process of others listens by now is not ours any more.
        """
        found = [f"process {pid} runs" for pid in sorted(self.pids) if _runs(pid)]
        for session in sorted(self.pids):
            found += [
                f"process {pid} of session {session} runs"
                for pid in members_of_session(session)
                if pid != session
            ]
        open_ports = {port for port, pid in self._listeners() if self._is_our_process(pid)}
        found += [
            f"port {entry} is open"
            for entry in sorted(self.addresses)
            if int(entry.rpartition(":")[2]) in open_ports
        ]
        found += [f"socket {path} exists" for path in sorted(self.sockets) if path.exists()]
        new = set(_shared_memory()) - self.shared_memory_before
        found += [f"shared memory {name} exists" for name in sorted(new) if self._is_ours(name)]
        return found

    def _listeners(self) -> list[tuple[int, int]]:
        """Return port and process of whoever listens on one of our ports, as far as we may see."""
        ports = {int(entry.rpartition(":")[2]) for entry in self.addresses}
        sockets = {
            f"socket:[{inode}]": port
            for inode, port in _listening_sockets().items()
            if port in ports
        }
        if not sockets:
            return []
        return [
            (sockets[link], pid) for pid in _pids() for link in _open_files(pid) if link in sockets
        ]

    def _is_our_process(self, pid: int) -> bool:
        fields = _stat(pid)
        if pid in self.pids or (fields and int(fields[_STAT_SESSION]) in self.pids):
            return True
        return self.folder is not None and _knows_folder(pid, self.folder)

    def _is_ours(self, name: str) -> bool:
        """Others use /dev/shm too: ours carries our name or, as torch's does, our pid."""
        return _OURS in name or any(str(pid) in name.split("_") for pid in self.pids)


def members_of_session(session: int) -> list[int]:
    """Return the living processes of a session: a child that we started and its descendants."""
    members = []
    for pid in _pids():
        fields = _stat(pid)
        if fields and int(fields[_STAT_SESSION]) == session and fields[_STAT_STATE] != "Z":
            members.append(pid)
    return members


def _pids() -> list[int]:
    entries = os.listdir(_PROC)  # noqa: PTH208  (names are enough, and there are thousands)
    return [int(entry) for entry in entries if entry.isdigit()]


def _runs(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[_STAT_STATE] not in {"Z", "X"}


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the name, or nothing if it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _listening_sockets() -> Mapping[str, int]:
    """Return the port of each listening TCP socket by its inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:  # no IPv6 here
            continue
        for fields in map(str.split, lines):
            if fields[_TCP_STATE] == _LISTENS:
                found[fields[_TCP_INODE]] = int(fields[_TCP_ADDRESS].rpartition(":")[2], 16)
    return found


def _open_files(pid: int) -> Iterable[str]:
    """Return what a process has open; nothing of another user's, which is none of ours."""
    folder = _PROC / str(pid) / "fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(folder / name)  # noqa: PTH115  (a text such as socket:[1], no path)
        except OSError:
            continue


def _knows_folder(pid: int, folder: Path) -> bool:
    """Return whether a BRISK_ variable of a process has `folder` or a path below it."""
    try:
        entries = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    root = os.fsencode(folder)
    values = [entry.partition(b"=")[2] for entry in entries if entry.startswith(b"BRISK_")]
    return any(value == root or value.startswith(root + b"/") for value in values)


def _shared_memory() -> Iterable[str]:
    try:
        return os.listdir(_SHARED_MEMORY)  # noqa: PTH208
    except OSError:
        return ()
