"""Measure how fast a checkpoint comes from the disk into usable memory, by Brisk and its peers.

Every run is a fresh process that has imported its loader before the clock starts. A run counts
until every page of every tensor was touched, and only if the tensors' checksum is right. Loaders
take turns in a shuffled order, with fio reading the same file once in each round.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.checkpoints import Way, prepare
from bench.disk import drop_page_cache, fio_gb_per_s, huge_pages, is_fio_there
from bench.processes import StartError, last_words, leave_on_sigterm, running
from bench.report import Mark, Report, Series, publish, this_run
from scripts.make_large_model import RefusedError
from scripts.opt_layout import Shape

RUNS, RUNS_QUICK = 5, 2
QUICK = Shape(layers=2)  # 0.4 GB
LIMIT = 1 / 1.15  # of the time of the best peer
PEERS = ("runai-model-streamer", "fastsafetensors", "tensorizer")
METHOD = (
    "Random weights of OPT-1.3B's shape in fp16 (2.63 GB), in fresh processes, loaders in a "
    "shuffled order in each round. Imports come before the clock. Seconds run from the call until "
    "every page of every tensor was touched, less what touching takes once all is there. Cold: the "
    "page cache was dropped after the imports; warm: the files were read once before. Brisk "
    "verifies the checksum of every chunk, the peers verify none. The checksum of all tensors, "
    "outside the times, is equal in every run. Peak is the growth of the resident set, file cache "
    "that is mapped included. The disk's limit is fio's direct read of the same file."
)


@dataclass(slots=True, kw_only=True)
class Figures:
    """What the runs of one loader took, one entry per run."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_bytes: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Bench:
    """The ways, and what was measured so far."""

    ways: list[Way]
    file: Path
    log: Path
    checksum: int
    file_bytes: int
    notes: dict[str, str] = field(default_factory=dict)
    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    limits: list[float] = field(default_factory=list)  # GB/s
    in_huge_pages: bool = False

    def round(self, kind: str, order: random.Random) -> None:
        """Run every way once."""
        if kind == "cold" and is_fio_there():
            self.limits.append(fio_gb_per_s(self.file, in_huge_pages=self.in_huge_pages))
        for way in order.sample(self.ways, len(self.ways)):
            try:
                self._run(way, kind)
            except StartError as error:
                self.notes[way.label] = f"{way.label} was not measured: {error}"
                self.ways.remove(way)
                self.figures = {
                    key: one for key, one in self.figures.items() if key[0] != way.label
                }

    def _run(self, way: Way, kind: str) -> None:
        with _loader(way, self.log) as process:
            if kind == "cold":
                if not drop_page_cache(way.folder):
                    self.notes["cache"] = "Not root: only the model's own pages were dropped."
            else:
                _warm(way)
            output, _ = process.communicate("go\n", timeout=600)
        if process.returncode != 0:
            raise StartError(last_words(self.log))
        found = json.loads(output)
        if found["checksum"] != self.checksum:
            raise StartError("its tensors have another checksum")
        figures = self.figures.setdefault((way.label, kind), Figures())
        figures.seconds.append(found["seconds"])
        figures.cpu_s.append(found["cpu_s"])
        figures.peak_bytes.append(found["peak_bytes"])
        print(f"{kind} {way.label}: {found['seconds']:.2f} s", file=sys.stderr, flush=True)


