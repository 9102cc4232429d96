"""An import publishes exactly the content it verified, or leaves the store as it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import brisk_native
import pytest
from brisk_native import inspect as weights_in
from brisk_native import parse_header, stored_bytes
from safetensors.numpy import load_file

from services.common.errors import (
    AbortedError,
    BriskError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from services.storemgr.checkpoint import inspect
from services.storemgr.folder import INDEX, survey
from services.storemgr.importer import Importer, ImportOrder
from services.storemgr.manifest import MANIFEST, Manifest
from services.storemgr.ports import Job, JobStoppedError
from services.storemgr.progress import ImportProgress
from services.storemgr.source import parse_source
from services.storemgr.store import Store
from tests.broken_models import WEIGHTS, broken_folder, good_folder, write_safetensors
from tests.unit.storemgr.disks import HookedDisk, fail_on, fetcher_in, full_on


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return good_folder(tmp_path / "good")


def run(
    store: Store,
    folder: Path,
    disk: HookedDisk | None = None,
    *,
    name: str = "",
    as_is: bool = False,
    hard_links: bool = True,
    after: datetime | None = None,
    job: Job | None = None,
    report: Callable[[ImportProgress], None] = lambda _: None,
) -> Manifest:
    disk = disk or HookedDisk()
    order = ImportOrder(source=parse_source(str(folder), name, as_is=as_is), after=after)
    return Importer(store, disk, fetcher_in(store.root), hard_links=hard_links).run(
        order, job or disk.new_job(), report
    )


def tensors_in(path: Path) -> dict[str, bytes]:
    raw = path.read_bytes()
    return {
        one.name: raw[one.offset : one.offset + one.size_bytes]
        for one in parse_header(path).tensors
    }


def stored_bytes_of(folder: Path) -> int:
    """Return the bytes that a folder takes in the store."""
    others = sum(path.stat().st_size for path in folder.iterdir() if path.name != WEIGHTS)
    return others + stored_bytes(weights_in(folder))


def shard_folder(folder: Path) -> None:
    """Split a folder's weights in two."""
    tensors = load_file(folder / WEIGHTS)
    names = list(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        write_safetensors(folder / file, {name: tensors[name] for name in part})
    places = {name: file for file, part in parts.items() for name in part}
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def assert_untouched(store: Store) -> None:
    assert store.scan().manifests == ()
    assert [path for path in store.root.rglob("*") if path.is_file()] == [store.root / "lock"]


def test_the_weights_are_stored_in_the_stored_form(store: Store, good: Path) -> None:
    manifest = run(store, good)
    assert manifest.is_stored_form
    folder = store.folder_of(manifest.ref)
    stored, source = parse_header(folder / WEIGHTS), parse_header(good / WEIGHTS)
    assert stored.is_stored_form
    assert tensors_in(folder / WEIGHTS) == tensors_in(good / WEIGHTS)
    assert manifest.facts == inspect(survey(good))
    assert [one.name for one in stored.tensors] != [one.name for one in source.tensors] or (
        [one.offset for one in stored.tensors] != [one.offset for one in source.tensors]
    )
    for file in manifest.files:
        if file.name != WEIGHTS:
            assert (folder / file.name).read_bytes() == (good / file.name).read_bytes()
    assert store.scan().manifests == (manifest,)


def test_shards_are_stored_as_one_file_without_their_index(store: Store, good: Path) -> None:
    whole = tensors_in(good / WEIGHTS)
    shard_folder(good)
    manifest = run(store, good)
    assert {file.name for file in manifest.files} == {
        *(path.name for path in good.iterdir() if "safetensors" not in path.name),
        WEIGHTS,
    }
    assert tensors_in(store.folder_of(manifest.ref) / WEIGHTS) == whole


def test_a_model_that_cannot_have_the_stored_form_keeps_its_files(
    store: Store, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brisk_native._layout.TENSORS_MAX", 20)
    manifest = run(store, good)
    assert not manifest.is_stored_form
    assert (store.folder_of(manifest.ref) / WEIGHTS).read_bytes() == (good / WEIGHTS).read_bytes()


def test_files_that_are_kept_are_the_source_s(store: Store, good: Path) -> None:
    manifest = run(store, good, as_is=True)
    assert not manifest.is_stored_form
    folder = store.folder_of(manifest.ref)
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in good.iterdir()),
        MANIFEST,
    }
    for file in manifest.files:
        assert (folder / file.name).read_bytes() == (good / file.name).read_bytes()
    assert store.scan().manifests == (manifest,)


