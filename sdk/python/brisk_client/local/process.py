"""One child process: started in its own session, watched, logged to a file, stopped for sure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from brisk_client.local.errors import StartError
from brisk_client.local.leftovers import members_of_session
from brisk_client.local.logs import LogFile, plain_line
from brisk_client.local.state import ServiceState

_POLL_S: Final = 0.02
_TAIL_LINES: Final = 12
_KILLED_S_MAX: Final = 5.0  # SIGKILL takes effect at once unless the kernel itself is stuck
_READ_BYTES: Final = 64 * 1024
_LINE_BYTES_MAX: Final = 1024 * 1024

LineCallback = Callable[[str, str], None]  # the process' name and a line of its log
NoticeCallback = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start and how to tell that it is ready."""

    name: str
    kind: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log_file: Path
    ready_file: Path | None = None
    answers: Callable[[], Awaitable[bool]] | None = None
    standard_input: bytes | None = None
    ready_s_max: float
    stop_s_max: float


class Child:
    """A running child process."""

    def __init__(self, command: Command, on_line: LineCallback) -> None:
        self.command = command
        self.state: ServiceState | None = None  # set when ready
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._descriptor: int | None = None  # of the living process
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        """Return the process id. Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError(f"{self.command.name} was not started")
        return self._process.pid

    @property
    def was_started(self) -> bool:
        """Return whether there is, or was, a process."""
        return self._process is not None

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the process and return when it is ready.

        Raises StartError if it ends or takes too long. Cancelling leaves the process to `stop`.
        """
        if self.command.ready_file is not None:
            self.command.ready_file.unlink(missing_ok=True)
        # Shielded, because asyncio kills a process whose creation is cancelled behind our back.
        spawning = asyncio.ensure_future(self._spawn())
        try:
            await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await spawning
            raise
        try:
            async with asyncio.timeout(self.command.ready_s_max):
                await self._ready()
        except TimeoutError as exc:
            raise StartError(
                f"{self.command.name} was not ready within {self.command.ready_s_max:g} s"
                f"{self.tail()}"
            ) from exc

    async def wait(self) -> int:
        """Return the exit code once the process has ended and its log is complete.

        What it left in its session is killed.
        """
        if self._process is None or self._pump is None:
            raise RuntimeError(f"{self.command.name} was not started")
        await self._ended.wait()
        self.kill()
        code = await self._process.wait()
        await asyncio.wait({self._pump}, timeout=_KILLED_S_MAX)
        return code

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal, unless the process has ended.

        By descriptor: asyncio's own way may reap the process before its watcher does.
        """
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signum)

    async def stop(self, notice: NoticeCallback) -> None:
        """End the process: ask, wait, and kill with a word if it does not listen.

        What it started itself is ended too. Cancelling kills at once.
        """
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.command.stop_s_max):
                await self._ended.wait()
        except TimeoutError:
            notice(f"{self.command.name} did not stop within {self.command.stop_s_max:g} s: killed")
        finally:
            self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_S_MAX):
                await self.wait()

    def kill(self) -> None:
        """Kill the process, if it still runs, and all that it left in its session."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            for pid in members_of_session(self._process.pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if self.command.ready_file is not None:
            self.command.ready_file.unlink(missing_ok=True)

    def tail(self) -> str:
        """Return the last log lines, ready to be put behind a message."""
        lines = [plain_line(line) for line in self._tail]
        where = f"\n  (all of it: {self.command.log_file})"
        return "".join(f"\n  {line}" for line in lines if line) + where

    async def _spawn(self) -> None:
        stdin = asyncio.subprocess.DEVNULL
        if self.command.standard_input is not None:
            stdin = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_dying_with_us(self.command.arguments),
            env=dict(self.command.environment),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is ours alone; we stop in order
        )
        self._process = process
        self._watch_end(process.pid)
        self._pump = asyncio.create_task(self._pump_lines(process))
        if process.stdin is not None and self.command.standard_input is not None:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(self.command.standard_input)
                await process.stdin.drain()
            process.stdin.close()

    def _watch_end(self, pid: int) -> None:
        """Note the process' own end; asyncio's `wait` also waits for whoever holds its output."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:  # ended and was reaped already
            self._ended.set()
            return

        def on_end() -> None:
            loop.remove_reader(descriptor)
            self._descriptor = None
            os.close(descriptor)
            self._ended.set()

        self._descriptor = descriptor
        loop.add_reader(descriptor, on_end)

    async def _ready(self) -> None:
        while True:
            if self.exit_code is not None:
                code = await self.wait()
                raise StartError(
                    f"{self.command.name} ended with exit code {code} before it was ready"
                    f"{self.tail()}"
                )
            if self.command.ready_file is not None:
                self.state = _read_ready(self.command, self.pid)
                if self.state is not None:
                    return
            elif self.command.answers is None or await self.command.answers():
                return
            await asyncio.sleep(_POLL_S)

    async def _pump_lines(self, process: asyncio.subprocess.Process) -> None:
        """Carry the process' output to its log file and to who listens, until it is closed."""
        if process.stdout is None:
            return
        pending = b""
        with LogFile(self.command.log_file) as log:
            while part := await process.stdout.read(_READ_BYTES):
                log.write(part)
                *lines, pending = (pending + part).split(b"\n")
                pending = pending[-_LINE_BYTES_MAX:]
                for line in lines:
                    self._take_line(line)
            if pending:
                self._take_line(pending)

    def _take_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self._tail.append(text)
        self._on_line(self.command.name, text)


def _dying_with_us(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command line whose process gets SIGTERM when the launcher dies, if possible."""
    setpriv = shutil.which("setpriv")
    return arguments if setpriv is None else (setpriv, "--pdeathsig", "TERM", "--", *arguments)


def _read_ready(command: Command, pid: int) -> ServiceState | None:
    """Return what the ready file says, or None while it is not this process'."""
    if command.ready_file is None:
        return None
    try:
        facts = json.loads(command.ready_file.read_text())
        if facts["pid"] != pid:
            return None
        return ServiceState(
            name=command.name,
            kind=command.kind,
            service_id=str(facts["id"]),
            pid=pid,
            address=str(facts["grpc"]),
            metrics=str(facts["metrics"]),
            http=str(facts.get("http", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
