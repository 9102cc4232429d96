"""A device's queue: one reader at a time, the urgent first, and predictions that are checked."""

from __future__ import annotations

import asyncio

import pytest

from services.storemgr import io_queue
from services.storemgr.io_queue import IoPriority, IoQueue

MIB = 1 << 20


class Disk:
    """A device whose time is told by the test: it gives 1 MiB per second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.log: list[str] = []
        self.errors: list[tuple[float, float]] = []
        self.queue = IoQueue(lambda predicted, took: self.errors.append((predicted, took)))
        self.is_read = asyncio.Event()
        monkeypatch.setattr(io_queue, "monotonic_s", lambda: self.now_s)

    async def read(self, name: str, slices: int, priority: IoPriority) -> None:
        with self.queue.job(priority, slices * MIB) as job:
            for _ in range(slices):
                async with job.slice(MIB):
                    self.log.append(name)
                    await asyncio.sleep(0)  # others run meanwhile
                    self.now_s += 1.0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_jobs_of_one_priority_go_in_the_order_they_came(disk: Disk) -> None:
    await asyncio.gather(
        disk.read("a", 3, IoPriority.REQUEST), disk.read("b", 2, IoPriority.REQUEST)
    )
    assert "".join(disk.log) == "aaabb"


async def test_an_urgent_job_waits_for_one_slice_at_most(disk: Disk) -> None:
    async def request() -> None:
        while len(disk.log) < 2:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
        await disk.read("r", 2, IoPriority.REQUEST)

    await asyncio.gather(
        disk.read("b", 4, IoPriority.BACKGROUND), disk.read("p", 3, IoPriority.PREFETCH), request()
    )
    assert "".join(disk.log) == "bprrppbbb"


async def test_a_job_that_becomes_urgent_overtakes(disk: Disk) -> None:
    with disk.queue.job(IoPriority.REQUEST, MIB) as first:
        async with first.slice(MIB):
            slow = asyncio.create_task(disk.read("slow", 1, IoPriority.PREFETCH))
            with disk.queue.job(IoPriority.BACKGROUND, MIB) as late:

                async def read_late() -> None:
                    async with late.slice(MIB):
                        disk.log.append("late")

                reading = asyncio.create_task(read_late())
                await asyncio.sleep(0)
                late.hurry(IoPriority.REQUEST)
                disk.now_s += 1.0
                first_done = True
        assert first_done
        await asyncio.gather(slow, reading)
    assert disk.log == ["late", "slow"]


async def test_bandwidth_is_measured_and_the_end_predicted(disk: Disk) -> None:
    assert disk.queue.bytes_per_s == 0
    assert disk.queue.busy_s() == 0
    await disk.read("a", 4, IoPriority.REQUEST)
    assert disk.queue.bytes_per_s == pytest.approx(MIB)
    assert disk.errors == []  # nothing was known when it came
    with (
        disk.queue.job(IoPriority.BACKGROUND, 3 * MIB),
        disk.queue.job(IoPriority.REQUEST, 2 * MIB),
    ):
        assert disk.queue.queued_bytes == 5 * MIB
        assert disk.queue.busy_s() == pytest.approx(5.0)
        assert disk.queue.busy_s(IoPriority.REQUEST, MIB) == pytest.approx(3.0)
    disk.errors.clear()
    await disk.read("a", 2, IoPriority.REQUEST)
    assert disk.errors == [pytest.approx((2.0, 2.0))]
    assert disk.queue.queued_bytes == 0


async def test_the_estimate_follows_a_device_that_changes(disk: Disk) -> None:
    disk.queue.measure(1 << 30, 1.0)
    for _ in range(8):
        disk.queue.measure(256 << 20, 1.0)
    assert disk.queue.bytes_per_s == pytest.approx(256 << 20, rel=0.05)


@pytest.mark.parametrize("steps", range(4))
async def test_a_job_that_is_given_up_holds_nobody_up(disk: Disk, steps: int) -> None:
    with disk.queue.job(IoPriority.REQUEST, MIB) as first:
        async with first.slice(MIB):
            given_up = asyncio.create_task(disk.read("x", 1, IoPriority.REQUEST))
            after = asyncio.create_task(disk.read("y", 1, IoPriority.REQUEST))
            await asyncio.sleep(0)
            if not steps:
                given_up.cancel()
        for _ in range(steps - 1):
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        async with asyncio.timeout(5):
            await after
    assert disk.log[-1] == "y"


async def test_a_slice_that_fails_lets_the_next_one_in(disk: Disk) -> None:
    with disk.queue.job(IoPriority.REQUEST, MIB) as job:
        with pytest.raises(OSError, match="broken"):
            async with job.slice(MIB):
                raise OSError("broken")
        assert disk.queue.bytes_per_s == 0
        async with asyncio.timeout(5):
            await disk.read("y", 1, IoPriority.BACKGROUND)
