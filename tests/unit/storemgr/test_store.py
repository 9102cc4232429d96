"""What is published is whole, and a crash anywhere leaves only what the next start sweeps away."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.storemgr.folder import FileKind
from services.storemgr.manifest import MANIFEST, Manifest, StoredFile, encode_manifest, revision_of
from services.storemgr.store import Store, StoreTakenError, identity
from tests.unit.storemgr.test_manifest import manifest_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def fill(folder: Path, content: bytes = b"weights") -> Manifest:
    """Put a file into `folder` and return the manifest that describes it."""
    path = folder / "model.safetensors"
    path.write_bytes(content)
    size, modified_ns = identity(path)
    return manifest_of(
        StoredFile(
            name=path.name,
            kind=FileKind.WEIGHTS,
            size_bytes=size,
            modified_ns=modified_ns,
            checksums=(sum(content),),
        )
    )


def publish(store: Store, content: bytes = b"weights") -> Manifest:
    with store.staging() as staging:
        manifest = fill(staging, content)
        store.publish(staging, manifest)
    return manifest


def staged(store: Store) -> list[Path]:
    return list((store.root / "staging").iterdir())


def test_a_published_model_lies_under_name_and_revision(store: Store, tmp_path: Path) -> None:
    manifest = publish(store)
    folder = tmp_path / "store" / "models" / "org--name" / manifest.revision
    assert store.folder_of(manifest.ref) == folder
    assert {path.name for path in folder.iterdir()} == {MANIFEST, "model.safetensors"}
    assert store.scan().manifests == (manifest,)
    assert store.whole(manifest.ref) == manifest
    assert staged(store) == []


def test_a_second_store_on_the_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with pytest.raises(StoreTakenError):
        Store(tmp_path)
    first.close()
    Store(tmp_path).close()


def test_what_was_staged_and_not_published_goes_away(store: Store) -> None:
    def fail_half_way() -> None:
        with store.staging() as staging:
            fill(staging)
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert staged(store) == []


def test_a_sweep_removes_the_leftovers_of_a_crash(store: Store) -> None:
    kept = publish(store)
    leftover = store.root / "staging" / "0a1b"
    leftover.mkdir()
    fill(leftover)
    (store.root / "staging" / "file").touch()
    (store.root / "models" / "empty-shelf").mkdir()
    assert store.sweep() == 2
    assert staged(store) == []
    assert [shelf.name for shelf in (store.root / "models").iterdir()] == ["org--name"]
    assert store.scan().manifests == (kept,)


def test_a_link_among_the_leftovers_is_removed_and_not_followed(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (store.root / "staging" / "link").symlink_to(tmp_path / "precious")
    store.sweep()
    assert staged(store) == []
    assert (tmp_path / "precious" / "file").exists()


def shorten(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1)


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def write_newer_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"version": 2}')


def move(folder: Path) -> None:
    folder.rename(folder.parent / "0123456789abcdef")


@pytest.mark.parametrize(
    "damage", [shorten, lose_manifest, lose_weights, write_newer_manifest, move]
)
def test_a_scan_puts_aside_what_is_no_whole_model_and_loses_nothing(
    store: Store, damage: Callable[[Path], None]
) -> None:
    whole = publish(store)
    damaged = store.folder_of(publish(store, b"damaged").ref)
    damage(damaged)
    (left,) = (each for each in damaged.parent.iterdir() if each.name != whole.revision)
    files = {path.name: path.read_bytes() for path in left.iterdir()}
    scan = store.scan()
    assert scan.manifests == (whole,)
    assert scan.unusable == 1
    (aside,) = (store.root / "quarantine").iterdir()
    assert aside.name.startswith("org--name--")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == files
    assert store.scan().unusable == 0


def test_a_manifest_under_another_name_is_not_believed(store: Store) -> None:
    manifest = publish(store)
    shelf = store.folder_of(manifest.ref).parent
    shelf.rename(shelf.parent / "other")
    assert store.scan().manifests == ()


def test_publishing_again_replaces_what_was_damaged(store: Store) -> None:
    manifest = publish(store)
    path = store.folder_of(manifest.ref) / "model.safetensors"
    path.write_bytes(b"WEIGHTS")
    assert store.whole(manifest.ref) is None
    again = publish(store)
    assert again.revision == manifest.revision
    assert path.read_bytes() == b"weights"
    assert store.whole(again.ref) == again
    assert staged(store) == []


def test_a_touched_or_missing_file_counts_as_changed(store: Store) -> None:
    manifest = publish(store)
    path = store.folder_of(manifest.ref) / "model.safetensors"
    assert store.changed_files(manifest) == ()
    os.utime(path, ns=(0, manifest.files[0].modified_ns + 1))
    assert store.changed_files(manifest) == manifest.files
    path.unlink()
    assert store.changed_files(manifest) == manifest.files


def test_a_restated_manifest_is_read_back(store: Store) -> None:
    manifest = publish(store)
    later = replace(manifest, imported_at=manifest.imported_at.replace(hour=23))
    store.restate(later)
    assert store.scan().manifests == (later,)
    assert staged(store) == []


def test_removing_takes_one_revision_and_is_idempotent(store: Store) -> None:
    first, second = publish(store, b"one"), publish(store, b"two")
    store.remove(first.ref)
    store.remove(first.ref)
    assert store.scan().manifests == (second,)
    store.remove(second.ref)
    assert list((store.root / "models").iterdir()) == []
    assert staged(store) == []


def test_nothing_but_a_revision_becomes_a_path(store: Store) -> None:
    manifest = publish(store)
    with pytest.raises(ValueError, match="no revision"):
        store.folder_of(replace(manifest, revision="../../x").ref)


def test_the_manifest_is_written_when_all_else_is_there(store: Store) -> None:
    with store.staging() as staging:
        manifest = fill(staging)
        assert not (staging / MANIFEST).exists()
        store.publish(staging, manifest)
    written = store.folder_of(manifest.ref) / MANIFEST
    assert written.read_bytes() == encode_manifest(manifest)
    assert manifest.revision == revision_of(manifest.files)
