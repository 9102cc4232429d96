"""Where an arena comes from: sized by the machine, refused politely, taken over after a crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import brisk_native
import pytest

from services.common.errors import ConfigError
from services.common.model import ModelRef
from services.common.names import ModelName
from services.storemgr import arena_start
from services.storemgr.arena_index import INDEX, Indexed, find_memory, read_index, write_index
from services.storemgr.arena_start import ArenaSettings, IndexFile, OpenedArena, open_arena
from services.storemgr.chunks import Piece
from services.storemgr.residents import ArenaFile
from tests.unit.storemgr.arenas import CHUNK

pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="the arena needs the compiled loader"
)
GIB = 1 << 30
SHARED = Path("/dev/shm")  # noqa: S108 - a tmpfs, wherever there is one
MODELS = (
    Indexed(
        ref=ModelRef(name=ModelName("m"), revision="0123456789abcdef"),
        files=(
            ArenaFile(
                name="model.safetensors",
                size_bytes=5,
                pieces=(Piece(offset=CHUNK, size_bytes=CHUNK),),
            ),
        ),
    ),
)


class Opener:
    """Opens arenas for one store; all are closed in the end."""

    def __init__(self, store: Path, stack: ExitStack) -> None:
        self.store = store
        self._stack = stack
        self.available = 8 * GIB

    def open(self, size: int | None = 4 * CHUNK, folder: Path | None = None) -> OpenedArena | None:
        settings = ArenaSettings(
            size_bytes=size, folder=folder, size_setting="SIZE", folder_setting="FOLDER"
        )
        opened = open_arena(
            settings, self.store, limit=lambda: GIB, available=lambda: self.available
        )
        if opened is not None:
            self._stack.callback(opened.memory.close)
        return opened

    def must(self, size: int | None = 4 * CHUNK, folder: Path | None = None) -> OpenedArena:
        opened = self.open(size, folder)
        assert opened is not None
        return opened


@pytest.fixture
def opener(tmp_path: Path, shared: Path) -> Iterator[Opener]:  # the folder must be empty last
    with ExitStack() as stack:
        yield Opener(tmp_path, stack)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    if not SHARED.is_dir():
        pytest.skip("there is no /dev/shm")
    folder = SHARED / f"brisk-test-{tmp_path.name}-{os.getpid()}"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_no_bytes_mean_no_arena(opener: Opener) -> None:
    assert opener.open(0) is None


def test_unless_told_it_takes_a_quarter_of_the_limit_and_half_of_what_is_free(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = brisk_native.Pool

    def pool(size: int, *, kind: str) -> brisk_native.Pool:
        made.append(size)
        return real(CHUNK, kind="small", populate=False)

    monkeypatch.setattr(brisk_native, "Pool", pool)
    opener.must(None)
    (opener.store / INDEX).unlink()
    opener.available = GIB // 4
    opener.must(None)
    assert made == [GIB // 4, GIB // 8]
    (opener.store / INDEX).unlink()
    opener.available = GIB // 10
    assert opener.open(None) is None  # too little to be worth it, and nobody asked for it


def test_unless_told_a_folder_bounds_it_and_memory_that_cannot_be_had_is_done_without(
    opener: Opener, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def pool(size: int, **_: object) -> brisk_native.Pool:
        made.append(size)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(brisk_native, "Pool", pool)
    assert opener.open(None) is None
    with pytest.raises(ConfigError, match="SIZE"):
        opener.open()
    monkeypatch.setattr(arena_start, "_room_in", lambda _: 20 * CHUNK)
    with pytest.raises(ConfigError, match="FOLDER"):
        opener.open(None, shared)
    assert made[-1] == 20 * CHUNK


def test_what_does_not_fit_is_refused_naming_setting_and_sizes(opener: Opener) -> None:
    opener.available = 4 * CHUNK - 1
    with pytest.raises(ConfigError, match=rf"SIZE.*{4 * CHUNK} .*{4 * CHUNK - 1} .*0 turns it off"):
        opener.open()
    opener.available = 2**60
    with pytest.raises(ConfigError, match="SIZE"):
        opener.open(2**55)


def test_without_the_compiled_loader_only_who_asked_is_refused(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brisk_native, "IMPLEMENTATION", "python")
    assert opener.open(None) is None
    assert opener.open(0) is None
    with pytest.raises(ConfigError, match=r"SIZE.*compiled"):
        opener.open()


def test_a_folder_that_is_no_tmpfs_is_refused_and_left_empty(
    opener: Opener, tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"FOLDER.*tmpfs"):
        opener.open(folder=folder)
    assert list(folder.iterdir()) == []


def test_in_a_folder_it_is_a_file_that_others_open_and_that_goes_with_it(
    opener: Opener, shared: Path
) -> None:
    opened = opener.must(folder=shared)
    (file,) = shared.iterdir()
    assert opened.memory.path == str(file)
    assert file.stat().st_size == 4 * CHUNK
    opened.memory.close()


@pytest.mark.parametrize("is_named", [False, True])
def test_a_successor_takes_the_memory_over_for_as_long_as_anyone_has_it(
    opener: Opener, shared: Path, *, is_named: bool
) -> None:
    folder = shared if is_named else None
    first = opener.must(folder=folder)
    IndexFile(opener.store, first.memory).write(MODELS)
    with Path(first.memory.path).open("r+b") as raw:
        raw.seek(CHUNK)
        raw.write(b"alive")
    view = brisk_native.map_pieces(first.memory.path, [(CHUNK, CHUNK)], 5)
    if not is_named:
        first.memory.close()
    second = opener.must(folder=folder)
    assert second.is_adopted
    assert second.found == MODELS
    assert bytes(view) == b"alive"
    with Path(second.memory.path).open("r+b") as raw:
        raw.seek(CHUNK)
        raw.write(b"still")
    assert bytes(view) == b"still"
    assert second.memory.in_use([Piece(offset=CHUNK, size_bytes=CHUNK)])


def test_memory_that_nobody_has_any_more_is_gone(opener: Opener) -> None:
    first = opener.must()
    IndexFile(opener.store, first.memory).write(MODELS)
    first.memory.close()
    assert not opener.must().is_adopted


def test_memory_of_another_size_is_not_taken_over(opener: Opener, shared: Path) -> None:
    first = opener.must(folder=shared)
    IndexFile(opener.store, first.memory).write(MODELS)
    second = opener.must(8 * CHUNK, folder=shared)
    assert not second.is_adopted
    assert second.memory.size_bytes == 8 * CHUNK
    assert [path.stat().st_size for path in shared.iterdir()] == [8 * CHUNK]


def test_an_index_says_again_what_was_written(opener: Opener) -> None:
    IndexFile(opener.store, opener.must().memory).write(MODELS)
    index = read_index(opener.store)
    assert index is not None
    assert index.models == MODELS
    assert find_memory(index) == Path(index.path)
    write_index(opener.store, index)
    assert read_index(opener.store) == index


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version": 1', '"version": 2'),
        ('"boot_id": "', '"boot_id": "x'),
        ('"m"', '"../m"'),
        ("0123456789abcdef", "short"),
        (f"[{CHUNK}, {CHUNK}]", "[1]"),
        (f"[{CHUNK}, {CHUNK}]", '["1", 2]'),
        ('"models": [', '"models": [1, '),
        ('"files": [', '"files": [1, '),
        ('"inode": ', '"inode": -'),
        ('"kind": "', '"kind": 1, "x": "'),
        ("{", ""),
    ],
)
def test_an_index_that_cannot_be_believed_is_none(opener: Opener, old: str, new: str) -> None:
    IndexFile(opener.store, opener.must().memory).write(MODELS)
    path = opener.store / INDEX
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert read_index(opener.store) is None


def test_a_store_that_cannot_be_written_costs_the_index_only(opener: Opener) -> None:
    memory = opener.must().memory
    IndexFile(opener.store / "missing", memory).write(MODELS)
    assert read_index(opener.store / "missing") is None
