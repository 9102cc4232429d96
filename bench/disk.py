"""The disk's own speed, by fio, and the page cache: what loaders are measured against."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
HUGE_PAGES_WANTED = 32
FIO_S_MAX = 300.0


def drop_page_cache(folder: Path) -> bool:
    """Forget what memory holds of the disk; return False if only the files in `folder` could be."""
    os.sync()
    try:
        DROP_CACHES.write_text("3", encoding="ascii")
    except OSError:
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return False
    return True


@contextlib.contextmanager
def huge_pages() -> Iterator[bool]:
    """Reserve huge pages for fio's buffers, and give them back; lend False where that fails."""
    try:
        before = int(HUGE_PAGES.read_text(encoding="ascii"))
        if before >= HUGE_PAGES_WANTED:
            yield True
            return
        HUGE_PAGES.write_text(str(HUGE_PAGES_WANTED), encoding="ascii")
    except OSError:
        yield False
        return
    try:
        yield int(HUGE_PAGES.read_text(encoding="ascii")) >= HUGE_PAGES_WANTED
    finally:
        HUGE_PAGES.write_text(str(before), encoding="ascii")


def is_fio_there() -> bool:
    """Return whether fio is on the PATH."""
    return shutil.which("fio") is not None


def fio_gb_per_s(file: Path, *, in_huge_pages: bool) -> float:
    """Return the speed of one direct read of the whole file. Raises OSError, SubprocessError."""
    command = [
        shutil.which("fio") or "fio", "--name=limit", f"--filename={file}", "--readonly",
        "--rw=read", "--direct=1", "--ioengine=io_uring", "--bs=4m", "--iodepth=8",
        "--output-format=json", f"--size={file.stat().st_size}",
        *(["--iomem=mmaphuge"] if in_huge_pages else []),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=FIO_S_MAX, check=True)
    document = json.loads(ran.stdout[ran.stdout.index("{") :])
    return float(document["jobs"][0]["read"]["bw_bytes"]) / 1e9
