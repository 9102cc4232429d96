"""copy_file's and checksum_file's promise: exact checksums, and a whole copy or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from brisk_native import CHUNK_BYTES, ReadCancelledError, ShortReadError

from tests.unit.native.conftest import LONG_READ_BYTES, noise, run_on_disk
from tests.unit.native.loaders import MODULES, Loader

# Copies argv[2] to argv[3] with files limited to 5 MiB, and prints the errno it got.
COPY_UNDER_LIMIT = """
import importlib, resource, sys
loader = importlib.import_module(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
try:
    loader.copy_file(sys.argv[2], sys.argv[3])
except OSError as error:
    print(error.errno, error.filename)
"""

# Copies argv[2], which is too large, to the disk argv[3]; prints the error, what is left, and the
# number of chunks of a copy that fits.
FILL_A_DISK = """
import importlib, os, pathlib, sys
loader = importlib.import_module(sys.argv[1])
source, disk = sys.argv[2], pathlib.Path(sys.argv[3])
try:
    loader.copy_file(source, disk / "target")
except OSError as error:
    print(error.errno, error.filename)
print(list(disk.iterdir()))
os.truncate(source, 5 << 20)
print(len(loader.copy_file(source, disk / "target")))
"""


@pytest.mark.parametrize(
    "size", [0, 1, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 4097]
)
def test_copy_and_checksums_are_exact_at_every_awkward_size(
    loader: Loader, tmp_path: Path, size: int
) -> None:
    content = noise(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    reported: list[int] = []
    checksums = loader.copy_file(source, str(target), progress=reported.append)
    chunks = [content[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
    assert checksums == [loader.crc32c(chunk) for chunk in chunks]
    assert target.read_bytes() == content
    assert reported[-1] == size
    assert loader.checksum_file(target, threads=3) == checksums


@pytest.mark.parametrize("what", ["file", "link", "folder", "source"])
def test_an_existing_target_is_refused_and_left_alone(
    loader: Loader, tmp_path: Path, what: str
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError) as caught:
        loader.copy_file(source, tmp_path / what)
    assert caught.value.filename == str(tmp_path / what)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert source.read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_is_enospc_and_leaves_no_copy(loader: Loader, tmp_path: Path) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    source.write_bytes(noise(2 * CHUNK_BYTES))
    arguments = (MODULES[loader.name], source, disk)
    printed = run_on_disk("tmpfs", "size=6m", disk, FILL_A_DISK, *arguments)
    assert printed == f"{errno.ENOSPC} {disk / 'target'}\n[]\n2\n"


def test_a_refused_write_is_its_errno_and_leaves_no_copy(loader: Loader, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(noise(2 * CHUNK_BYTES))
    ran = subprocess.run(
        [sys.executable, "-c", COPY_UNDER_LIMIT, MODULES[loader.name], source, target],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"{errno.EFBIG} {target}\n"
    assert not target.exists()


def test_a_missing_folder_is_the_target_s_error(loader: Loader, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "missing" / "target"
    source.write_bytes(b"x")
    with pytest.raises(FileNotFoundError) as caught:
        loader.copy_file(source, target)
    assert caught.value.filename == str(target)


@pytest.mark.parametrize("call", ["checksum_file", "copy_file"])
@pytest.mark.parametrize("fault", ["cancel", "truncate", "raise"])
def test_a_job_that_is_disturbed_ends_early_and_leaves_no_copy(
    loader: Loader, tmp_path: Path, long_file: Path, call: str, fault: str
) -> None:
    token = loader.new_token()
    reported = []

    def disturb(done: int) -> None:
        reported.append(done)
        if fault == "cancel":
            token.cancel()
        elif fault == "truncate":
            os.truncate(long_file, 4096)
        else:
            raise KeyError(done)

    target = tmp_path / "target"
    more = [target] if call == "copy_file" else []
    expected = {"cancel": ReadCancelledError, "truncate": ShortReadError, "raise": KeyError}[fault]
    with pytest.raises(expected):
        getattr(loader, call)(long_file, *more, progress=disturb, cancel=token)
    assert reported[-1] < LONG_READ_BYTES
    assert not target.exists()


def test_a_copy_is_readable_by_others_as_far_as_the_mask_allows(
    loader: Loader, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "source").chmod(0o777)
    before = os.umask(0o027)
    try:
        loader.copy_file(tmp_path / "source", tmp_path / "target")
    finally:
        os.umask(before)
    assert (tmp_path / "target").stat().st_mode & 0o7777 == 0o640
