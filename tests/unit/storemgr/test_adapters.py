"""The native loader's answers and errors arrive as those that the domain knows."""

from __future__ import annotations

import os
from pathlib import Path

import brisk_native
import pytest

from services.common.errors import Reason, ResourceExhaustedError
from services.storemgr.adapters import NativeDisk, probe_loader
from services.storemgr.importer import Importer, ImportOrder
from services.storemgr.ports import JobStoppedError
from services.storemgr.refusal import MalformedError
from services.storemgr.source import parse_source
from services.storemgr.store import Store, used_bytes
from tests.broken_models import good_folder
from tests.unit.storemgr.disks import fetcher_in


def ignore(_: int) -> None:
    pass


def test_checksums_are_those_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456789")
    job = NativeDisk().new_job()
    seen: list[int] = []
    assert job.checksum(tmp_path / "a", seen.append) == (0xE3069283,)
    assert seen[-1] == 9
    assert job.copy(tmp_path / "a", tmp_path / "b", ignore) == (0xE3069283,)
    assert (tmp_path / "b").read_bytes() == b"123456789"


def test_a_stopped_job_does_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    job = NativeDisk().new_job()
    assert not job.is_stopped
    job.stop()
    assert job.is_stopped
    with pytest.raises(JobStoppedError):
        job.checksum(tmp_path / "a", ignore)
    with pytest.raises(JobStoppedError):
        job.copy(tmp_path / "a", tmp_path / "b", ignore)
    assert not (tmp_path / "b").exists()


def test_a_file_that_shrinks_under_the_reader_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(4096 * brisk_native.CHUNK_BYTES)  # a hole: seconds to read, no disk
    job = NativeDisk().new_job()

    def shrink(_: int) -> None:
        os.truncate(path, 1)

    with pytest.raises(MalformedError, match="shrank"):
        job.checksum(path, shrink)


def test_the_system_s_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NativeDisk().new_job().checksum(tmp_path / "missing", ignore)


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path) -> None:
    assert 0 < NativeDisk().free_bytes(tmp_path) < 2**60


def test_the_probe_says_which_loader_runs_and_leaves_nothing(tmp_path: Path) -> None:
    assert probe_loader(tmp_path).implementation == brisk_native.IMPLEMENTATION
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_what_is_left_of_it_and_never_more_than_the_disk_has(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "models").mkdir(parents=True)
    whole = NativeDisk().free_bytes(store)
    assert NativeDisk(1 << 20).free_bytes(store) == 1 << 20
    (store / "models" / "a").write_bytes(b"x" * 40_000)
    used = used_bytes(store)
    assert 40_000 <= used < 60_000
    os.link(store / "models" / "a", store / "again")
    assert NativeDisk(1 << 20).free_bytes(store) == (1 << 20) - used
    assert NativeDisk(100).free_bytes(store) == 0
    assert NativeDisk(2**60).free_bytes(store) <= whole


def test_an_import_beyond_the_budget_is_refused_as_a_full_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    disk = NativeDisk(1 << 20)
    order = ImportOrder(source=parse_source(str(good_folder(tmp_path / "good")), ""), after=None)
    (store.root / "models" / "x").write_bytes(b"x" * (900 << 10))
    with pytest.raises(ResourceExhaustedError) as refused:
        Importer(store, disk, fetcher_in(store.root), hard_links=False).run(
            order, disk.new_job(), lambda _: None
        )
    assert refused.value.reason == Reason.DISK_FULL
    store.close()
