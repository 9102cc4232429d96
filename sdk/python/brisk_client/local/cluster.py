"""A whole cluster on this machine: started, supervised, and stopped without a trace.

Redis first, then the services side by side. Stopping goes along the path of a request: router,
workers, scheduler, store manager, Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from datetime import UTC, datetime
from typing import Self

from brisk_client.local.errors import MissingError
from brisk_client.local.leftovers import Traces
from brisk_client.local.membership import wait_for_members
from brisk_client.local.process import Command, LineCallback, NoticeCallback
from brisk_client.local.redis import RedisServer, choose_server
from brisk_client.local.spec import (
    STOP_ORDER,
    ClusterSpec,
    redis_command,
    router_command,
    service_commands,
)
from brisk_client.local.state import (
    ClusterState,
    ServiceState,
    folder_lock,
    process_started,
    remove_state,
    write_state,
)
from brisk_client.local.supervisor import Supervisor


def ignore_line(_name: str, _line: str) -> None:
    """Do nothing: the log files have every line."""


def ignore_notice(_text: str) -> None:
    """Do nothing."""


class AsyncLocalCluster:
    """A cluster as child processes of this one; started once, used in one event loop.

    All methods raise LocalClusterError. `LocalCluster` is the same without an event loop.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        *,
        on_line: LineCallback = ignore_line,
        on_notice: NoticeCallback = ignore_notice,
    ) -> None:
        self.spec = spec
        self._supervisor = Supervisor(on_line, on_notice)
        self.traces.folder = spec.folder.root
        self._redis: RedisServer | None = None
        self._redis_url = ""
        self._started_at = ""
        self._endpoint = ""
        self._http_endpoint = ""
        self._stack = contextlib.ExitStack()
        self._stopping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and return when the router can serve.

        Failing or cancelled, it leaves nothing running.
        """
        if importlib.util.find_spec("services") is None:
            raise MissingError(
                "only the client is installed here, not the services; install 'brisk[all]' "
                "from a checkout of the repository"
            )
        self.spec.folder.create()
        self._stack.enter_context(folder_lock(self.spec.folder))
        try:
            self._redis_url = self.spec.redis_url or await self._start_redis()
            await self._supervisor.start(service_commands(self.spec, self._redis_url))
            router = self.process("router")
            self._endpoint, self._http_endpoint = router.address, router.http
            await wait_for_members(self._endpoint, self.spec, self._supervisor.dead)
            self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
            self._publish()
            self._supervisor.keep(self._successor, self._publish)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything in order; a second call waits for the first. Cancelling kills at once."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        try:
            await asyncio.shield(self._stopping)
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill every process at once; `stop` has still to be awaited."""
        self._supervisor.kill()

    async def failed(self) -> None:
        """Wait until a service has died too often, and raise GaveUpError."""
        await self._supervisor.failed()

    @property
    def endpoint(self) -> str:
        """Return the router's address; it stays when the router is restarted."""
        return self._endpoint

    @property
    def http_endpoint(self) -> str:
        """Return the address of the router's OpenAI-compatible endpoint; it stays as well."""
        return self._http_endpoint

    @property
    def redis_url(self) -> str:
        """Return the URL of the services' Redis; it holds the password."""
        return self._redis_url

    @property
    def redis_pid(self) -> int | None:
        """Return our Redis' process id, or None if it is an external one."""
        return self._supervisor.pid("redis")

    @property
    def traces(self) -> Traces:
        """Return what must be gone after the stop."""
        return self._supervisor.traces

    @property
    def services(self) -> tuple[ServiceState, ...]:
        """Return the services that run, sorted by name."""
        return self._supervisor.services

    def process(self, name: str) -> ServiceState:
        """Return the service called `name`, or the first of that kind. Raises LookupError."""
        for state in self.services:
            if name in {state.name, state.kind}:
                return state
        raise LookupError(f"no {name} runs")

    async def wait_exit(self, pid: int, timeout_s: float) -> int:
        """Return the exit code of a service that ends. Raises TimeoutError."""
        return await self._supervisor.wait_exit(pid, timeout_s)

    async def wait_restarted(self, name: str, old_pid: int, timeout_s: float) -> ServiceState:
        """Return the service that took the place of process `old_pid`. Raises TimeoutError."""
        return await self._supervisor.wait_restarted(name, old_pid, timeout_s)

    async def _stop(self) -> None:
        try:
            await self._supervisor.stop(STOP_ORDER)
        finally:
            if self._redis is not None:
                self._redis.remove_socket()
            if self._started_at:
                remove_state(self.spec.folder)
            self._stack.close()

    async def _start_redis(self) -> str:
        self._redis = await choose_server(self.spec.folder)
        self.traces.sockets.add(self._redis.socket)
        await self._supervisor.start([redis_command(self.spec, self._redis)])
        return self._redis.url

    def _publish(self) -> None:
        """Tell others where the cluster is."""
        pid = os.getpid()
        state = ClusterState(
            pid=pid,
            pid_started=process_started(pid) or 0,
            started_at=self._started_at,
            endpoint=self._endpoint,
            http_endpoint=self._http_endpoint,
            redis_pid=self.redis_pid,
            services=self.services,
        )
        write_state(self.spec.folder, state)

    def _successor(self, command: Command) -> Command:
        """Return the command for a restart: the router keeps the ports that clients know."""
        if command.kind != "router":
            return command
        port, http_port = (
            int(address.rpartition(":")[2]) for address in (self._endpoint, self._http_endpoint)
        )
        return router_command(self.spec, self._redis_url, port, http_port)
