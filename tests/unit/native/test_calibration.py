"""The promise: the default unless another way is clearly faster, and no cache that stops a read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import brisk_native
import pytest
from brisk_native import CHUNK_BYTES, ReadSettings
from brisk_native import _calibration as calibration

from tests.unit.native import loaders

Trial = Callable[..., tuple[int, float, str, bool]]
FASTEST = calibration.CANDIDATES[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache in a folder of the test; forget what this process knows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_known", {})
    monkeypatch.setattr(calibration, "IMPLEMENTATION", "native")
    return tmp_path / "cache" / "brisk"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 64 * CHUNK_BYTES)
    return path


class Disk:
    """A disk that reads some settings faster than others, and says what was asked of it."""

    def __init__(self, bytes_per_s: dict[ReadSettings, float], *, direct: bool = True) -> None:
        self.asked: list[tuple[ReadSettings, int, int]] = []
        self._bytes_per_s, self._direct = bytes_per_s, direct

    def __call__(
        self, _: object, settings: ReadSettings, *, first: int, count: int, seconds_max: float
    ) -> tuple[int, float, str, bool]:
        self.asked.append((settings, first, count))
        speed = self._bytes_per_s.get(settings, 1e9)
        return int(speed * seconds_max), seconds_max, settings.engine, self._direct


def use(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    monkeypatch.setattr(calibration, "trial_read", trial)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_known", {})


@pytest.mark.parametrize(
    ("speed", "chosen"),
    [(1.5e9, FASTEST), (1.11e9, FASTEST), (1.09e9, ReadSettings()), (0.5e9, ReadSettings())],
)
def test_another_way_is_taken_only_if_it_is_clearly_faster(
    file: Path, monkeypatch: pytest.MonkeyPatch, speed: float, chosen: ReadSettings
) -> None:
    use(monkeypatch, Disk({FASTEST: speed}))
    assert brisk_native.calibrate(file) == chosen


def test_no_part_of_the_file_is_read_twice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk({})
    use(monkeypatch, disk)
    brisk_native.calibrate(file)
    assert len(disk.asked) == 2 * len(calibration.CANDIDATES)
    read = [chunk for _, first, count in disk.asked for chunk in range(first, first + count)]
    assert len(read) == len(set(read))
    assert max(read) < 64


def test_io_uring_is_not_chosen_where_it_does_not_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(
        _: object, settings: ReadSettings, *, first: int, count: int, seconds_max: float
    ) -> tuple[int, float, str, bool]:
        return (10 if settings.engine == "uring" else 1), seconds_max, "pread", True

    use(monkeypatch, refusing)
    assert brisk_native.calibrate(file).engine == "pread"


def test_where_direct_reads_are_refused_the_default_stays(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk({FASTEST: 9e9}, direct=False)
    use(monkeypatch, disk)
    assert brisk_native.calibrate(file) == ReadSettings()
    assert len(disk.asked) == 1


def test_what_was_found_is_remembered_over_processes(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Disk({FASTEST: 3e9}))
    brisk_native.calibrate(file)
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text(encoding="utf-8")) == asdict(FASTEST)
    assert os.uname().release.replace("-", "_") in kept.name
    forget(monkeypatch)
    use(monkeypatch, Disk({}))
    assert calibration.settings_for([file]) == FASTEST


def test_small_reads_are_not_calibrated_and_large_ones_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk({FASTEST: 3e9})
    use(monkeypatch, disk)
    assert calibration.settings_for([file]) == ReadSettings()
    assert disk.asked == []
    assert calibration.settings_for([file] * 3) == ReadSettings()  # one file is not three
    os.truncate(file, calibration.CALIBRATE_BYTES_MIN)
    assert calibration.settings_for([file]) == FASTEST
    asked = len(disk.asked)
    assert asked > 0
    assert calibration.settings_for([file]) == FASTEST
    assert len(disk.asked) == asked


def test_small_shards_of_a_large_model_are_no_measure(
    tmp_path: Path, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk({FASTEST: 3e9})
    use(monkeypatch, disk)
    shards = [tmp_path / f"shard-{number}" for number in range(60)]
    for shard in shards:
        shard.touch()
        os.truncate(shard, 5 * CHUNK_BYTES)
    assert sum(shard.stat().st_size for shard in shards) > calibration.CALIBRATE_BYTES_MIN
    assert calibration.settings_for(shards) == ReadSettings()
    assert disk.asked == []
    assert not cache.exists()  # nothing was learned, so nothing is remembered
    os.truncate(file, calibration.CALIBRATE_BYTES_MIN)
    assert calibration.settings_for([*shards, file]) == FASTEST


def damaged() -> list[Any]:
    good = asdict(FASTEST)
    return [
        b"", b"{", b"[]", b"7", b"\xff", b"[" * 4000, b" " * 9000 + json.dumps(good).encode(),
        *(json.dumps(facts).encode() for facts in (
            {}, {**good, "more": 1}, {**good, "threads": 0}, {**good, "threads": 10**9},
            {**good, "threads": "4"}, {**good, "threads": True}, {**good, "depth": None},
            {**good, "read_bytes": 5}, {**good, "engine": "magic"}, {**good, "engine": ["pread"]},
        )),
    ]  # fmt: skip


@pytest.mark.parametrize("content", damaged())
def test_a_damaged_cache_is_ignored_and_written_again(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    use(monkeypatch, Disk({FASTEST: 3e9}))
    brisk_native.calibrate(file)
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    forget(monkeypatch)
    assert calibration.settings_for([file]) == ReadSettings()
    os.truncate(file, calibration.CALIBRATE_BYTES_MIN)
    assert calibration.settings_for([file]) == FASTEST
    assert [path.name for path in cache.iterdir()] == [kept.name]
    assert json.loads(kept.read_text(encoding="utf-8")) == asdict(FASTEST)


def test_a_cache_that_cannot_be_used_is_no_error_and_measured_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_bytes(b"no folder")
    os.truncate(file, calibration.CALIBRATE_BYTES_MIN)
    disk = Disk({FASTEST: 3e9})
    use(monkeypatch, disk)
    assert calibration.settings_for([file]) == FASTEST
    asked = len(disk.asked)
    assert calibration.settings_for([file]) == FASTEST
    assert len(disk.asked) == asked


def test_a_relative_cache_folder_is_ignored(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    use(monkeypatch, Disk({}))
    brisk_native.calibrate(file)
    assert not (tmp_path / "here").exists()
    assert len(list((tmp_path / "home" / ".cache" / "brisk").iterdir())) == 1


def test_a_file_that_cannot_be_measured_gets_the_defaults(tmp_path: Path) -> None:
    assert calibration.settings_for([tmp_path / "missing"]) == ReadSettings()
    assert calibration.settings_for([]) == ReadSettings()
    with pytest.raises(FileNotFoundError):
        brisk_native.calibrate(tmp_path / "missing")


@pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built here")
def test_a_real_disk_is_measured(file: Path) -> None:
    assert brisk_native.calibrate(file) in calibration.CANDIDATES


@pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built here")
def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert brisk_native.calibrate(tmp_path / "empty") == ReadSettings()