def test_weights_are_linked_and_what_people_edit_is_copied(store: Store, good: Path) -> None:
    folder = store.folder_of(run(store, good, as_is=True).ref)
    linked = {path.name for path in folder.iterdir() if path.stat().st_nlink == 2}
    assert linked == {WEIGHTS}


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_no_link_can_be_the_weights_are_copied(
    store: Store, good: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    linked = run(store, good, name="linked", as_is=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    copied = run(store, good, name="copied", as_is=True)
    assert (store.folder_of(copied.ref) / WEIGHTS).stat().st_nlink == 1
    assert copied.revision == linked.revision


def test_links_can_be_switched_off(store: Store, good: Path) -> None:
    folder = store.folder_of(run(store, good, as_is=True, hard_links=False).ref)
    assert (folder / WEIGHTS).stat().st_nlink == 1


@pytest.mark.parametrize("as_is", [True, False])
def test_equal_content_is_stored_once_and_counts_as_the_latest(
    store: Store, good: Path, tmp_path: Path, *, as_is: bool
) -> None:
    first = run(store, good, name="x", as_is=as_is)
    stored = (store.folder_of(first.ref) / WEIGHTS).stat()
    elsewhere = good_folder(tmp_path / "elsewhere")
    os.utime(elsewhere / WEIGHTS, (1, 1))
    second = run(store, elsewhere, name="x", as_is=as_is)
    assert second.revision == first.revision
    assert second.imported_at > first.imported_at
    assert store.scan().manifests == (second,)
    again = (store.folder_of(first.ref) / WEIGHTS).stat()
    assert (again.st_dev, again.st_ino) == (stored.st_dev, stored.st_ino)  # the first one stayed


def test_other_content_becomes_another_revision(store: Store, good: Path) -> None:
    first = run(store, good)
    (good / "generation_config.json").write_text("{}")
    second = run(store, good)
    assert second.revision != first.revision
    assert set(store.scan().manifests) == {first, second}


def test_an_import_counts_as_later_even_if_the_clock_was_set_back(store: Store, good: Path) -> None:
    future = datetime(2099, 1, 1, tzinfo=UTC)
    assert run(store, good, after=future).imported_at > future


def test_progress_rises_to_the_total_and_names_each_file(store: Store, good: Path) -> None:
    seen: list[ImportProgress] = []
    manifest = run(store, good, report=seen.append)
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, manifest.file_bytes)
    assert {progress.bytes_total for progress in seen} == {manifest.file_bytes}
    assert [file.name for file in manifest.files] == sorted({p.file for p in seen} - {""})


def test_a_damaged_model_is_replaced_by_importing_it_again(store: Store, good: Path) -> None:
    manifest = run(store, good)
    stored = store.folder_of(manifest.ref) / WEIGHTS
    content = stored.read_bytes()
    stored.write_bytes(content[:-4] + b"oops")
    assert run(store, good).revision == manifest.revision
    assert stored.read_bytes() == content


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_disk_that_fills_up_half_way_leaves_nothing(store: Store, good: Path, name: str) -> None:
    with pytest.raises(ResourceExhaustedError) as refusal:
        run(store, good, HookedDisk(before=full_on(name)))
    assert refusal.value.reason == "DISK_FULL"
    assert int(refusal.value.metadata["needed_bytes"]) == stored_bytes_of(good)
    assert int(refusal.value.metadata["available_bytes"]) > 0
    assert refusal.value.metadata["needed_bytes"] in refusal.value.message
    assert_untouched(store)


def test_too_little_room_is_told_before_a_byte_is_copied(store: Store, good: Path) -> None:
    touched: list[Path] = []
    disk = HookedDisk(before=touched.append)
    disk.free = 1000
    with pytest.raises(ResourceExhaustedError) as refusal:
        run(store, good, disk)
    assert refusal.value.reason == "DISK_FULL"
    needed_bytes = str(stored_bytes_of(good))
    assert refusal.value.metadata == {"needed_bytes": needed_bytes, "available_bytes": "1000"}
    assert touched == []
    assert_untouched(store)


def test_a_broken_folder_is_refused_before_a_byte_is_copied(store: Store, tmp_path: Path) -> None:
    touched: list[Path] = []
    folder = broken_folder(tmp_path / "broken", "truncated")
    with pytest.raises(InvalidArgumentError):
        run(store, folder, HookedDisk(before=touched.append))
    assert touched == []
    assert_untouched(store)


def test_files_that_are_linked_need_no_room(store: Store, good: Path) -> None:
    disk = HookedDisk()
    disk.free = (1 << 20) + 60_000  # room for tokenizer and manifest, not for the weights
    run(store, good, disk, as_is=True)
    with pytest.raises(ResourceExhaustedError):
        run(store, good, disk, as_is=True, hard_links=False)


def test_an_error_of_the_machine_rises_as_it_is_and_leaves_nothing(
    store: Store, good: Path
) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        run(store, good, HookedDisk(before=fail_on(WEIGHTS, errno.EIO)))
    assert_untouched(store)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer_config.json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_import_that_is_stopped_leaves_nothing(
    store: Store, good: Path, name: str, when: str
) -> None:
    disk = HookedDisk()
    job = disk.new_job()

    def stop(path: Path) -> None:
        if path.name == name:
            job.stop()

    setattr(disk, when, stop)
    with pytest.raises(JobStoppedError):
        run(store, good, disk, job=job)
    assert_untouched(store)


@pytest.mark.parametrize("way", ["converted", "copied", "linked"])
@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_source_that_is_written_meanwhile_is_refused(
    store: Store, good: Path, name: str, way: str
) -> None:
    def write(path: Path) -> None:
        if path.name == name:
            os.utime(good / name, ns=(0, 0))

    # A conversion looks at its sources itself, before its file is done.
    hooks = HookedDisk(before=write) if way == "converted" else HookedDisk(after=write)
    with pytest.raises(InvalidArgumentError, match="changed while it was imported") as refusal:
        run(store, good, hooks, as_is=way != "converted", hard_links=way == "linked")
    assert refusal.value.metadata["file"] == name
    assert_untouched(store)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "gone"),
        brisk_native.ShortReadError("shrank"),
        brisk_native.InvalidHeaderError("f", None, "truncated"),
        brisk_native.InvalidCheckpointError("f", "tensor 'a' is in both"),
    ],
)
def test_a_source_that_changes_after_it_was_found_sound_is_worth_another_try(
    store: Store, good: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def changed(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(brisk_native, "inspect", changed)
    with pytest.raises(AbortedError, match="changed while it was read"):
        run(store, good)
    assert_untouched(store)


def test_everything_is_on_the_disk_before_it_is_published(
    store: Store, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def see_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def see_rename(path: Path, target: Path) -> Path:
        events.append("publish")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(Path, "rename", see_rename)
    manifest = run(store, good, as_is=True)
    # The copies were made durable by the loader; the last rename publishes.
    before = events[: len(events) - events[::-1].index("publish") - 1]
    staging = next(name for name in before if len(name) == len("0123456789abcdef"))
    assert before.index(WEIGHTS) < before.index(MANIFEST) < before.index(staging)
    assert events[-1] == store.folder_of(manifest.ref).parent.name


def test_a_source_that_grows_between_survey_and_copy_is_refused(store: Store, good: Path) -> None:
    def grow(path: Path) -> None:
        if path.name == "config.json":
            with (good / "tokenizer.json").open("a") as file:
                file.write(" ")

    with pytest.raises(InvalidArgumentError, match=r"tokenizer\.json changed"):
        run(store, good, HookedDisk(after=grow))
    assert_untouched(store)


def test_what_counts_is_the_staged_content_and_not_what_was_seen_outside(
    store: Store, good: Path
) -> None:
    """The source is broken, at the same size and time, exactly while it is copied."""
    weights = good / WEIGHTS
    content, status = weights.read_bytes(), weights.stat()

    def put(name: str, path: Path, raw: bytes) -> None:
        if path.name == name:
            weights.write_bytes(raw)
            os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))

    disk = HookedDisk(
        before=lambda path: put("config.json", path, b"\xff" * len(content)),
        after=lambda path: put(WEIGHTS, path, content),
    )
    with pytest.raises(InvalidArgumentError, match=r"model\.safetensors has no sound header"):
        run(store, good, disk, as_is=True, hard_links=False)
    assert weights.read_bytes() == content
    assert_untouched(store)


def test_the_source_itself_is_never_changed(store: Store, good: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in good.iterdir()}
    manifest = run(store, good)
    store.remove(manifest.ref)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in good.iterdir()} == before


