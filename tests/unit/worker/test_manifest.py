"""The store's checksums are used when they are understood, and damage is never passed over."""

import json
from pathlib import Path

import pytest

from services.common.errors import DataLossError
from services.worker.checkpoint import read_checkpoint
from services.worker.manifest import read_checksums
from tests.broken_models import good_folder

FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return good_folder(tmp_path / "m")


def write(folder: Path, **changes: object) -> None:
    size = (folder / FILE).stat().st_size
    entry = {"name": FILE, "kind": "weights", "size_bytes": size, "crc32c": ["0000002a"]}
    document = {"version": 1, "chunk_bytes": 4 << 20, "files": [entry], **changes}
    (folder / "brisk.json").write_text(json.dumps(document))


def read(folder: Path) -> object:
    return read_checksums(folder, read_checkpoint(folder, [FILE]))


def test_checksums_are_read_by_file(folder: Path) -> None:
    write(folder)
    assert read(folder) == {FILE: (42,)}


def test_a_folder_without_manifest_is_not_verified(folder: Path) -> None:
    assert read(folder) == {}


@pytest.mark.parametrize("changes", [{"version": 2}, {"chunk_bytes": 1 << 20}])
def test_a_manifest_of_another_kind_is_not_used(folder: Path, changes: dict[str, object]) -> None:
    write(folder, **changes)
    assert read(folder) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1"},
        {"files": {}},
        {"files": [{}]},
        {"files": []},
        {"files": [{"name": FILE, "size_bytes": 1, "crc32c": []}]},
    ],
)
def test_a_manifest_that_does_not_match_the_files_is_damage(
    folder: Path, changes: dict[str, object]
) -> None:
    write(folder, **changes)
    with pytest.raises(DataLossError, match=r"brisk\.json"):
        read(folder)


@pytest.mark.parametrize("checksum", ["2a", "0000002x", 42, None, "-000002a"])
def test_a_checksum_must_be_8_hexadecimal_digits(folder: Path, checksum: object) -> None:
    size = (folder / FILE).stat().st_size
    write(folder, files=[{"name": FILE, "size_bytes": size, "crc32c": [checksum]}])
    with pytest.raises(DataLossError, match="8 hexadecimal"):
        read(folder)


def test_a_torn_manifest_is_damage(folder: Path) -> None:
    (folder / "brisk.json").write_text('{"version": 1')
    with pytest.raises(DataLossError, match="not JSON"):
        read(folder)
