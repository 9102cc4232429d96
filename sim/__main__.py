"""Simulate clusters under five policies and write what came of it: `python -m sim --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sim import calibration, pages, scenarios, trace
from sim.metrics import line
from sim.runner import NAMES, Result, brief, compare, play
from sim.scenarios import SIZES, Scenario
from sim.shapes import OPT
from sim.workload import GSM8K, Kind, Workload

PAPER_S, PAPER_QUICK_S = 1200.0, 300.0
LOAD = 0.5
DOCUMENTS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for. Returns 0, or 2 if it was asked for wrongly."""
    given = _parser().parse_args(arguments)
    try:
        constants = calibration.load()
        if given.trace is not None:
            return _trace(given, constants)
        results = _all(given, constants)
    except (calibration.CalibrationError, trace.TraceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for policy_line in pages.verdict(results):
        print(policy_line)
    if not given.quick:
        for page in pages.write(results, constants, given.out):
            print(f"wrote {page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim",
        description="Simulate clusters in virtual time under Brisk's scheduler and four others.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a sample, in about a minute; writes no page"
    )
    parser.add_argument(
        "--only",
        choices=("paper", *(str(size.nodes) for size in SIZES)),
        action="append",
        help="the paper's cluster, or the one of so many nodes; repeat for several (default: all)",
    )
    parser.add_argument(
        "--policy",
        choices=NAMES,
        action="append",
        help="one policy; repeat for several (default: all five)",
    )
    parser.add_argument("--seeds", type=_seeds, help="so many seeds, 1 to 20 (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=DOCUMENTS, help="where the pages go (default: %(default)s)"
    )
    parser.add_argument(
        "--trace", type=Path, help=f"play a CSV of {','.join(trace.COLUMNS)} instead"
    )
    parser.add_argument("--trace-nodes", type=_nodes, default=4, help="nodes for it (default: 4)")
    parser.add_argument(
        "--trace-shape", choices=tuple(OPT), default="opt-6.7b", help="the shape of its models"
    )
    parser.add_argument(
        "--outcomes", action="store_true", help="with --trace: print each request as a line of CSV"
    )
    return parser


def _seeds(given: str) -> int:
    return _within(given, 20)


def _nodes(given: str) -> int:
    return _within(given, 10_000)


def _within(given: str, most: int) -> int:
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= most:
        raise argparse.ArgumentTypeError(f"must be from 1 to {most}")
    return int(given)


def _all(given: argparse.Namespace, constants: calibration.Calibration) -> list[Result]:
    policies = tuple(given.policy or NAMES)
    seeds = tuple(range(1, 1 + (given.seeds or (1 if given.quick else 3))))
    wanted = set(given.only or ("paper", *(str(size.nodes) for size in SIZES)))
    results: list[Result] = []
    if "paper" in wanted:
        duration_s = PAPER_QUICK_S if given.quick else PAPER_S
        for each in scenarios.paper(constants, duration_s=duration_s, is_quick=given.quick):
            results += compare(each, policies, seeds, _say)
    for size in SIZES[:1] if given.quick and not given.only else SIZES:
        if str(size.nodes) not in wanted:
            continue
        for scenario, is_failing in _scaled(constants, size, is_quick=given.quick):
            variant = _warmed_and_failing if is_failing else scenarios.warmed
            results += compare(scenario, policies, seeds[:1], _say, variant)
    return results


def _warmed_and_failing(scenario: Scenario, seed: int) -> Scenario:
    return scenarios.failing(scenarios.warmed(scenario, seed), seed)


def _scaled(
    constants: calibration.Calibration, size: scenarios.Size, *, is_quick: bool
) -> list[tuple[Scenario, bool]]:
    """Return the scenarios of one size, and whether nodes fail in them."""
    if is_quick:
        size = scenarios.Size(nodes=size.nodes, models=size.models, duration_s=size.duration_s / 5)
        return [(scenarios.scale(constants, size, Kind.GAMMA, load=LOAD), False)]
    made = [
        (scenarios.scale(constants, size, kind, load=LOAD), False)
        for kind in (Kind.GAMMA, Kind.DIURNAL, Kind.FLASH)
    ]
    return [*made, (made[0][0], True)]


def _trace(given: argparse.Namespace, constants: calibration.Calibration) -> int:
    arrivals = trace.read(given.trace)
    names = dict.fromkeys(each.deployment for each in arrivals)
    setup = scenarios.traced(constants, names, OPT[given.trace_shape], given.trace_nodes)
    last_s = arrivals[-1].at_s
    workload = Workload(
        kind=Kind.GAMMA,
        rate=len(arrivals) / max(1.0, last_s),
        cv=1.0,
        duration_s=max(1.0, last_s),
        lengths=GSM8K,
    )
    scenario = Scenario(
        group="trace",
        name=given.trace.name,
        setup=setup,
        workload=workload,
        warm_up_s=0.0,
        load=scenarios.offered_load(setup, workload),
    )
    for policy in given.policy or NAMES:
        world, its_timing = play(scenario, policy, 1, arrivals)
        if given.outcomes:
            sys.stdout.writelines(line(each) for each in world.requests)
        result = pages.single(scenario, policy, world, its_timing)
        print(brief(result), file=sys.stderr if given.outcomes else sys.stdout)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
