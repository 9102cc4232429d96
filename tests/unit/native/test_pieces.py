"""Pieces: a file in scattered chunks is one read-only range to others, and a model in place."""

from __future__ import annotations

import errno
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import brisk_native
import pytest
import torch
from brisk_native import CHUNK_BYTES, CancelToken, ChecksumError, Pool, ReadCancelledError

from tests.models import KINDS
from tests.unit.native import loaders
from tests.unit.native.conftest import noise

pytestmark = pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built here")

PIECES = [(6 * CHUNK_BYTES, CHUNK_BYTES), (CHUNK_BYTES, 2 * CHUNK_BYTES)]
SIZE = 2 * CHUNK_BYTES + 4099

# Maps pieces argv[2] of the pool argv[1] and then, told to, writes to them.
WRITER = """
import ctypes, json, sys
import brisk_native
buffer = brisk_native.map_pieces(sys.argv[1], json.loads(sys.argv[2]), 5)
view = memoryview(buffer)
print(view.readonly, bytes(view), flush=True)
if sys.stdin.readline().strip() == "write":
    import torch
    torch.frombuffer(buffer, dtype=torch.uint8)[0] = 1
    print("written", flush=True)
"""


@pytest.fixture
def pool() -> Pool:
    return Pool(8 * CHUNK_BYTES, kind="small")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(noise(SIZE))
    return path


def read(pool: Pool, file: Path, **options: object) -> int:
    return brisk_native.read_pieces(
        file,
        pool,
        PIECES,
        first=0,
        count=3,
        **options,  # type: ignore[arg-type]
    )


def path_of(pool: Pool) -> str:
    assert pool.path is not None
    return pool.path


def test_a_file_in_pieces_is_one_read_only_buffer(pool: Pool, file: Path) -> None:
    done: list[int] = []
    sums = brisk_native.checksum_file(file)
    assert read(pool, file, expected_crc32c=sums, progress=done.append) == SIZE
    assert (done[0], done[-1]) == (0, SIZE)
    buffer = brisk_native.map_pieces(path_of(pool), PIECES, SIZE)
    assert len(buffer) == SIZE
    assert buffer.pool_offset is None
    with memoryview(buffer) as view:
        assert view.readonly
        assert view == file.read_bytes()
    assert brisk_native.checksum_pieces(pool, PIECES, SIZE) == sums


def test_pieces_are_in_use_as_long_as_any_view_of_them_lives(pool: Pool, file: Path) -> None:
    read(pool, file)
    view = memoryview(brisk_native.map_pieces(path_of(pool), PIECES, SIZE))[7:9]
    gc.collect()
    assert brisk_native.pieces_in_use(pool, PIECES)
    assert brisk_native.pieces_in_use(pool, [(2 * CHUNK_BYTES, CHUNK_BYTES)])
    assert not brisk_native.pieces_in_use(pool, [(3 * CHUNK_BYTES, 3 * CHUNK_BYTES)])
    del view
    gc.collect()
    assert not brisk_native.pieces_in_use(pool, PIECES)


def test_another_process_sees_them_and_dies_when_it_writes(pool: Pool, file: Path) -> None:
    read(pool, file)
    command = [sys.executable, "-c", WRITER, path_of(pool), json.dumps(PIECES)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"True {file.read_bytes()[:5]!r}\n"
        assert brisk_native.pieces_in_use(pool, PIECES)
        out, _ = process.communicate("write\n", timeout=60)
    assert out == ""
    assert process.returncode == -11
    assert not brisk_native.pieces_in_use(pool, PIECES)
    assert brisk_native.checksum_pieces(pool, PIECES, SIZE) == brisk_native.checksum_file(file)


def test_damage_and_cancelling_end_a_read(pool: Pool, file: Path) -> None:
    sums = brisk_native.checksum_file(file)
    sums[1] ^= 1
    with pytest.raises(ChecksumError) as damage:
        read(pool, file, expected_crc32c=sums)
    assert damage.value.chunk == 1
    token = CancelToken()
    token.cancel()
    with pytest.raises(ReadCancelledError):
        read(pool, file, cancel=token)
    with pytest.raises(ReadCancelledError):
        brisk_native.checksum_pieces(pool, PIECES, SIZE, cancel=token)


def test_what_is_no_piece_or_no_pool_is_refused(pool: Pool, tmp_path: Path, file: Path) -> None:
    for pieces in ([(1, CHUNK_BYTES)], [(0, 5)], [(8 * CHUNK_BYTES, CHUNK_BYTES)], [(0, 0)]):
        with pytest.raises(ValueError, match="piece"):
            brisk_native.map_pieces(path_of(pool), pieces, 1)
    with pytest.raises(ValueError, match="pieces have"):
        brisk_native.map_pieces(path_of(pool), PIECES, 3 * CHUNK_BYTES + 1)
    with pytest.raises(OSError, match=str(file)) as refused:
        brisk_native.map_pieces(file, PIECES, 1)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(FileNotFoundError):
        brisk_native.map_pieces(tmp_path / "missing", PIECES, 1)
    with pytest.raises(ValueError, match="another process"):
        brisk_native.checksum_pieces(Pool.attach(path_of(pool)), PIECES, SIZE)


def in_memory(folder: Path, pool: Pool) -> dict[str, brisk_native.FileBuffer]:
    """Bring all weight files of a folder into a pool, and map them as another process would."""
    buffers, begin = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        chunks = -(-size // CHUNK_BYTES)
        pieces = [(begin, chunks * CHUNK_BYTES)]
        brisk_native.read_pieces(path, pool, pieces, first=0, count=chunks)
        buffers[path.name] = brisk_native.map_pieces(path_of(pool), pieces, size)
        begin += chunks * CHUNK_BYTES
    return buffers


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_computes_on_memory_that_it_cannot_write(
    kind: str, tiny_model: Callable[[str], Path], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(kind)
    buffers = in_memory(folder, pool)
    total = sum(len(buffer) for buffer in buffers.values())
    expected = brisk_native.load_model(folder)
    progress: list[tuple[int, int]] = []
    with brisk_native.start_loading(
        folder, buffers=buffers, progress=lambda *all_of: progress.append(all_of)
    ) as loading:
        model = loading.result()
    report = loading.report
    del loading, buffers
    assert progress[-1] == (total, total)
    assert report.bytes_read == 0
    assert report.mapped_bytes in {total, 0}  # 0: merged or split, so not in place
    assert report.held_bytes == report.copied_bytes
    assert (report.mapped_bytes == 0) <= (report.copied_bytes > 0)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
    gc.collect()
    assert brisk_native.pieces_in_use(pool, [(0, CHUNK_BYTES)]) == bool(report.mapped_bytes)
    del model
    gc.collect()
    assert not brisk_native.pieces_in_use(pool, [(0, CHUNK_BYTES)])


def test_buffers_are_for_the_cpu(tiny_model: Callable[[str], Path], pool: Pool) -> None:
    folder = tiny_model("llama")
    with pytest.raises(ValueError, match="host memory"):
        brisk_native.load_model(folder, device="cuda", buffers=in_memory(folder, pool))
