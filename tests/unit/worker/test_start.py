"""A cold start: phases in order, nothing left behind when it fails or is given up."""

import asyncio
import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import brisk_native
import pytest
from brisk_native import FileBuffer, _reading

from services.common.errors import (
    BriskError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import ModelRef, StartPhase, StartProgress, Tier
from services.common.names import ModelName
from services.worker.packed import BLOCK_TOKENS
from services.worker.ports import LoadOrder, Started
from services.worker.start import Starter
from tests.unit.worker.doubles import FolderStore, model_info, until
from tests.unit.worker.house_of_models import shown

FILE = "model.safetensors"


def ref(name: str) -> ModelRef:
    return ModelRef(name=ModelName(name), revision="0" * 16)


class House:
    """A starter over a store with one model, `m`."""

    def __init__(self, folder: Path, executor: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.executor = executor
        self.store = FolderStore({"m": folder}, model_info)
        self.starter = Starter(self.store, executor)
        self.progress: list[StartProgress] = []
        self.sizes: list[int] = []  # of the reservation, as it is changed
        self.device_bytes = 1 << 30

    def order(self, *, memory_bytes: int = 64 << 20, context: int = 256) -> LoadOrder:
        return LoadOrder(
            instance_id="i",
            deployment="d",
            model=ref("m"),
            device_id="cpu:0",
            slots=2,
            context_tokens_max=context,
            memory_bytes=memory_bytes,
        )

    async def start(self, order: LoadOrder | None = None) -> Started:
        return await self.starter.start(order or self.order(), self.progress.append, self.resize)

    def resize(self, memory_bytes: int) -> None:
        """Do as a device with so much memory does."""
        asyncio.get_running_loop()  # raises elsewhere
        if memory_bytes > self.device_bytes:
            raise ResourceExhaustedError("full", reason=Reason.INSUFFICIENT_MEMORY)
        self.sizes.append(memory_bytes)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def house(tmp_path: Path, tiny_model: Callable[[str], Path], executor: ThreadPoolExecutor) -> House:
    shutil.copytree(tiny_model("llama"), tmp_path / "m")
    return House(tmp_path / "m", executor)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[object]]:
    """Return references, growing, to the memory of every file that is read."""
    seen: list[weakref.ref[object]] = []
    real = brisk_native.read_files

    def read_files(*args: Any, on_buffers: Callable[[Any], None], **kwargs: Any) -> object:
        def shown(buffers: Sequence[FileBuffer]) -> None:
            views = [memoryview(buffer) for buffer in buffers]
            seen.extend(map(weakref.ref, views))
            on_buffers(views)

        return real(*args, on_buffers=shown, **kwargs)

    monkeypatch.setattr(_reading, "read_files", read_files)
    return seen


def alive(buffers: list[weakref.ref[object]]) -> int:
    gc.collect()
    return sum(buffer() is not None for buffer in buffers)


async def test_a_start_goes_through_its_phases_and_ends_its_lease(house: House) -> None:
    started = await house.start()
    report = started.loaded.report
    assert [phase.phase for phase in report.phases] == [
        StartPhase.FETCH,
        StartPhase.LOAD,
        StartPhase.INIT,
    ]
    assert all(phase.duration_s >= 0 for phase in report.phases)
    assert report.cold
    assert report.source is Tier.SSD
    assert started.loaded.bytes_read == (house.folder / FILE).stat().st_size
    assert house.store.granted == 1
    assert house.store.leases == 0


async def test_progress_names_the_phase_and_counts_the_bytes(house: House) -> None:
    await house.start()
    size = (house.folder / FILE).stat().st_size
    phases = [progress.phase for progress in house.progress]
    assert phases == sorted(phases, key=[*StartPhase].index)
    assert set(phases) == {StartPhase.FETCH, StartPhase.LOAD, StartPhase.INIT}
    loads = [progress for progress in house.progress if progress.phase is StartPhase.LOAD]
    assert [loads[0].bytes_done, loads[-1].bytes_done] == [0, size]
    assert {progress.bytes_total for progress in loads} == {size}
    assert {progress.source for progress in loads} == {Tier.SSD}


async def test_progress_counts_over_all_files(
    tmp_path: Path, tiny_model: Callable[[str], Path], executor: ThreadPoolExecutor
) -> None:
    house = House(shutil.copytree(tiny_model("sharded-llama"), tmp_path / "m"), executor)
    started = await house.start()
    sizes = [path.stat().st_size for path in house.folder.glob("*.safetensors")]
    assert len(sizes) > 1
    done = [each.bytes_done for each in house.progress if each.phase is StartPhase.LOAD]
    assert done == sorted(done)
    assert done[-1] == sum(sizes) == started.loaded.bytes_read


async def test_what_is_started_can_decode_and_knows_its_limits(house: House) -> None:
    started = await house.start(house.order(context=100, memory_bytes=1 << 20))
    assert shown(started.decoder, [(1, 2, 3)]).shape == (1024,)
    assert started.serial_reason == ""
    assert started.limits.vocabulary == 1024
    assert started.limits.context_tokens_max == 100
    assert started.limits.kv_bytes_per_token == 512  # as the model is, whatever the store says
    assert started.limits.block_tokens == BLOCK_TOKENS
    left = (1 << 20) - (house.folder / FILE).stat().st_size
    assert started.limits.kv_bytes == left // (512 * BLOCK_TOKENS) * 512 * BLOCK_TOKENS
    assert 1 in started.eos_token_ids
    assert started.codec is not None
    assert (await house.start(house.order(context=9999))).limits.context_tokens_max == 256


async def test_dropping_the_decoder_frees_the_weights(
    house: House, buffers: list[weakref.ref[object]]
) -> None:
    started = await house.start()
    shown(started.decoder, [(1, 2)])
    assert alive(buffers) == 1
    del started
    await asyncio.sleep(0)  # the loop's current turn still refers to the start's result
    assert alive(buffers) == 0


async def test_a_model_that_the_store_lacks_is_not_found(house: House) -> None:
    house.store.folders.clear()
    with pytest.raises(NotFoundError):
        await house.start()


async def test_an_order_too_small_for_the_weights_is_refused_unread(
    house: House, buffers: list[weakref.ref[object]]
) -> None:
    size = (house.folder / FILE).stat().st_size
    with pytest.raises(ResourceExhaustedError) as refused:
        await house.start(house.order(memory_bytes=size))
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY
    assert refused.value.metadata == {
        "needed_bytes": str(size + 256),
        "available_bytes": str(size),
    }
    assert buffers == []
    assert house.store.leases == 0


async def test_a_stored_model_without_a_manifest_is_refused_unread(
    house: House, buffers: list[weakref.ref[object]]
) -> None:
    house.store.seals = False
    for attempt in (house.start(), house.starter.check(ref("m"))):
        with pytest.raises(DataLossError, match=r"^brisk\.json is missing"):
            await attempt
    assert buffers == []
    assert house.store.leases == 0


def write_manifest(folder: Path, checksum: int) -> None:
    size = (folder / FILE).stat().st_size
    entry = {"name": FILE, "size_bytes": size, "crc32c": [f"{checksum:08x}"]}
    document = {"version": 1, "chunk_bytes": 4 << 20, "files": [entry]}
    (folder / "brisk.json").write_text(json.dumps(document))


async def test_the_stores_checksums_are_verified(
    house: House, buffers: list[weakref.ref[object]]
) -> None:
    checksum = brisk_native.crc32c((house.folder / FILE).read_bytes())
    write_manifest(house.folder, checksum)
    await house.start()
    write_manifest(house.folder, checksum ^ 1)
    with pytest.raises(DataLossError, match=FILE) as refused:
        await house.start()
    assert refused.value.reason == Reason.CHECKSUM_MISMATCH
    assert str(house.folder) not in refused.value.message
    assert house.store.leases == 0


async def test_a_model_that_does_not_fit_frees_what_was_read(
    house: House, buffers: list[weakref.ref[object]]
) -> None:
    config = json.loads((house.folder / "config.json").read_text())
    (house.folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InvalidArgumentError) as refused:
        await house.start()
    assert refused.value.reason == Reason.INVALID_MODEL
    refused.value.with_traceback(None)
    del refused
    await until(lambda: alive(buffers) == 0)  # the thread may still be leaving its frames
    assert house.store.leases == 0


class Stuck:
    """A disk that never answers: reading ends only when it is given up."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.was_given_up = False

    def read_files(
        self,
        *_: object,
        cancel: brisk_native.CancelToken,
        progress: Callable[[int], None],
        **__: object,
    ) -> None:
        self.has_begun.set()
        try:
            while not cancel.cancelled:
                progress(0)
                threading.Event().wait(0.001)
        finally:
            self.was_given_up = True
        raise brisk_native.ReadCancelledError(0)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    stuck = Stuck()
    monkeypatch.setattr(_reading, "read_files", stuck.read_files)
    return stuck


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelling_ends_the_read_before_the_start_is_over(
    house: House, stuck: Stuck, times: int
) -> None:
    start = asyncio.create_task(house.start())
    await asyncio.to_thread(stuck.has_begun.wait, 10)
    for _ in range(times):
        start.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await start
    assert stuck.was_given_up
    assert house.store.leases == 0


async def test_a_refused_skeleton_ends_a_long_read(house: House, stuck: Stuck) -> None:
    (house.folder / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InvalidArgumentError):
        await house.start()
    assert stuck.was_given_up


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), Reason.INSUFFICIENT_MEMORY),
        (OSError(5, "Input/output error"), Reason.STORE_UNREACHABLE),
        (brisk_native.ShortReadError("shorter"), Reason.DATA_LOSS),
    ],
)
async def test_what_goes_wrong_with_the_disk_or_memory_is_told_apart(
    house: House, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(_reading, "read_files", fail)
    with pytest.raises(BriskError) as refused:
        await house.start()
    assert refused.value.reason == reason
    assert isinstance(refused.value, UnavailableError | ResourceExhaustedError | DataLossError)


async def test_checking_reads_no_weights_and_ends_its_lease(
    house: House, buffers: list[weakref.ref[object]]
) -> None:
    await house.starter.check(ref("m"))
    assert buffers == []
    assert house.store.granted == 1
    assert house.store.leases == 0
    (house.folder / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InvalidArgumentError, match="nonsense"):
        await house.starter.check(ref("m"))
    assert house.store.leases == 0
