"""Hold a checkpoint in a shared pool, as a node's store does, until stdin ends.

Prints one line of JSON: the pool's path, its pages' size and each file's place in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import brisk_native

ROUNDING_BYTES = 4 << 20  # files start on huge pages, and end within one
SHARED = ("hugetlb", "tmpfs", "small")


def main(arguments: list[str]) -> int:
    """Read the folder's files into a pool that others may map; say where they are."""
    files = sorted(Path(arguments[0]).glob("*.safetensors"))
    with _pool(sum(file.stat().st_size + ROUNDING_BYTES for file in files)) as pool:
        pool.wait_populated()
        buffers, _ = brisk_native.read_files(files, pool=pool)
        places = [(buffer.pool_offset, len(buffer)) for buffer in buffers]
        found = {"path": pool.path, "page_bytes": pool.page_bytes, "places": places}
        print(json.dumps(found), flush=True)
        sys.stdin.read()
    return 0


def _pool(size_bytes: int) -> brisk_native.Pool:
    for kind in SHARED:
        try:
            return brisk_native.Pool(size_bytes, kind=kind)
        except OSError:  # not permitted here
            continue
    raise SystemExit("no kind of shared memory is to be had")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
