"""A local cluster for callers without an event loop: tests, benchmarks, scripts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from brisk_client.local.cluster import AsyncLocalCluster, ignore_line, ignore_notice
from brisk_client.local.leftovers import Traces
from brisk_client.local.paths import DataFolder
from brisk_client.local.process import LineCallback, NoticeCallback
from brisk_client.local.spec import ClusterSpec, NodeSpec, nodes_of
from brisk_client.local.state import ServiceState
from brisk_client.loop_thread import LoopThread

REDIS_URL_VARIABLE = "BRISK_REDIS_URL"


class LocalCluster:
    """Redis and the services on this machine, run by a background thread; once, with `with`.

    `devices` are those of a single node, one worker each; `nodes` several nodes instead.
    `router_port` and `http_port` 0 let the kernel choose. `environment` reaches every service.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        devices: Sequence[str] | None = None,
        nodes: Sequence[NodeSpec] | None = None,
        router_port: int = 0,
        http_port: int = 0,
        redis_url: str | None = None,
        drain_s: float = 10.0,
        environment: Mapping[str, str] = MappingProxyType({}),
        on_line: LineCallback = ignore_line,
        on_notice: NoticeCallback = ignore_notice,
    ) -> None:
        self.spec = ClusterSpec(
            folder=DataFolder.default() if data_dir is None else DataFolder.at(data_dir),
            nodes=tuple(nodes) if nodes else nodes_of(devices),
            router_port=router_port,
            http_port=http_port,
            redis_url=redis_url or os.environ.get(REDIS_URL_VARIABLE),
            drain_s=drain_s,
            environment=environment,
        )
        self._inner = AsyncLocalCluster(self.spec, on_line=on_line, on_notice=on_notice)
        self._loop: LoopThread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and return when the router can serve. Raises LocalClusterError.

        Failing or interrupted, it leaves nothing running.
        """
        self._loop = LoopThread("brisk-cluster")
        try:
            self._loop.run(self._inner.start())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything in order. Idempotent; an interrupt kills what still runs."""
        if self._loop is None:
            return
        try:
            self._stop(self._loop)
        finally:
            self._loop.close()
            self._loop = None

    @property
    def router_address(self) -> str:
        """Return where clients connect."""
        return self._inner.endpoint

    @property
    def http_address(self) -> str:
        """Return where OpenAI's clients connect: `http://<it>/v1`."""
        return self._inner.http_endpoint

    @property
    def scheduler_address(self) -> str:
        """Return where the scheduler listens."""
        return self.process("scheduler").address

    @property
    def worker_addresses(self) -> tuple[str, ...]:
        """Return where the workers listen, sorted by the workers' names."""
        return self._addresses("worker")

    @property
    def storemgr_addresses(self) -> tuple[str, ...]:
        """Return where the store managers listen, sorted by their names."""
        return self._addresses("storemgr")

    @property
    def redis_url(self) -> str:
        """Return the URL of the services' Redis; it holds the password."""
        return self._inner.redis_url

    @property
    def redis_pid(self) -> int | None:
        """Return our Redis' process id, or None if it is an external one."""
        return self._inner.redis_pid

    @property
    def services(self) -> tuple[ServiceState, ...]:
        """Return the services that run, sorted by name."""
        return self._inner.services

    @property
    def traces(self) -> Traces:
        """Return what must be gone after the stop; `traces.leftovers()` says what is not."""
        return self._inner.traces

    def process(self, name: str) -> ServiceState:
        """Return the service called `name`, or the first of that kind. Raises LookupError."""
        return self._inner.process(name)

    def log_file(self, name: str) -> Path:
        """Return the log of the service called `name`."""
        return self.spec.folder.logs / f"{name}.log"

    def wait_exit(self, pid: int, *, timeout_s: float = 60.0) -> int:
        """Return the exit code of a service that ends. Raises TimeoutError."""
        return self._thread.run(self._inner.wait_exit(pid, timeout_s))

    def wait_restarted(self, name: str, *, old_pid: int, timeout_s: float = 120.0) -> ServiceState:
        """Return the service that took the place of process `old_pid`. Raises TimeoutError."""
        return self._thread.run(self._inner.wait_restarted(name, old_pid, timeout_s))

    def _stop(self, loop: LoopThread) -> None:
        try:
            loop.run(self._inner.stop())
        except BaseException:
            loop.run(self._inner.stop())  # interrupted: all is being killed, so this is quick
            raise

    def _addresses(self, kind: str) -> tuple[str, ...]:
        return tuple(state.address for state in self.services if state.kind == kind)

    @property
    def _thread(self) -> LoopThread:
        if self._loop is None:
            raise RuntimeError("the cluster does not run")
        return self._loop