@contextmanager
def _loader(way: Way, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Lend a process that has imported everything and waits. Raises StartError."""
    command = [sys.executable, "-m", "bench.loaders", way.loader, str(way.folder)]
    with running(command, log, reads_stdin=True) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            if line == "ready\n":
                yield process
                return
        raise StartError(last_words(log))


def _warm(way: Way) -> None:
    for path in way.folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def measure(scratch: Path | None, runs: int, shape: Shape, *, warm: bool) -> Bench:
    """Run the benchmark and return what it measured; leaves no file and no process behind."""
    with ExitStack() as stack:
        place = tempfile.TemporaryDirectory(prefix="brisk-bench-", dir=scratch)
        folder = Path(stack.enter_context(place))
        ways, notes, checksum = prepare(folder, shape)
        bench = Bench(
            ways=ways,
            file=folder / "whole" / "model.safetensors",
            log=folder / "log",
            checksum=checksum,
            file_bytes=(folder / "whole" / "model.safetensors").stat().st_size,
            notes=notes,
            in_huge_pages=stack.enter_context(huge_pages()),
        )
        order = random.Random(1)  # noqa: S311 - the same order in every run of this program
        for kind in ("cold", "warm") if warm else ("cold",):
            for _ in range(runs):
                bench.round(kind, order)
        return bench


def report(bench: Bench) -> Report:
    """Turn the figures into the report with its key figure."""
    series: list[Series] = []
    gigabytes = bench.file_bytes / 1e9
    for (label, kind), found in sorted(bench.figures.items(), key=lambda item: item[0][::-1]):
        series += [
            _series(f"{kind}: {label}", "s", found.seconds),
            _series(f"{kind}: {label}, CPU", "s/GB", [one / gigabytes for one in found.cpu_s]),
            _series(f"{kind}: {label}, peak", "GB", [one / 1e9 for one in found.peak_bytes]),
        ]
    notes = list(bench.notes.values())
    brisk = bench.figures.get(("brisk", "cold"), Figures()).seconds
    if bench.limits:
        pages = "huge" if bench.in_huge_pages else "4 KiB"
        series.insert(0, _series(f"fio, direct, {pages} pages", "GB/s", bench.limits))
        notes += _against_the_disk(bench, gigabytes)
        if not bench.in_huge_pages:
            notes.append("fio had no huge pages, so that its figure understates the disk.")
    else:
        notes.append("fio is not on the PATH: the disk's limit was not measured.")
    peers = {
        label: statistics.median(found.seconds)
        for (label, kind), found in bench.figures.items()
        if kind == "cold" and not label.startswith("brisk")
    }
    ratio = math.nan
    if brisk and peers:
        best = min(peers, key=lambda label: peers[label])
        ratio = statistics.median(brisk) / peers[best]
        notes.append(f"The fastest peer is {best}. Brisk reads into fresh memory, as all do.")
    return Report(
        name="loading",
        title="Loading: from the disk to tensors in memory",
        method=METHOD,
        series=tuple(series),
        mark=Mark(name="loading, time over the best peer's", value=ratio, unit="x", limit=LIMIT),
        notes=tuple(notes),
        run=this_run(("torch", "transformers", "safetensors", *PEERS), {}),
    )


def _against_the_disk(bench: Bench, gigabytes: float) -> list[str]:
    limit = statistics.median(bench.limits)
    return [
        f"{label}, cold: {gigabytes / statistics.median(found.seconds):.2f} GB/s, "
        f"{gigabytes / statistics.median(found.seconds) / limit:.2f} of the disk's limit."
        for (label, kind), found in sorted(bench.figures.items())
        if kind == "cold"
    ]


def _series(label: str, unit: str, values: list[float]) -> Series:
    return Series(label=label, unit=unit, values=tuple(values))


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if the mark is met, 1 if it is missed, 2 if nothing ran."""
    parser = argparse.ArgumentParser(
        description="Measure how fast a checkpoint comes into memory, by Brisk and its peers.",
        epilog="A full run writes docs/benchmarks/loading.md. It needs 11 GB of disk.",
    )
    parser.add_argument("--quick", action="store_true", help="a small model, cold only, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--runs", type=int, choices=range(1, 101), metavar="N", help=f"of each loader ({RUNS})"
    )
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure"
    )
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    runs = options.runs or (RUNS_QUICK if options.quick else RUNS)
    shape = QUICK if options.quick else Shape()
    try:
        bench = measure(options.scratch, runs, shape, warm=not options.quick)
    except (RefusedError, StartError, OSError, subprocess.SubprocessError) as error:
        print(f"loading: could not measure: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    found = report(bench)
    return publish(found, as_json=options.json, document=not options.quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
