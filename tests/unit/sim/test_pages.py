"""The pages say where Brisk is not the best, and are the same for the same results."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.model import Tier
from sim import calibration, pages
from sim.__main__ import main
from sim.metrics import Outcome, Timing, quantile, together
from sim.runner import NAMES, Result
from sim.scenarios import Scenario
from tests.unit.sim.test_repeats import scenario

TIMING = Timing(
    decisions=10, decided_s=0.001, acquire_us=(1.0, 2.0, 3.0), happenings=100, took_s=0.01
)


def made(*ttft_s: float) -> Outcome:
    return Outcome(
        requests=len(ttft_s),
        failed=0,
        ttft_s=tuple(sorted(ttft_s)),
        by_tier={Tier.SSD: 1, Tier.DEVICE: len(ttft_s) - 1},
        in_time=len(ttft_s),
        bytes_moved={Tier.SSD: 10**9},
        loads=1,
        migrations=0,
        preemptions=0,
        pauses_s=(),
        happenings=100,
        digest="",
    )


def results(p99: dict[str, float], load: float = 0.5) -> list[Result]:
    where: Scenario = replace(scenario(), group="8 x opt-6.7b, gsm8k", load=load)
    return [
        Result(
            scenario=where,
            policy=policy,
            seeds=(1, 2),
            outcome=made(0.1, p99[policy]),
            timings=(TIMING,),
        )
        for policy in NAMES
    ]


SLOWER = dict.fromkeys(NAMES, 2.0)


@pytest.mark.parametrize(
    ("p99", "load", "met"),
    [
        ({**SLOWER, "brisk": 1.9}, 0.5, 1),
        ({**SLOWER, "brisk": 2.01}, 0.5, 0),
        ({**SLOWER, "brisk": 2.03}, 0.9, 1),
        ({**SLOWER, "brisk": 2.05}, 0.9, 0),
    ],
)
def test_the_verdict_holds_brisk_to_the_best_and_to_two_percent_when_saturated(
    p99: dict[str, float], load: float, met: int
) -> None:
    lines = pages.verdict(results(p99, load))
    assert lines[-1] == f"brisk: {met} of 1 workloads as they should be"
    assert len(lines) == 2 - met


def test_a_page_has_every_policy_its_seeds_and_its_constants(tmp_path: Path) -> None:
    written = pages.write(results({**SLOWER, "brisk": 1.0}), calibration.load(), tmp_path)
    text = (tmp_path / "simulation-paper.md").read_text()
    assert all(f"| {policy} |" in text for policy in NAMES)
    assert "Seeds: 1, 2." in text
    assert "**1.00**" in text
    constants = (tmp_path / "simulation-constants.md").read_text()
    tables = tomllib.loads(calibration.FILE.read_text())
    assert constants.count("\n| ") == 2 + sum(len(table) for table in tables.values()) - 1 + 1
    assert {each.suffix for each in written} <= {".md", ".svg"}


def test_quantiles_are_values_that_occurred() -> None:
    values = tuple(float(each) for each in range(1, 101))
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile((), 0.5) == 0.0


def test_seeds_are_pooled() -> None:
    pooled = together([made(1.0, 3.0), made(2.0, 4.0)])
    assert pooled.ttft_s == (1.0, 2.0, 3.0, 4.0)
    assert (pooled.requests, pooled.loads, pooled.by_tier[Tier.SSD]) == (4, 2, 2)


def test_a_trace_is_played_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,model,prompt_tokens,output_tokens\n0,a,10,5\n3,b,10,5\n")
    assert main(["--trace", str(path), "--policy", "locality", "--outcomes"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [each.split(",")[2] for each in out] == ["a", "b"]
    path.write_text("at_s,model\n")
    assert main(["--trace", str(path)]) == 2
    assert "error: line 1 must be" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "21", "-1", "x", "1e1"])
def test_a_number_of_seeds_out_of_bounds_is_refused(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--quick", f"--seeds={given}"])
    assert stopped.value.code == 2
    assert "must be from 1 to 20" in capsys.readouterr().err
