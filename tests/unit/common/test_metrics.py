"""A process can be asked how it is at any time, and says so when its event loop stood still."""

import asyncio
import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.common import metrics
from services.common.errors import ConfigError
from services.common.metrics import LOOP_BLOCKED, MetricsServer, start_metrics, watch_loop_lag


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    running = start_metrics("127.0.0.1:0")
    yield running
    running.close()


def scrape(server: MetricsServer) -> str:
    connection = http.client.HTTPConnection(server.address, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_metrics_are_served_on_a_port_that_the_kernel_chose(server: MetricsServer) -> None:
    assert server.address == f"127.0.0.1:{server.port}"
    for _ in range(20):  # more than it answers at a time
        assert "brisk_event_loop_lag_seconds" in scrape(server)


def test_a_taken_port_is_refused_by_the_settings_name(server: MetricsServer) -> None:
    with pytest.raises(ConfigError, match="cannot listen on") as caught:
        start_metrics(server.address, setting="BRISK_DEMO_METRICS_LISTEN")
    assert caught.value.setting == "BRISK_DEMO_METRICS_LISTEN"


def test_a_closed_server_leaves_its_port_free() -> None:
    first = start_metrics("127.0.0.1:0")
    first.close()
    start_metrics(first.address).close()


def test_silent_clients_neither_block_others_nor_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 60.0)  # noqa: SLF001 - outlast the test
    server = start_metrics("127.0.0.1:0")
    with ExitStack() as stack:
        stack.callback(server.close)
        address = ("127.0.0.1", server.port)
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(7)]
        assert "brisk_" in scrape(server)
        silent += [stack.enter_context(socket.create_connection(address)) for _ in range(2)]
        hung_up_on, _, _ = select.select(silent, [], [], 10.0)
        assert hung_up_on
        assert hung_up_on[0].recv(1) == b""


def test_a_client_that_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.05)  # noqa: SLF001
    server = start_metrics("127.0.0.1:0")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent:
            assert silent.recv(1) == b""
    finally:
        server.close()


def this_function_blocks(seconds: float) -> None:
    time.sleep(seconds)


def join_watchdogs() -> None:
    """Let the watching threads finish what they have to say."""
    for thread in threading.enumerate():
        if thread.name == "loop-watchdog":
            thread.join(10.0)


async def watched(*blocks_s: float) -> list[Any]:
    with capture_logs() as lines:
        task = asyncio.create_task(watch_loop_lag())
        for seconds in blocks_s:
            await asyncio.sleep(0.02)  # let the watch beat
            this_function_blocks(seconds)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        join_watchdogs()
    return [line for line in lines if line["event"] == "event loop blocked"]


async def test_a_loop_that_stands_still_is_logged_with_what_it_was_doing() -> None:
    before = LOOP_BLOCKED._value.get()  # noqa: SLF001 - the library has no reader
    (line,) = await watched(0.5)
    assert "this_function_blocks" in line["stack"]
    assert LOOP_BLOCKED._value.get() >= before + 1  # noqa: SLF001


async def test_a_loop_that_stands_still_again_and_again_is_logged_once_but_counted() -> None:
    before = LOOP_BLOCKED._value.get()  # noqa: SLF001
    assert len(await watched(0.4, 0.4)) == 1
    assert LOOP_BLOCKED._value.get() >= before + 2  # noqa: SLF001


async def test_the_watch_leaves_no_thread_behind() -> None:
    await watched(0.0)
    assert "loop-watchdog" not in {thread.name for thread in threading.enumerate()}
