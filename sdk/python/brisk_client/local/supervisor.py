"""Keep child processes running: start, restart within limits, stop in order, remember exits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from brisk_client.local.errors import GaveUpError, StartError
from brisk_client.local.leftovers import Traces
from brisk_client.local.process import Child, Command, LineCallback, NoticeCallback
from brisk_client.local.restart import RestartLimit
from brisk_client.local.state import ServiceState

T = TypeVar("T")
_EXITS_MAX: Final = 1_000


class Supervisor:
    """The owner of all child processes of one cluster."""

    def __init__(self, on_line: LineCallback, on_notice: NoticeCallback) -> None:
        self.traces = Traces.begin()
        self._on_line = on_line
        self._on_notice = on_notice
        self._children: dict[str, Child] = {}
        self._exits: dict[int, int] = {}  # pid -> exit code, of those that ended by themselves
        self._keepers: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failure: GaveUpError | None = None
        self._failed = asyncio.Event()

    @property
    def services(self) -> tuple[ServiceState, ...]:
        """Return the services that run, sorted by name."""
        states = (child.state for child in self._children.values() if child.exit_code is None)
        return tuple(sorted((state for state in states if state), key=lambda state: state.name))

    def pid(self, name: str) -> int | None:
        """Return the id of the process called `name`, or None if there is none."""
        return self._children[name].pid if name in self._children else None

    async def start(self, commands: Sequence[Command]) -> None:
        """Start processes side by side; return when all are ready. Raises StartError."""
        starts = [asyncio.create_task(self._start(command)) for command in commands]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    def dead(self) -> str | None:
        """Return what ended first of all that should run, with its last log lines."""
        for child in self._children.values():
            if child.exit_code is not None:
                return f"{child.command.name} ended with exit code {child.exit_code}{child.tail()}"
        return None

    def keep(self, successor: Callable[[Command], Command], on_change: Callable[[], None]) -> None:
        """From now on start each process again that ends, with the command `successor` returns."""
        for name in self._children:
            self._keepers.add(asyncio.create_task(self._keep(name, successor, on_change)))

    async def stop(self, order: Sequence[str]) -> None:
        """Stop the processes, kind by kind. Cancelling kills what still runs."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        try:
            for kind in order:
                await asyncio.gather(
                    *(
                        child.stop(self._on_notice)
                        for child in self._children.values()
                        if child.command.kind == kind
                    )
                )
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill every process at once; `stop` has still to be awaited."""
        for child in self._children.values():
            child.kill()

    async def failed(self) -> None:
        """Wait until some process was given up, and raise GaveUpError."""
        await self._failed.wait()
        if self._failure is not None:
            raise self._failure

    async def wait_exit(self, pid: int, timeout_s: float) -> int:
        """Return the exit code of a process that ends by itself. Raises TimeoutError."""
        return await self._wait_until(lambda: self._exits.get(pid), timeout_s)

    async def wait_restarted(self, name: str, old_pid: int, timeout_s: float) -> ServiceState:
        """Return the service that took the place of process `old_pid`. Raises TimeoutError."""

        def successor() -> ServiceState | None:
            found = [state for state in self.services if state.name == name]
            return found[0] if found and found[0].pid != old_pid else None

        return await self._wait_until(successor, timeout_s)

    async def _wait_until(self, find: Callable[[], T | None], timeout_s: float) -> T:
        async with asyncio.timeout(timeout_s):
            while (found := find()) is None:
                self._changed.clear()
                await self._changed.wait()
            return found

    async def _start(self, command: Command) -> None:
        child = Child(command, self._on_line)
        self._children[command.name] = child
        self._on_notice(f"starting {command.name}")
        try:
            await child.start()
        finally:
            if child.was_started:
                self.traces.pids.add(child.pid)
        if child.state is not None:
            state = child.state
            self.traces.addresses |= {state.address, state.metrics}
            self.traces.addresses |= {state.http} if state.http else set()
        self._on_notice(f"{command.name} is ready")
        self._changed.set()

    async def _keep(
        self, name: str, successor: Callable[[Command], Command], on_change: Callable[[], None]
    ) -> None:
        limit = RestartLimit()
        while True:
            child = self._children[name]
            code = await child.wait()
            self._note_exit(child.pid, code)
            pause_s = limit.next_pause_s(asyncio.get_running_loop().time())
            if pause_s is None:
                self._give_up(child, code)
                return
            self._on_notice(f"{name} ended with exit code {code}; starting it again")
            child.kill()  # what it may have left in its session
            await asyncio.sleep(pause_s)
            try:
                await self._start(successor(child.command))
            except StartError as error:
                self._on_notice(str(error))
                await self._children[name].stop(self._on_notice)
            else:
                on_change()

    def _note_exit(self, pid: int, code: int) -> None:
        if len(self._exits) >= _EXITS_MAX:
            self._exits.pop(next(iter(self._exits)))
        self._exits[pid] = code
        self._changed.set()

    def _give_up(self, child: Child, code: int) -> None:
        self._failure = GaveUpError(
            f"{child.command.name} ended with exit code {code}, too often to go on{child.tail()}"
        )
        self._failed.set()
