"""Measure how fast a checkpoint comes from the disk into usable memory, by Brisk and its peers.

Every run is a fresh process that has imported its loader before the clock starts. A run counts
until every page of every tensor was touched, and only if the tensors' checksum is right. Loaders
take turns in a shuffled order, with fio reading the same file once in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoints import WHOLE, Forms, prepare
from bench.disk import drop_page_cache, fio_gb_per_s, huge_pages, is_fio_there
from bench.loaders import LOADERS
from bench.loading_report import HELD_AGAINST_THE_DISK, Results, report
from bench.models import Model, llama_2_7b, opt
from bench.processes import StartError, last_words, leave_on_sigterm, running
from bench.report import publish
from scripts.opt_layout import Shape

RUNS, RUNS_QUICK = 5, 2
RUN_S_MAX = 900
MODELS = {"opt-1.3b": opt(Shape(), "OPT-1.3B"), "llama-2-7b": llama_2_7b()}
QUICK = opt(Shape(layers=2), "OPT, 2 layers")  # 0.4 GB


@dataclass(slots=True, kw_only=True)
class Bench:
    """One model in all its forms, and what was measured of it so far."""

    forms: Forms
    loaders: list[str]
    log: Path
    results: Results
    in_huge_pages: bool

    def round(self, kind: str, order: random.Random) -> None:
        """Run every loader once, and fio right before each of ours from the cold disk."""
        for loader in order.sample(self.loaders, len(self.loaders)):
            folder = self.forms.folder_for(loader)
            if folder is None:
                self.loaders.remove(loader)
                continue
            try:
                if kind == "cold" and loader in HELD_AGAINST_THE_DISK and is_fio_there():
                    self._measure_limit(loader)
                self._run(loader, folder, kind)
            except (StartError, subprocess.TimeoutExpired) as error:
                self.loaders.remove(loader)
                self.results.forget(loader, str(error))

    def _measure_limit(self, loader: str) -> None:
        file = self.forms.folders[WHOLE] / "model.safetensors"
        speed = fio_gb_per_s(file, in_huge_pages=self.in_huge_pages)
        self.results.limits.append(speed)
        self.results.beside.setdefault(loader, []).append(speed)

    def _run(self, loader: str, folder: Path, kind: str) -> None:
        with _waiting(loader, folder, self.log) as process:
            if kind == "cold":
                if not drop_page_cache(folder):
                    self.results.notes["cache"] = "Not root: only the files' pages were dropped."
            else:
                _warm(folder)
            output, _ = process.communicate("go\n", timeout=RUN_S_MAX)
        if process.returncode != 0:
            raise StartError(last_words(self.log))
        found = json.loads(output)
        if found["checksum"] != self.forms.checksum:
            raise StartError("its tensors have another checksum")
        self.results.add(loader, kind, found)
        label = self.results.model
        print(f"{label} {kind} {loader}: {found['seconds']:.3f} s", file=sys.stderr, flush=True)


@contextmanager
def _waiting(loader: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Lend a process that has imported everything and waits. Raises StartError."""
    command = [sys.executable, "-m", "bench.loaders", loader, str(folder)]
    with running(command, log, reads_stdin=True) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            if line == "ready\n":
                yield process
                return
        raise StartError(last_words(log))


def _warm(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def measure(model: Model, scratch: Path | None, runs: int, kinds: tuple[str, ...]) -> Results:
    """Measure all loaders on `model`; leaves no file and no process behind."""
    with ExitStack() as stack:
        place = tempfile.TemporaryDirectory(prefix="brisk-bench-", dir=scratch)
        folder = Path(stack.enter_context(place))
        os.environ["XDG_CACHE_HOME"] = str(folder)  # where a loader keeps what it learns of a disk
        size = f"{model.tensor_bytes / 1e9:.2f} GB"
        print(f"{model.label}: writing {size} in each form", file=sys.stderr, flush=True)
        forms = prepare(folder, model)
        bench = Bench(
            forms=forms,
            loaders=list(LOADERS),
            log=folder / "log",
            results=Results(
                model=model.label,
                file_bytes=model.tensor_bytes,
                conversion_gb_per_s=forms.conversion_gb_per_s,
                notes={note: note for note in forms.notes},
            ),
            in_huge_pages=stack.enter_context(huge_pages()),
        )
        bench.results.in_huge_pages = bench.in_huge_pages
        order = random.Random(1)  # noqa: S311 - the same order in every run of this program
        for kind in kinds:
            for _ in range(runs):
                bench.round(kind, order)
        return bench.results


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if all marks are met, 1 if one is missed, 2 if nothing ran."""
    parser = argparse.ArgumentParser(
        description="Measure how fast a checkpoint comes into memory, by Brisk and its peers.",
        epilog="A full run writes a page and a plot for each model to docs/benchmarks/. It needs "
        "70 GB of disk (14 GB for OPT-1.3B alone), memory for one model, and about an hour.",
    )
    parser.add_argument("--quick", action="store_true", help="a small model, cold only, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object per model on stdout")
    parser.add_argument(
        "--runs", type=int, choices=range(1, 101), metavar="N", help=f"of each loader ({RUNS})"
    )
    parser.add_argument(
        "--model", choices=MODELS, action="append", help="measure only this one (all)"
    )
    parser.add_argument("--cold", action="store_true", help="leave the warm runs out")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure"
    )
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    runs = options.runs or (RUNS_QUICK if options.quick else RUNS)
    chosen = [QUICK] if options.quick else [MODELS[name] for name in options.model or MODELS]
    kinds = ("cold",) if options.quick or options.cold else ("cold", "warm")
    status = 0
    try:
        for model in chosen:  # each is published before the next one begins
            found = report(
                measure(model, options.scratch, runs, kinds), with_plot=not options.quick
            )
            done = publish(found, as_json=options.json, document=not options.quick)
            status = max(status, done)
    except (ImportError, StartError, OSError, subprocess.SubprocessError) as error:
        print(f"loading: could not measure: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