def no_such_folder(tmp_path: Path) -> Path:
    return tmp_path / "missing"


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


def a_loop(tmp_path: Path) -> Path:
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path / "loop"


def a_name_too_long(tmp_path: Path) -> Path:
    return tmp_path / ("x" * 300)


@pytest.mark.parametrize(
    ("make", "code", "reason"),
    [
        (no_such_folder, "NOT_FOUND", "SOURCE_NOT_FOUND"),
        (a_file, "INVALID_ARGUMENT", "SOURCE_NOT_A_FOLDER"),
        (a_loop, "INVALID_ARGUMENT", "INVALID_SOURCE"),
        (a_name_too_long, "INVALID_ARGUMENT", "INVALID_SOURCE"),
    ],
)
def test_a_source_path_that_leads_to_no_folder_is_refused(
    store: Store, tmp_path: Path, make: Callable[[Path], Path], code: str, reason: str
) -> None:
    with pytest.raises(BriskError) as refusal:
        run(store, make(tmp_path), name="x")
    assert (refusal.value.code, refusal.value.reason) == (code, reason)
    assert str(tmp_path) not in refusal.value.message
    assert_untouched(store)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (PermissionError(errno.EACCES, "no"), "SOURCE_UNREADABLE"),
        (OSError(errno.EIO, "broken disk"), None),
    ],
)
def test_a_source_that_must_not_be_read_is_refused_and_a_broken_disk_is_not_its_fault(
    store: Store,
    good: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    raised: str | None,
) -> None:
    def refuse(_folder: Path) -> None:  # whoever runs the tests may read everything
        raise error

    monkeypatch.setattr("services.storemgr.folder.os.scandir", refuse)
    with pytest.raises((BriskError, OSError)) as refusal:
        run(store, good)
    assert getattr(refusal.value, "reason", None) == raised
    monkeypatch.undo()
    assert_untouched(store)


def test_a_link_to_a_folder_is_a_folder(store: Store, good: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(good)
    assert run(store, tmp_path / "link").name == "link"
