"""Measure how fast bytes come to a GPU: from the disk, and from memory.

The bytes are as many as the weights of OPT-1.3B have in fp16; what they mean makes no difference
here. Reads pass the page cache by, checksums are on. Beside them, in the same rounds: fio's direct
read of the same file, and torch's copy of one large pinned tensor, which is as fast as the link is.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import brisk_native
from brisk_native import DeviceBuffer, DeviceError, PinnedMemory

from bench.disk import drop_page_cache, fio_gb_per_s, huge_pages, is_fio_there
from bench.processes import leave_on_sigterm
from bench.report import Mark, Report, Series, publish, this_run

BYTES, BYTES_QUICK = 2_631_000_000, 400_000_000
RUNS, RUNS_QUICK = 7, 2
BLOCK = 64 * 1024 * 1024
OF_DISK, OF_LINK = 0.70, 0.95  # the marks, as parts of the limits
METHOD = (
    "Random bytes to one GPU, into memory that was allocated before the clock. From the disk: "
    "direct reads, CRC32C of each chunk, through 128 MiB of pinned memory. From memory: pinned "
    "once, before the clock, as a resident pool is. Seconds end when all bytes are on the GPU; "
    "they are read back and compared once, outside of the times."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Gigabytes per second, one per run."""

    from_disk: list[float] = field(default_factory=list)
    from_memory: list[float] = field(default_factory=list)
    disk_limit: list[float] = field(default_factory=list)
    link_limit: list[float] = field(default_factory=list)


class RefusedError(Exception):
    """There is nothing to measure on."""


def device_name(ordinal: int) -> str:
    """Return the device's name. Raises RefusedError where there is no such GPU."""
    try:
        names = {device.ordinal: device.name for device in brisk_native.devices()}
        if ordinal not in names:
            brisk_native.device_memory(ordinal)  # says why
    except DeviceError as error:
        raise RefusedError(f"no CUDA device {ordinal} here: {error}") from error
    return names[ordinal]


def write_noise(path: Path, size: int) -> None:
    """Write bytes that no disk can shorten."""
    block = Path("/dev/urandom")
    with block.open("rb") as noise, path.open("wb") as file:
        for offset in range(0, size, BLOCK):
            file.write(noise.read(min(BLOCK, size - offset)))


def link_copy(ordinal: int, size: int) -> Callable[[], float] | None:
    """Return what copies a pinned tensor and tells GB/s; None where torch has no CUDA."""
    import torch  # noqa: PLC0415 - the refusal without a GPU shall not wait for it

    if not torch.cuda.is_available():
        return None
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=f"cuda:{ordinal}")

    def copy() -> float:
        torch.cuda.synchronize(ordinal)
        begin_s = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(ordinal)
        return size / 1e9 / (time.perf_counter() - begin_s)

    return copy


def measure(folder: Path, ordinal: int, size: int, runs: int) -> Figures:
    """Run the benchmark. Raises what the loader raises, OSError and SubprocessError."""
    figures = Figures()
    path = folder / "weights"
    write_noise(path, size)
    checksums = brisk_native.checksum_file(path)
    (memory,), _ = brisk_native.read_files([path])
    piece, target = (0, 0, size, 0, 0), DeviceBuffer(ordinal, size)
    link = link_copy(ordinal, size)
    with ExitStack() as stack:
        stack.enter_context(PinnedMemory(memory, ordinal))
        in_huge_pages = stack.enter_context(huge_pages())
        for _ in range(runs):
            drop_page_cache(folder)
            if is_fio_there():
                figures.disk_limit.append(fio_gb_per_s(path, in_huge_pages=in_huge_pages))
            _, read = brisk_native.read_to_devices(
                [path], [piece], [target], expected_crc32c=[checksums]
            )
            figures.from_disk.append(size / 1e9 / read.seconds)
            _, copied = brisk_native.copy_to_devices([memory], [piece], [target])
            figures.from_memory.append(size / 1e9 / copied.seconds)
            if link is not None:
                figures.link_limit.append(link())
    if brisk_native.crc32c(target.read()) != brisk_native.crc32c(memory):
        raise RefusedError("the bytes on the device are not those of the file")
    return figures


def report(figures: Figures, device: str) -> Report:
    """Turn the figures into the report with its key figure."""
    labels = {
        "from the disk to the GPU": figures.from_disk,
        "fio, direct": figures.disk_limit,
        "from memory to the GPU": figures.from_memory,
        "torch, one pinned copy": figures.link_limit,
    }
    series = [
        Series(label=label, unit="GB/s", values=tuple(values)) for label, values in labels.items()
    ]
    return Report(
        name="device",
        title="Loading: to a GPU",
        method=METHOD,
        series=tuple(one for one in series if one.values),
        marks=(
            Mark(
                name="disk to GPU, of the disk's speed",
                value=_share(figures.from_disk, figures.disk_limit),
                unit="x",
                limit=OF_DISK,
                is_floor=True,
            ),
            Mark(
                name="memory to GPU, of the link's speed",
                value=_share(figures.from_memory, figures.link_limit),
                unit="x",
                limit=OF_LINK,
                is_floor=True,
            ),
        ),
        notes=("A limit that was not measured (no fio, or torch without CUDA) gives nan.",),
        run=this_run(("torch",), {"device": device}),
    )


def _share(found: list[float], limit: list[float]) -> float:
    return statistics.median(found) / statistics.median(limit) if limit else math.nan


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if the mark is met, 1 if it is missed, 2 if nothing ran."""
    parser = argparse.ArgumentParser(
        description="Measure how fast bytes come to a GPU, from the disk and from memory.",
        epilog="A full run writes docs/benchmarks/device.md. It needs 3 GB of disk.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer bytes and runs, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--device", type=int, default=0, help="the number of the GPU (0)")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    size, runs = (BYTES_QUICK, RUNS_QUICK) if options.quick else (BYTES, RUNS)
    try:
        device = device_name(options.device)
        with tempfile.TemporaryDirectory(prefix="brisk-bench-", dir=options.scratch) as folder:
            figures = measure(Path(folder), options.device, size, runs)
    except (RefusedError, DeviceError, OSError, subprocess.SubprocessError) as error:
        print(f"device: could not measure: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return publish(report(figures, device), as_json=options.json, document=not options.quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
