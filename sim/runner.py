"""Plays scenarios: each policy on the same arrivals, seed by seed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Final

from sim.calibration import Hardware
from sim.metrics import Outcome, Timing, outcome, timing, together
from sim.policies.choices import POLICIES
from sim.policies.mechanism import Baseline
from sim.request import Arrival
from sim.scenarios import Scenario
from sim.seam import Brisk, Scheduler
from sim.workload import arrivals
from sim.world import World

BRISK: Final = "brisk"
NAMES: Final = (*POLICIES, BRISK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One policy in one scenario, over all seeds."""

    scenario: Scenario
    policy: str
    seeds: tuple[int, ...]
    outcome: Outcome
    timings: tuple[Timing, ...]


Progress = Callable[[str], None]
Variant = Callable[[Scenario, int], Scenario]


def scheduler(name: str, hardware: Hardware, seed: int) -> Scheduler:
    """Return a fresh scheduler with a policy."""
    return Brisk() if name == BRISK else Baseline(name, hardware, seed)


def play(
    scenario: Scenario, policy: str, seed: int, trace: Iterable[Arrival] | None = None
) -> tuple[World, Timing]:
    """Run one policy on one seed's arrivals, or on a trace's; return the world after it."""
    setup = scenario.setup
    world = World(setup, scheduler(policy, setup.hardware, seed), seed)
    coming = arrivals(scenario.workload, tuple(setup.models), seed) if trace is None else trace
    began_s = process_time()
    gc.disable()  # millions of objects live as long as the run: looking through them takes seconds
    try:
        world.run(coming)
    finally:
        gc.enable()
        gc.collect()
    return world, timing(world, process_time() - began_s)


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    seeds: Sequence[int],
    progress: Progress,
    variant: Variant | None = None,
) -> list[Result]:
    """Run each policy on each seed; there is at least one. `variant` changes a seed's scenario."""
    played = scenario
    results: list[Result] = []
    for policy in policies:
        outcomes: list[Outcome] = []
        timings: list[Timing] = []
        for seed in seeds:
            played = scenario if variant is None else variant(scenario, seed)
            world, its_timing = play(played, policy, seed)
            outcomes.append(outcome(world, played.setup.models, played.warm_up_s))
            timings.append(its_timing)
        result = Result(
            scenario=played,
            policy=policy,
            seeds=tuple(seeds),
            outcome=together(outcomes),
            timings=tuple(timings),
        )
        results.append(result)
        progress(brief(result))
    return results


def brief(result: Result) -> str:
    """Return a line that says how a run went."""
    out = result.outcome
    took_s = sum(each.took_s for each in result.timings)
    decided_s = sum(each.decided_s for each in result.timings)
    happenings = sum(each.happenings for each in result.timings)
    own = happenings / max(1e-9, took_s - decided_s)
    return (
        f"{result.scenario.group} | {result.scenario.name} | {result.policy}: "
        f"p50 {out.quantile_s(0.5):.3f} s, p99 {out.quantile_s(0.99):.3f} s, "
        f"{out.requests} requests, {out.failed} failed, {took_s:.1f} s "
        f"({own / 1e3:.0f} k happenings/s, {decided_s:.1f} s deciding)"
    )
