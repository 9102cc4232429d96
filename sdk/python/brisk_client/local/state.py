"""What a running local cluster tells others: the state file, and whether it is still true."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from brisk_client.local.errors import AlreadyRunningError
from brisk_client.local.paths import DataFolder

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """A service process as its ready file describes it."""

    name: str  # unique in its cluster: "router", "worker-1"
    kind: str
    service_id: str
    pid: int
    address: str
    metrics: str
    http: str = ""  # empty: offers no HTTP


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """A cluster that some process runs in a data folder."""

    pid: int
    pid_started: int  # the kernel's start time of `pid`, so that a reused pid is not believed
    started_at: str  # wall clock, for people
    endpoint: str
    http_endpoint: str
    redis_pid: int | None  # None: an external Redis
    services: tuple[ServiceState, ...]

    @property
    def is_running(self) -> bool:
        """Return whether the process that wrote this still runs."""
        return process_started(self.pid) == self.pid_started

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the state in `text`. Raises ValueError, KeyError or TypeError if it is none."""
        value: dict[str, Any] = json.loads(text)
        if value.pop("version") != _VERSION:
            raise ValueError("another version wrote this file")
        services = tuple(ServiceState(**entry) for entry in value.pop("services"))
        return cls(services=services, **value)


def read_state(folder: DataFolder) -> ClusterState | None:
    """Return the state in `folder`, or None if there is none that we can read."""
    try:
        return ClusterState.from_json(folder.state_file.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_state(folder: DataFolder, state: ClusterState) -> None:
    """Replace the state file in one step."""
    draft = folder.state_file.with_suffix(".tmp")
    draft.write_text(state.to_json())
    draft.replace(folder.state_file)


def remove_state(folder: DataFolder) -> None:
    """Remove the state file; nobody is told about a cluster that is gone."""
    folder.state_file.unlink(missing_ok=True)


def process_started(pid: int) -> int | None:
    """Return the start time of process `pid` in kernel ticks, or None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


@contextmanager
def folder_lock(folder: DataFolder) -> Iterator[None]:
    """Hold the folder's lock: one cluster per data folder. The kernel drops it with the process.

    Raises AlreadyRunningError or FolderError.
    """
    try:
        descriptor = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise folder.refused(exc) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        state = read_state(folder)
        where = f" at {state.endpoint} (process {state.pid})" if state else ""
        raise AlreadyRunningError(
            f"a cluster already runs in {folder.root}{where}; stop it with `brisk down`, or "
            "choose another folder with --data-dir"
        ) from exc
    try:
        yield
    finally:
        os.close(descriptor)
