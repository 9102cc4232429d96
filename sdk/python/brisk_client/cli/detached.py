"""Start a cluster that outlives this command, and stop it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from brisk_client.local.errors import AlreadyRunningError, LocalClusterError, StartError
from brisk_client.local.paths import DataFolder
from brisk_client.local.state import ClusterState, process_started, read_state

T = TypeVar("T")

_START_S_MAX: Final = 240.0
_STOP_S_MAX: Final = 120.0
_POLL_S: Final = 0.05
_TAIL_LINES: Final = 15


def start(folder: DataFolder, *, port: int, http_port: int, devices: Sequence[str]) -> ClusterState:
    """Start `brisk up` as a process of its own and return once the cluster is ready.

    Raises LocalClusterError with its last words if it is not; an interrupt stops it again.
    """
    running = read_state(folder)
    if running is not None and running.is_running:
        raise AlreadyRunningError(
            f"a cluster already runs in {folder.root} at {running.endpoint}; `brisk down` stops it"
        )
    folder.create()
    log_file = folder.logs / "up.log"
    arguments = [
        *(sys.executable, "-P", "-m", "brisk_client.cli", "up", "--quiet"),
        *("--port", str(port), "--http-port", str(http_port), "--data-dir", str(folder.root)),
        *(part for device in devices for part in ("--device", device)),
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (our own program)
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _wait_ready(folder, process)
    except BaseException:
        if process.poll() is None:
            process.terminate()
            process.wait(_STOP_S_MAX)
        raise


def _wait_ready(folder: DataFolder, process: subprocess.Popen[bytes]) -> ClusterState:
    def ready() -> ClusterState | None:
        if process.poll() is not None:
            raise StartError(f"the cluster did not start:\n{_last_words(folder)}")
        state = read_state(folder)
        return state if state is not None and state.pid == process.pid else None

    state = _poll(ready, _START_S_MAX)
    if state is None:
        raise StartError(
            f"the cluster was not ready within {_START_S_MAX:g} s:\n{_last_words(folder)}"
        )
    return state


def stop(folder: DataFolder) -> bool:
    """Stop the cluster that runs in `folder` and return whether there was one.

    Returns when it is gone. Raises LocalClusterError if it does not end.
    """
    state = read_state(folder)
    if state is None or not state.is_running:
        return False
    with suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
    gone = _poll(lambda: process_started(state.pid) != state.pid_started or None, _STOP_S_MAX)
    if gone is None:
        raise LocalClusterError(
            f"process {state.pid} has not ended within {_STOP_S_MAX:g} s; look into {folder.logs}"
        )
    return True


def _poll(find: Callable[[], T | None], within_s: float) -> T | None:
    ends_s = time.monotonic() + within_s
    while (found := find()) is None and time.monotonic() < ends_s:
        time.sleep(_POLL_S)
    return found


def _last_words(folder: DataFolder) -> str:
    try:
        lines = (folder.logs / "up.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
