"""A worker's pool holds the weights that fit it; what does not fit is loaded all the same."""

import asyncio
import gc
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brisk_native
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.common.config import load_config
from services.common.errors import ConfigError
from services.worker.config import WorkerConfig
from services.worker.pool import LoadMetrics, open_pool, refuse_too_much
from services.worker.start import Starter
from tests.unit.worker.doubles import FolderStore, model_info
from tests.unit.worker.house_of_models import shown
from tests.unit.worker.test_start import House

pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="pools need the compiled loader"
)
SETTING = "BRISK_WORKER_POOL_BYTES"


class PoolHouse(House):
    """The same with a pool."""

    def __init__(self, folder: Path, executor: ThreadPoolExecutor, pool: brisk_native.Pool) -> None:
        super().__init__(folder, executor)
        self.store = FolderStore({"m": folder}, model_info)
        self.starter = Starter(self.store, executor, pool)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "m"))


def a_pool(size_bytes: int) -> brisk_native.Pool:
    pool = open_pool(size_bytes, setting=SETTING)
    assert pool is not None
    return pool


def scrape(pool: brisk_native.Pool | None) -> str:
    registry = CollectorRegistry()
    registry.register(LoadMetrics(pool))
    return generate_latest(registry).decode()


async def test_weights_lie_in_the_pool_until_the_decoder_goes(
    folder: Path, executor: ThreadPoolExecutor
) -> None:
    with a_pool(8 << 20) as pool:
        house = PoolHouse(folder, executor, pool)
        started = await house.start()
        assert pool.free_bytes < pool.size_bytes
        assert shown(started.decoder, [(1, 2, 3)]).shape == (1024,)
        del started
        await asyncio.sleep(0)  # the loop's current turn still refers to the start's result
        gc.collect()
        assert pool.free_bytes == pool.size_bytes


async def test_weights_that_do_not_fit_go_to_fresh_memory(
    folder: Path, executor: ThreadPoolExecutor
) -> None:
    with a_pool(2 << 20) as pool:
        (held,), _ = brisk_native.read_files([folder / "tokenizer.json"], pool=pool)
        assert pool.free_bytes == 0
        started = await PoolHouse(folder, executor, pool).start()
        assert shown(started.decoder, [(1, 2, 3)]).shape == (1024,)
        assert held


def test_no_bytes_mean_no_pool() -> None:
    assert open_pool(0, setting=SETTING) is None


def settings(monkeypatch: pytest.MonkeyPatch, *, pool: int, devices: str) -> WorkerConfig:
    monkeypatch.setenv(SETTING, str(pool))
    monkeypatch.setenv("BRISK_WORKER_DEVICES", devices)
    return load_config(WorkerConfig)


@pytest.mark.parametrize(
    ("pool", "devices", "limit"),
    [
        (101, "cpu:0=60,cpu:1=40", 1000),  # no model could use the last byte
        (60, "cpu:0=60,cpu:1=40", 159),  # weights beside the pool would not fit
    ],
)
def test_a_pool_that_does_not_fit_is_refused_naming_both_settings(
    monkeypatch: pytest.MonkeyPatch, pool: int, devices: str, limit: int
) -> None:
    refuse_too_much(settings(monkeypatch, pool=pool - 1, devices=devices), limit)
    with pytest.raises(ConfigError) as refused:
        refuse_too_much(settings(monkeypatch, pool=pool, devices=devices), limit)
    assert refused.value.setting == SETTING
    assert "BRISK_WORKER_DEVICES" in refused.value.problem
    refuse_too_much(settings(monkeypatch, pool=0, devices="cpu:0=1TiB"), limit)  # there is none


def test_memory_that_the_machine_lacks_is_refused_naming_the_setting() -> None:
    with pytest.raises(ConfigError) as refused:
        open_pool(2**60, setting=SETTING)
    assert refused.value.setting == SETTING


def test_what_the_loader_counts_is_exported(folder: Path) -> None:
    def read(name: str) -> float:
        (line,) = (line for line in scrape(None).splitlines() if line.startswith(name))
        return float(line.split()[-1])

    ways = [f'brisk_load_bytes_total{{mode="{mode}"}}' for mode in ("direct", "buffered")]
    pages = [f'brisk_load_page_bytes_total{{pages="{kind}"}}' for kind in ("huge", "small")]
    before = [sum(map(read, names)) for names in (ways, pages)]
    brisk_native.load_tensors(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert [sum(map(read, names)) for names in (ways, pages)] == [n + size for n in before]
    assert "brisk_pool_bytes" not in scrape(None)
    with a_pool(4 << 20) as pool:
        assert 'brisk_pool_bytes{state="free"} 4.194304e+06' in scrape(pool)
    assert "brisk_pool_bytes" not in scrape(pool)
