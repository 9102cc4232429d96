"""What a stopped cluster must not leave behind: processes, ports, sockets, shared memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (looked at, never written)
_CONNECT_S_MAX: Final = 1.0
_STAT_STATE, _STAT_SESSION = 0, 3
_OURS: Final = "brisk"


@dataclass(slots=True, kw_only=True)
class Traces:
    """What a cluster has used while it ran; only grows."""

    pids: set[int] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    sockets: set[Path] = field(default_factory=set)
    shared_memory_before: frozenset[str] = frozenset()

    @classmethod
    def begin(cls) -> Traces:
        """Return empty traces; shared memory that exists now is not ours."""
        return cls(shared_memory_before=frozenset(_shared_memory()))

    def leftovers(self) -> list[str]:
        """Return a sentence for each thing that is still there; none after a clean stop."""
        found = [f"process {pid} runs" for pid in sorted(self.pids) if _runs(pid)]
        for session in sorted(self.pids):
            found += [
                f"process {pid} of session {session} runs"
                for pid in members_of_session(session)
                if pid != session
            ]
        found += [f"port {entry} is open" for entry in sorted(self.addresses) if _is_open(entry)]
        found += [f"socket {path} exists" for path in sorted(self.sockets) if path.exists()]
        new = set(_shared_memory()) - self.shared_memory_before
        found += [f"shared memory {name} exists" for name in sorted(new) if self._is_ours(name)]
        return found

    def _is_ours(self, name: str) -> bool:
        """Others use /dev/shm too: ours carries our name or, as torch's does, our pid."""
        return _OURS in name or any(str(pid) in name.split("_") for pid in self.pids)


def members_of_session(session: int) -> list[int]:
    """Return the living processes of a session: a child that we started and its descendants."""
    members = []
    for entry in os.listdir(_PROC):  # noqa: PTH208  (names are enough, and there are thousands)
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields and int(fields[_STAT_SESSION]) == session and fields[_STAT_STATE] != "Z":
                members.append(int(entry))
    return members


def _runs(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[_STAT_STATE] not in {"Z", "X"}


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the name, or nothing if it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S_MAX):
            return True
    except OSError:
        return False


def _shared_memory() -> Iterable[str]:
    try:
        return os.listdir(_SHARED_MEMORY)  # noqa: PTH208
    except OSError:
        return ()
