"""Run a cluster in the foreground until a signal or until it cannot go on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Final

from brisk_client.cli.exits import ExitCode
from brisk_client.cli.log_view import LogView
from brisk_client.endpoint import http_url
from brisk_client.local.cluster import AsyncLocalCluster, ignore_line
from brisk_client.local.errors import LocalClusterError
from brisk_client.local.spec import ClusterSpec

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_foreground(spec: ClusterSpec, view: LogView, *, logs: bool) -> int:
    """Run the cluster of `spec` and return the exit code.

    The first signal stops it in order, the second at once. Raises LocalClusterError.
    """
    loop = asyncio.get_running_loop()
    cluster = AsyncLocalCluster(
        spec, on_line=view.line if logs else ignore_line, on_notice=view.notice
    )
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            view.notice("asked again: ending everything at once")
            cluster.kill()
            return
        asked.set()

    for signum in _SIGNALS:
        loop.add_signal_handler(signum, on_signal)
    try:
        return await _run(cluster, view, asked)
    finally:
        for signum in _SIGNALS:
            loop.remove_signal_handler(signum)


async def _run(cluster: AsyncLocalCluster, view: LogView, asked: asyncio.Event) -> int:
    waiting = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(cluster.start())
    try:
        await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            view.notice("stopping before it was up")
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, LocalClusterError):
                await starting
            return ExitCode.INTERRUPTED
        await starting
        view.notice(f"OpenAI-compatible endpoint: {http_url(cluster.http_endpoint)}")
        view.notice(f"ready at {cluster.endpoint}; stop with Ctrl-C")
        await _until_asked(cluster, waiting)
        view.notice("stopping; Ctrl-C again ends it at once")
        return ExitCode.OK
    finally:
        waiting.cancel()
        await cluster.stop()
        view.notice("stopped")


async def _until_asked(cluster: AsyncLocalCluster, waiting: asyncio.Task[bool]) -> None:
    """Return when a signal asks to stop. Raises GaveUpError when the cluster cannot go on."""
    failing = asyncio.create_task(cluster.failed())
    try:
        await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
    finally:
        failing.cancel()
        with contextlib.suppress(asyncio.CancelledError, LocalClusterError):
            await failing
