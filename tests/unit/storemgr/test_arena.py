"""The arena's promise: one copy for all, never overwritten while in use, nothing lost or leaked."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import brisk_native
import pytest

from services.common.errors import DataLossError, FailedPreconditionError, UnavailableError
from services.storemgr.arena_memory import NativeMemory, chunk_bytes_for
from services.storemgr.io_queue import IoPriority
from services.storemgr.manifest import Manifest
from tests.unit.storemgr.arenas import CHUNK, House, buffers, mapped, memory_of, wait

pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="the arena needs the compiled loader"
)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def memory() -> Iterator[NativeMemory]:
    with memory_of(4) as memory:
        yield memory


@pytest.fixture
def house(tmp_path: Path, memory: NativeMemory, threads: ThreadPoolExecutor) -> House:
    return House(tmp_path, memory, threads)


def contents(house: House, manifest: Manifest) -> list[bytes]:
    folder = house.folder / manifest.name
    return [(folder / file.name).read_bytes() for file in manifest.weights]


async def test_all_files_of_a_model_lie_in_memory_as_on_the_disk(house: House) -> None:
    manifest = house.model("m", CHUNK + 5, 100, 0)
    mapping = await house.bring(manifest)
    assert mapping is not None
    assert mapped(mapping) == contents(house, manifest)
    facts = house.arena.facts()
    assert (facts.size_bytes, facts.free_bytes, facts.in_use_bytes) == (4 * CHUNK, CHUNK, 0)
    assert house.names() == ["m"]


async def test_all_who_want_a_model_share_one_reading_and_one_copy(
    house: House, memory: NativeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = memory.read

    def read(*args: Any) -> None:
        reads.append(args[0])
        real(*args)

    monkeypatch.setattr(memory, "read", read)
    manifest = house.model("m", 2 * CHUNK)
    first, second = await asyncio.gather(house.bring(manifest), house.bring(manifest))
    assert first == second == await house.bring(manifest)
    assert len(reads) == 1
    assert house.arena.facts().free_bytes == 2 * CHUNK


async def test_progress_tells_bytes_and_ends_with_all(house: House) -> None:
    manifest = house.model("m", 2 * CHUNK)
    async with house.arena.claim(manifest, house.folder / "m", IoPriority.REQUEST) as claim:
        assert claim is not None
        assert not claim.was_ready
        seen = [progress async for progress in claim.progress()]
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (2 * CHUNK, 2 * CHUNK)
    async with house.arena.claim(manifest, house.folder / "m", IoPriority.REQUEST) as again:
        assert again is not None
        assert again.was_ready


async def test_the_least_worthy_makes_room_and_only_as_much_as_is_needed(house: House) -> None:
    old, large, new = house.model("old", CHUNK), house.model("large", 2 * CHUNK), None
    await house.bring(old)
    await house.bring(large)
    new = house.model("new", 2 * CHUNK)
    mapping = await house.bring(new)
    assert mapping is not None
    assert mapped(mapping) == contents(house, new)
    assert house.names() == ["large", "new"]
    await house.bring(house.model("last", 2 * CHUNK))
    assert house.names() == ["last", "new"]


async def test_a_model_larger_than_the_arena_evicts_nobody(house: House) -> None:
    await house.bring(house.model("m", CHUNK))
    assert await house.bring(house.model("giant", 4 * CHUNK + 1)) is None
    assert house.names() == ["m"]


async def test_what_is_mapped_is_neither_evicted_nor_overwritten(house: House) -> None:
    held, other = house.model("held", 2 * CHUNK), house.model("other", CHUNK)
    mapping = await house.bring(held)
    assert mapping is not None
    views = buffers(mapping)
    await house.bring(other)
    assert await house.bring(house.model("third", 3 * CHUNK)) is None
    assert house.names() == ["held", "other"]
    assert (stay := house.arena.stay_of(held.ref)) is not None
    assert stay.in_use
    assert house.arena.facts().in_use_bytes == 2 * CHUNK
    with pytest.raises(FailedPreconditionError):
        house.arena.evict(held.ref)
    assert [bytes(view) for view in views] == contents(house, held)
    del views
    assert await house.bring(house.model("fourth", 4 * CHUNK)) is not None
    assert house.names() == ["fourth"]


async def test_what_is_claimed_pinned_or_young_stays(
    tmp_path: Path, memory: NativeMemory, threads: ThreadPoolExecutor
) -> None:
    house = House(tmp_path, memory, threads)
    kept, wanted = house.model("kept", 2 * CHUNK), house.model("wanted", 3 * CHUNK)
    async with house.arena.claim(kept, house.folder / "kept", IoPriority.REQUEST) as claim:
        assert claim is not None
        await wait(claim)
        assert await house.bring(wanted) is None
    house.arena.pin(kept.ref, is_pinned=True)
    assert await house.bring(wanted) is None
    house.arena.pin(kept.ref, is_pinned=False)
    assert await house.bring(wanted) is not None
    with memory_of(4) as another:
        young = House(tmp_path / "young", another, threads, residency_s=3600.0)
        await young.bring(young.model("kept", 2 * CHUNK))
        assert await young.bring(young.model("wanted", 3 * CHUNK)) is None


async def test_a_deleted_model_that_is_mapped_keeps_its_chunks_until_it_is_not(
    house: House,
) -> None:
    manifest = house.model("m", 2 * CHUNK)
    mapping = await house.bring(manifest)
    assert mapping is not None
    views = buffers(mapping)
    house.arena.forget(manifest.ref)
    assert house.arena.stay_of(manifest.ref) is None
    facts = house.arena.facts()
    assert (facts.free_bytes, facts.in_use_bytes) == (2 * CHUNK, 2 * CHUNK)
    assert await house.bring(house.model("n", 3 * CHUNK)) is None
    assert [bytes(view) for view in views] == contents(house, manifest)
    del views
    assert house.arena.facts().free_bytes == 4 * CHUNK


class Gate:
    """Holds every reading until the test lets it go."""

    def __init__(self, memory: NativeMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = memory.read
        self.jobs: list[object] = []
        self.is_open = False
        monkeypatch.setattr(memory, "read", self._read)

    def _read(self, *args: object) -> None:
        job = args[4]
        self.jobs.append(job)
        while not self.is_open and not job.is_stopped:  # type: ignore[attr-defined]
            os.sched_yield()
        self._real(*args)  # type: ignore[arg-type]

    async def has_begun(self) -> None:
        async with asyncio.timeout(10):
            while not self.jobs:  # noqa: ASYNC110 - a thread's doing
                await asyncio.sleep(0.001)


async def test_a_reading_ends_when_the_last_one_who_wants_it_leaves(
    house: House, memory: NativeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(memory, monkeypatch)
    manifest = house.model("m", 3 * CHUNK)
    first, second = (asyncio.create_task(house.bring(manifest)) for _ in range(2))
    await gate.has_begun()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not gate.jobs[0].is_stopped  # type: ignore[attr-defined]
    assert house.arena.facts().free_bytes == CHUNK
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert house.arena.facts().free_bytes == 4 * CHUNK
    gate.is_open = True
    assert await house.bring(manifest) is not None


def _note(order: list[str], name: str, _: object) -> None:
    order.append(name)


async def test_a_prefetch_that_a_request_joins_becomes_urgent(
    house: House, memory: NativeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(memory, monkeypatch)
    slow, wanted = house.model("slow", CHUNK), house.model("wanted", CHUNK)
    other = house.model("other", CHUNK)
    tasks = [asyncio.create_task(house.bring(slow))]
    await gate.has_begun()
    order: list[str] = []
    for manifest in (other, wanted):
        tasks.append(asyncio.create_task(house.bring(manifest, IoPriority.PREFETCH)))
        tasks[-1].add_done_callback(partial(_note, order, manifest.name))
        await asyncio.sleep(0)
    async with AsyncExitStack() as stack:
        claiming = house.arena.claim(wanted, house.folder / "wanted", IoPriority.REQUEST)
        await stack.enter_async_context(claiming)
        gate.is_open = True
        await asyncio.gather(*tasks)
    assert order == ["wanted", "other"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[CHUNK + 3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, CHUNK)


@pytest.mark.parametrize("damage", [flip, cut])
async def test_damage_on_the_disk_is_told_and_leaves_nothing(
    house: House, damage: Callable[[Path], None]
) -> None:
    manifest = house.model("m", 3 * CHUNK)
    path = house.folder / "m" / "0.safetensors"
    good = path.read_bytes()
    damage(path)
    with pytest.raises(DataLossError, match=r"0\.safetensors"):
        await house.bring(manifest)
    assert house.arena.facts().free_bytes == 4 * CHUNK
    path.write_bytes(good)
    assert await house.bring(manifest) is not None


async def test_a_disk_that_fails_is_told_and_leaves_nothing(
    house: House, memory: NativeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(memory, "read", fail)
    with pytest.raises(UnavailableError, match="Input/output error"):
        await house.bring(house.model("m", CHUNK))
    assert house.arena.facts().free_bytes == 4 * CHUNK


def overwrite(path: Path, offset: int) -> None:
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"oops")


async def test_a_successor_finds_every_model_and_verifies_it_first(
    house: House, memory: NativeMemory, threads: ThreadPoolExecutor
) -> None:
    good, bad = house.model("good", CHUNK + 1), house.model("bad", CHUNK)
    before = await house.bring(good)
    wrong = await house.bring(bad)
    assert before is not None
    assert wrong is not None
    (index,) = [models for models in house.saved if len(models) == 2]
    offset = wrong.files[0].pieces[0].offset
    overwrite(Path(memory.path), offset)
    successor = House(house.folder, memory, threads)
    successor.arena.adopt(index, [good, bad], successor.folder_of)
    assert await successor.bring(good) == before
    assert mapped(before) == contents(house, good)
    after = await successor.bring(bad)
    assert after is not None
    assert mapped(after) == contents(house, bad)


async def test_a_successor_leaves_alone_what_it_does_not_know_but_someone_has_mapped(
    house: House, memory: NativeMemory, threads: ThreadPoolExecutor
) -> None:
    manifest = house.model("m", 2 * CHUNK)
    mapping = await house.bring(manifest)
    assert mapping is not None
    views = buffers(mapping)
    successor = House(house.folder, memory, threads)
    successor.arena.adopt((), [], successor.folder_of)
    assert successor.arena.facts().free_bytes == 2 * CHUNK
    assert successor.arena.facts().in_use_bytes == 2 * CHUNK
    assert await successor.bring(successor.model("n", 3 * CHUNK)) is None
    assert await successor.bring(successor.model("o", 2 * CHUNK)) is not None
    assert [bytes(view) for view in views] == contents(house, manifest)
    del views
    assert await successor.bring(successor.model("p", 4 * CHUNK)) is not None


async def test_closing_ends_what_is_being_read(
    house: House, memory: NativeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(memory, monkeypatch)
    waiting = asyncio.create_task(house.bring(house.model("m", CHUNK)))
    await gate.has_begun()
    await house.arena.close()
    with pytest.raises(UnavailableError):
        await waiting
    assert house.arena.facts().free_bytes == 4 * CHUNK


def test_chunks_grow_so_that_a_process_may_map_each_of_them() -> None:
    assert chunk_bytes_for(64 << 30) == CHUNK
    assert chunk_bytes_for((64 << 30) + 1) == 2 * CHUNK
    assert chunk_bytes_for(1 << 40) == 16 * CHUNK
