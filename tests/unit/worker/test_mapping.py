"""A start on the node's memory: nothing is read or held on to, and files where it cannot be."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import brisk_native
import pytest
from brisk_native import CHUNK_BYTES, Pool

from services.common.errors import DataLossError, Reason, UnavailableError
from services.common.model import ModelRef, StartPhase, Tier
from services.worker.ports import Lease, MappedFile, Mapping, OnBytes
from services.worker.start import Starter
from tests.unit.worker.doubles import FolderStore, model_info
from tests.unit.worker.test_start import House

pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="the arena needs the compiled loader"
)


class MappingStore(FolderStore):
    """A store that has its one model's weights in memory."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        super().__init__({"m": folder}, model_info)
        self.asked: list[bool] = []
        self.is_held = True
        self.error: Exception | None = None
        self.mapping = self._bring(folder, pool)

    @asynccontextmanager
    async def lease(self, model: ModelRef, *, maps: bool = False) -> AsyncIterator[Lease]:
        self.asked.append(maps)
        async with super().lease(model) as lease:
            if not maps:
                yield lease
                return
            yield replace(lease, tier=Tier.DRAM, bring=self._brought, is_held=lambda: self.is_held)

    async def _brought(self, on_bytes: OnBytes) -> Mapping:
        await asyncio.sleep(0)
        on_bytes(1, 10)
        on_bytes(10, 10)
        if self.error is not None:
            raise self.error
        return self.mapping

    def _bring(self, folder: Path, pool: Pool) -> Mapping:
        path = folder / "model.safetensors"
        brisk_native.read_pieces(path, pool, [(CHUNK_BYTES, CHUNK_BYTES)], first=0, count=1)
        file = MappedFile(
            name=path.name,
            size_bytes=path.stat().st_size,
            pieces=((CHUNK_BYTES, CHUNK_BYTES),),
        )
        return Mapping(path=str(pool.path), files=(file,))


class MappingHouse(House):
    """A starter over that store."""

    def __init__(self, folder: Path, executor: ThreadPoolExecutor, pool: Pool) -> None:
        super().__init__(folder, executor)
        self.pool = pool
        self.maps = MappingStore(folder, pool)
        self.starter = Starter(self.maps, executor)

    def in_use(self) -> bool:
        gc.collect()
        return brisk_native.pieces_in_use(self.pool, [(CHUNK_BYTES, CHUNK_BYTES)])


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def house(
    tmp_path: Path, tiny_model: Callable[[str], Path], executor: ThreadPoolExecutor
) -> MappingHouse:
    pool = Pool(4 * CHUNK_BYTES, kind="small")
    return MappingHouse(shutil.copytree(tiny_model("llama"), tmp_path / "m"), executor, pool)


async def test_weights_in_memory_are_used_there_until_the_decoder_goes(
    house: MappingHouse,
) -> None:
    started = await house.start()
    assert started.loaded.bytes_read == 0
    assert started.loaded.report.source is Tier.DRAM
    assert [each.phase for each in started.loaded.report.phases] == [
        StartPhase.FETCH,
        StartPhase.LOAD,
        StartPhase.INIT,
    ]
    loads = [each for each in house.progress if each.phase is StartPhase.LOAD]
    assert {each.source for each in loads} == {Tier.DRAM}
    assert loads[-1].bytes_done == loads[-1].bytes_total
    assert house.maps.leases == 0
    assert house.in_use()
    assert started.decoder is not None
    del started
    await asyncio.sleep(0)  # the loop's current turn still refers to the start's result
    assert not house.in_use()


async def test_memory_out_of_reach_means_files_and_is_not_asked_for_again(
    house: MappingHouse,
) -> None:
    house.maps.mapping = replace(house.maps.mapping, path="/proc/self/fd/no-such-memory")
    started = await house.start()
    assert started.loaded.bytes_read == (house.folder / "model.safetensors").stat().st_size
    await house.start()
    assert house.maps.asked == [True, False]
    assert not house.in_use()


@pytest.mark.parametrize("is_reachable", [True, False])
async def test_a_lease_that_ended_meanwhile_vouches_for_nothing(
    house: MappingHouse, *, is_reachable: bool
) -> None:
    house.maps.is_held = False
    if not is_reachable:
        house.maps.mapping = replace(house.maps.mapping, path="/proc/self/fd/no-such-memory")
    with pytest.raises(UnavailableError, match="lease ended") as refused:
        await house.start()
    assert refused.value.reason == Reason.STORE_UNREACHABLE
    refused.value.with_traceback(None)
    del refused
    assert not house.in_use()
    house.maps.is_held = True
    house.maps.mapping = replace(house.maps.mapping, path=str(house.pool.path))
    await house.start()
    assert house.maps.asked == [True, True]  # that was no reason to do without memory


async def test_what_ends_the_bringing_ends_the_start(house: MappingHouse) -> None:
    house.maps.error = DataLossError("damaged")
    with pytest.raises(DataLossError):
        await house.start()
    assert house.maps.leases == 0
    assert not house.in_use()
