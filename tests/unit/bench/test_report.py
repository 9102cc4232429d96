"""Promise: a benchmark's last line and exit status tell whether the mark was met."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report as bench_report
from bench.report import Mark, Report, Run, Series, publish, this_run, to_markdown


def report_of(value: float) -> Report:
    return Report(
        name="hops",
        title="How long a hop takes",
        method="Measured in turns.",
        series=(Series(label="hop", unit="ms", values=(1.0, 2.0, value)),),
        marks=(Mark(name="hop", value=value, unit="ms", limit=3.0),),
        notes=("The peer [was] away.",),
        run=Run(date="today", command="bench", machine={"cores": "2"}, versions={"grpcio": "1"}),
    )


@pytest.mark.parametrize(
    ("value", "status", "line"),
    [
        (1.234, 0, "hop: 1.23 ms median (mark: < 3 ms) PASS"),
        (3.0, 1, "hop: 3.00 ms median (mark: < 3 ms) MISSED"),
        (math.nan, 1, "hop: nan ms median (mark: < 3 ms) MISSED"),
    ],
)
def test_the_last_line_carries_figure_mark_and_verdict(
    value: float, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(report_of(value), as_json=False, document=False) == status
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == line
    assert "The peer [was] away." in text


@pytest.mark.parametrize(("value", "verdict"), [(0.95, "PASS"), (0.94, "MISSED")])
def test_a_floor_is_met_from_its_value_on(value: float, verdict: str) -> None:
    mark = Mark(name="speed", value=value, unit="x", limit=0.95, is_floor=True)
    assert mark.line == f"speed: {value} x median (mark: >= 0.95 x) {verdict}"


def test_of_several_marks_each_is_told_and_one_missed_fails_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    marks = (report_of(1.0).marks[0], report_of(4.0).marks[0])
    found = replace(report_of(1.0), marks=marks)
    assert publish(found, as_json=False, document=False) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "hop: 1.00 ms median (mark: < 3 ms) PASS",
        "hop: 4.00 ms median (mark: < 3 ms) MISSED",
        "hops: 1 of 2 marks met MISSED",
    ]
    assert publish(replace(found, marks=marks[:1] * 2), as_json=False, document=False) == 0
    assert not replace(found, marks=()).passed


def test_json_is_all_that_stdout_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(report_of(1.0), as_json=True, document=False) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["key_figure"] == {
        "name": "hop", "value": 1.0, "unit": "ms", "limit": 3.0, "passed": True,
    }  # fmt: skip
    assert found["series"][0]["count"] == 3
    assert captured.err.splitlines()[-1] == found["line"]


def test_a_full_run_keeps_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_report, "ROOT", tmp_path)
    monkeypatch.setattr(bench_report, "DOCUMENTS", tmp_path / "docs")
    publish(report_of(2.0), as_json=False, document=True)
    page = (tmp_path / "docs" / "hops.md").read_text()
    assert page == to_markdown(report_of(2.0))
    for part in ("hop: 2.00 ms", "| hop | ms | 2.00 |", "- cores: 2", "grpcio 1", "today"):
        assert part in page
    assert "wrote docs/hops.md" in capsys.readouterr().out


def test_median_its_range_and_p95_are_those_of_the_ranks() -> None:
    values = tuple(float(value) for value in range(100, 0, -1))
    series = Series(label="", unit="", values=values)
    assert (series.median, series.p95) == (50.5, 95.0)
    assert series.median_range == (41.0, 61.0)
    single = Series(label="", unit="", values=(7.0,))
    assert (single.median, single.p95, single.median_range) == (7.0, 7.0, (7.0, 7.0))


def test_a_run_names_hardware_and_versions_but_not_the_host() -> None:
    run = this_run(("grpcio", "no-such-package"), {"peer": "9"})
    assert run.versions["no-such-package"] == "not installed"
    assert run.versions["peer"] == "9"
    assert run.versions["grpcio"][0].isdigit()
    assert int(run.machine["cores"]) > 0
    words: Callable[[str], list[str]] = str.split
    assert socket.gethostname() not in words(" ".join([run.command, *run.machine.values()]))
