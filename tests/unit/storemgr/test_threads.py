"""Work on a thread is never lost sight of: cancelling stops it and waits for its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.log import bind_request_id, bound_request_id
from services.common.names import RequestId
from services.storemgr import threads
from services.storemgr.threads import begin, finish


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "test") as pool:
        yield pool


async def test_the_result_or_the_error_comes_back(pool: ThreadPoolExecutor) -> None:
    def fail() -> None:
        raise OSError("no")

    assert await finish(begin(pool, max, 1, 2)) == 2
    with pytest.raises(OSError, match="no"):
        await finish(begin(pool, fail))


async def test_the_thread_logs_with_the_request_s_id(pool: ThreadPoolExecutor) -> None:
    bind_request_id(RequestId("r-1"))
    assert await finish(begin(pool, bound_request_id)) == "r-1"


async def test_cancelling_stops_the_work_and_waits_for_it(pool: ThreadPoolExecutor) -> None:
    started, stop, clean_up = threading.Event(), threading.Event(), threading.Event()
    is_clean = False

    def work() -> None:
        nonlocal is_clean
        started.set()
        assert stop.wait(10)
        assert clean_up.wait(10)
        is_clean = True
        raise OSError("nobody looks at this")

    task = asyncio.ensure_future(finish(begin(pool, work), stop=stop.set))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    assert await asyncio.to_thread(stop.wait, 10)
    assert not task.done()
    clean_up.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_clean


async def test_the_wait_for_a_thread_that_hangs_is_bounded(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "STOP_S_MAX", 0.01)
    stop = threading.Event()
    task = asyncio.ensure_future(finish(begin(pool, stop.wait, 10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stop.set()
