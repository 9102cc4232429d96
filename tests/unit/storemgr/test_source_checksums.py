"""A folder that brings a manifest along is imported as that says, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import brisk_native
import pytest

from services.common.errors import DataLossError, InvalidArgumentError
from services.storemgr.manifest import MANIFEST
from services.storemgr.store import Store
from tests.broken_models import WEIGHTS, good_folder
from tests.unit.storemgr.test_importer import assert_untouched, run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """Make a folder that was converted, so that it has a manifest."""
    return brisk_native.convert(good_folder(tmp_path / "good"), tmp_path / "sealed").folder


def flip(path: Path) -> None:
    """Change one bit of a file's last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("as_is", [True, False])
def test_a_folder_that_is_as_its_manifest_says_is_imported(
    store: Store, sealed: Path, *, as_is: bool
) -> None:
    manifest = run(store, sealed, as_is=as_is)
    assert store.scan().manifests == (manifest,)


@pytest.mark.parametrize("way", ["converted", "copied", "linked"])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_is_not_as_the_manifest_says_is_refused_by_name(
    store: Store, sealed: Path, name: str, way: str
) -> None:
    if name == "config.json":
        (sealed / name).write_text((sealed / name).read_text() + " ")
    else:
        flip(sealed / name)
    with pytest.raises(DataLossError, match=rf"{name} is not what the brisk\.json") as refusal:
        run(store, sealed, as_is=way != "converted", hard_links=way == "linked")
    assert refusal.value.reason == "CHECKSUM_MISMATCH"
    assert refusal.value.metadata["file"] == name
    assert str(sealed) not in refusal.value.message
    assert_untouched(store)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "at byte 1"),
        ('{"version": 1, "chunk_bytes": 4194304, "files": []}', f"does not list {WEIGHTS}"),
    ],
)
def test_a_manifest_that_cannot_be_believed_is_refused(
    store: Store, sealed: Path, text: str, words: str
) -> None:
    (sealed / MANIFEST).write_text(text)
    with pytest.raises(InvalidArgumentError, match=words) as refusal:
        run(store, sealed)
    assert refusal.value.metadata["file"] == MANIFEST
    assert_untouched(store)


def test_a_manifest_that_is_a_link_to_nothing_is_refused(store: Store, sealed: Path) -> None:
    (sealed / MANIFEST).unlink()
    (sealed / MANIFEST).symlink_to("nowhere")
    with pytest.raises(InvalidArgumentError, match=r"^brisk\.json "):
        run(store, sealed)
    assert_untouched(store)
