"""What every benchmark prints: figures with their spread, the mark, and what it was run on.

People read the table and the last line; programs read `--json`; docs/benchmarks/ keeps the full
runs. Machine facts name the hardware and never the host.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ROOT / "docs" / "benchmarks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One measured series: what was measured, in which unit, and every value."""

    label: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """Return the smallest value that 95 % of all values do not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]

    @property
    def median_range(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the median, from ranks alone."""
        ordered, count = sorted(self.values), len(self.values)
        reach = 0.98 * math.sqrt(count)
        low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
        return ordered[max(0, low)], ordered[min(count - 1, high)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A key figure and the limit that it has to stay below, or to reach."""

    name: str
    value: float
    unit: str
    limit: float
    is_floor: bool = False  # the limit is to be reached

    @property
    def passed(self) -> bool:
        """Return whether the figure is on the right side of the limit; NaN never is."""
        return self.value >= self.limit if self.is_floor else self.value < self.limit

    @property
    def line(self) -> str:
        """Return what is said of it."""
        verdict = "PASS" if self.passed else "MISSED"
        value = f"{self.value:.2f} {self.unit} median"
        sign = ">=" if self.is_floor else "<"
        return f"{self.name}: {value} (mark: {sign} {self.limit:g} {self.unit}) {verdict}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """When, how and on what the figures were taken."""

    date: str
    command: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one benchmark found out."""

    name: str
    title: str
    method: str
    series: tuple[Series, ...]
    marks: tuple[Mark, ...]  # the most important one first
    notes: tuple[str, ...]
    run: Run
    plot: str = ""  # the picture's file, beside the page

    @property
    def passed(self) -> bool:
        """Return whether there are marks and all of them are met."""
        return bool(self.marks) and all(mark.passed for mark in self.marks)

    @property
    def verdict(self) -> str:
        """Return the last line of the output."""
        if len(self.marks) == 1:
            return self.marks[0].line
        met = sum(mark.passed for mark in self.marks)
        end = "PASS" if self.passed else "MISSED"
        return f"{self.name}: {met} of {len(self.marks)} marks met {end}"


def this_run(packages: Sequence[str], others: Mapping[str, str]) -> Run:
    """Return the facts of the present run; `others` are versions that pip here cannot tell."""
    versions = {"brisk": _commit(), "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return Run(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=shlex.join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        machine={
            "processor": _processor(),
            "cores": str(os.cpu_count()),
            "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
            "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
            "load at the end": f"{os.getloadavg()[0]:.1f}",
            "niceness": str(os.nice(0)),
        },
        versions={**versions, **others},
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def publish(report: Report, *, as_json: bool, document: bool) -> int:
    """Print the report, write its page if `document`, and return the exit status.

    With `as_json` stdout carries one JSON object and nothing else; people's text goes to stderr.
    """
    if as_json:
        print(json.dumps(to_json(report)))
    console = Console(stderr=as_json, highlight=False)
    table = Table(title=report.title, title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == _HEADINGS[0] else "right")
    for row in _rows(report):
        table.add_row(*row)
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}", markup=False)
    if document:
        DOCUMENTS.mkdir(parents=True, exist_ok=True)
        page = DOCUMENTS / f"{report.name}.md"
        page.write_text(to_markdown(report), encoding="utf-8")
        console.print(f"wrote {page.relative_to(ROOT)}", markup=False)
    last = [mark.line for mark in report.marks] if len(report.marks) > 1 else []
    print(*last, report.verdict, sep="\n", file=sys.stderr if as_json else sys.stdout, flush=True)
    return 0 if report.passed else 1


_HEADINGS = ("", "unit", "median", "95 % interval", "p95", "count")


def _rows(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for series in report.series:
        low, high = series.median_range
        figures = (f"{series.median:.2f}", f"{low:.2f} to {high:.2f}", f"{series.p95:.2f}")
        rows.append((series.label, series.unit, *figures, str(len(series.values))))
    return rows


def to_json(report: Report) -> dict[str, object]:
    """Return the report as JSON values, without the single measurements."""
    series = [
        {
            "label": one.label,
            "unit": one.unit,
            "median": one.median,
            "median_range": list(one.median_range),
            "p95": one.p95,
            "count": len(one.values),
        }
        for one in report.series
    ]
    marks = [
        {
            "name": mark.name,
            "value": mark.value,
            "unit": mark.unit,
            "limit": mark.limit,
            "passed": mark.passed,
        }
        for mark in report.marks
    ]
    return {
        "name": report.name,
        "key_figure": marks[0] if marks else None,
        "marks": marks,
        "line": report.verdict,
        "series": series,
        "notes": list(report.notes),
        "date": report.run.date,
        "command": report.run.command,
        "machine": dict(report.run.machine),
        "versions": dict(report.run.versions),
    }


def to_markdown(report: Report) -> str:
    """Return the page that docs/benchmarks/ keeps."""
    run = report.run
    table = [_HEADINGS, ("---", "---", *["---:"] * (len(_HEADINGS) - 2)), *_rows(report)]
    parts = [
        f"# {report.title}",
        f"**{report.verdict}**",
        "\n".join(f"- {mark.line}" for mark in report.marks) if len(report.marks) > 1 else "",
        report.method,
        f"![{report.title}]({report.plot})" if report.plot else "",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        "\n".join(f"- {note}" for note in report.notes),
        "The interval is that of the median, from ranks alone.",
        f"Run on {run.date} with `{run.command}`.",
        "\n".join(f"- {name}: {value}" for name, value in run.machine.items()),
        "Versions: " + ", ".join(f"{name} {value}" for name, value in run.versions.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
