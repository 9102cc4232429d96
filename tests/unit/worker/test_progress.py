"""The feed's promise: a slow reader gets the newest state, and the end is never held back."""

import asyncio
import threading
import time

from services.common.model import StartPhase, StartProgress
from services.worker.progress import ProgressFeed


def at(done: int) -> StartProgress:
    return StartProgress(phase=StartPhase.LOAD, bytes_done=done)


async def test_only_the_newest_state_is_read() -> None:
    feed = ProgressFeed()
    for done in range(5):
        feed.post(at(done))
    await asyncio.sleep(0)
    reader = feed.read(0)
    assert (await anext(reader)).bytes_done == 4
    await reader.aclose()


async def test_states_posted_by_a_thread_wake_the_reader() -> None:
    feed = ProgressFeed()
    threading.Timer(0.01, feed.post, (at(7),)).start()
    reader = feed.read(0)
    async with asyncio.timeout(10):
        assert (await anext(reader)).bytes_done == 7
    await reader.aclose()


async def test_the_end_comes_at_once_after_the_newest_state() -> None:
    feed = ProgressFeed()
    seen: list[int] = []
    has_begun = asyncio.Event()

    async def read() -> None:
        async for progress in feed.read(3600):
            seen.append(progress.bytes_done)
            has_begun.set()

    reader = asyncio.create_task(read())
    feed.post(at(1))
    await has_begun.wait()
    feed.post(at(2))  # comes within the pause
    began_s = time.monotonic()
    asyncio.get_running_loop().call_soon(feed.close)
    await reader
    assert time.monotonic() - began_s < 10
    assert seen == [1, 2]
