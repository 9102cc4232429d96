"""The pages and the verdict: tables in Markdown, and where Brisk is not the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from services.common.model import Tier
from sim import plot
from sim.calibration import Calibration
from sim.metrics import Timing, outcome, quantile
from sim.runner import BRISK, NAMES, Result
from sim.scenarios import Scenario
from sim.world import World

SATURATED: Final = 0.75  # offered load from which queues grow whatever the policy
TOLERANCE: Final = 1.02  # times the best, where the cluster is saturated
GB: Final = 1e9
HEADING: Final = (
    "| workload | load | policy | mean | p50 | p95 | p99 | in time | failed | cold: DRAM | SSD "
    "| peer, remote | read GB: SSD, network | loads | migrated, killed | pause p99 |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: "
    "| ---: | ---: | ---: | ---: | ---: |\n"
)


def single(scenario: Scenario, policy: str, world: World, its_timing: Timing) -> Result:
    """Return one run as a result."""
    found = outcome(world, scenario.setup.models, scenario.warm_up_s)
    return Result(
        scenario=scenario, policy=policy, seeds=(1,), outcome=found, timings=(its_timing,)
    )


def verdict(results: Sequence[Result]) -> list[str]:
    """Return, in lines, where `brisk` is not what it should be: the best p99, or near it."""
    lines: list[str] = []
    met = total = 0
    for cell in _cells(results):
        told = _judge(cell)
        if told is None:
            continue
        total += 1
        is_met, text = told
        met += is_met
        if not is_met:
            lines.append(text)
    if total:
        lines.append(f"brisk: {met} of {total} workloads as they should be")
    return lines


def _judge(cell: Sequence[Result]) -> tuple[bool, str] | None:
    ours = next((each for each in cell if each.policy == BRISK), None)
    others = [each for each in cell if each.policy != BRISK]
    if ours is None or not others:
        return None
    best = min(others, key=lambda each: each.outcome.quantile_s(0.99))
    least_s, our_s = best.outcome.quantile_s(0.99), ours.outcome.quantile_s(0.99)
    is_saturated = ours.scenario.load >= SATURATED
    is_met = our_s <= least_s * (TOLERANCE if is_saturated else 1.0)
    where = f"{ours.scenario.group}, {ours.scenario.name} (load {ours.scenario.load:.2f})"
    ratio = our_s / least_s if least_s else 1.0
    return is_met, f"{where}: p99 {our_s:.3f} s, {best.policy} {least_s:.3f} s ({ratio:.2f} times)"


def _cells(results: Iterable[Result]) -> list[list[Result]]:
    """Return the results of each workload together, in the order of the policies."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        cells.setdefault((each.scenario.group, each.scenario.name), []).append(each)
    for cell in cells.values():
        cell.sort(key=lambda each: NAMES.index(each.policy))
    return list(cells.values())


def write(results: Sequence[Result], constants: Calibration, folder: Path) -> list[Path]:
    """Write a page for each cluster, and its picture; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, title, chosen in _divided(results):
        if not chosen:
            continue
        picture = folder / f"simulation-{name}.svg"
        has_picture = plot.draw(picture, title, _cells(chosen))
        page = folder / f"simulation-{name}.md"
        page.write_text(_page(title, chosen, picture.name if has_picture else ""), "utf-8")
        written += [page, picture] if has_picture else [page]
    page = folder / "simulation-constants.md"
    page.write_text(_constants(constants), "utf-8")
    return [*written, page]


def _divided(results: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    paper = [each for each in results if " x " in each.scenario.group]
    large = [each for each in results if " x " not in each.scenario.group]
    return [
        ("paper", "Simulation: the ServerlessLLM paper's cluster, five policies", paper),
        ("scale", "Simulation: 100 to 10,000 nodes, five policies", large),
    ]


def _page(title: str, results: Sequence[Result], picture: str) -> str:
    parts = [f"# {title}\n\n", "\n".join(f"- {each}" for each in verdict(results)), "\n\n", METHOD]
    if picture:
        parts.append(f"![p99 of the time to the first token]({picture})\n\n")
    group = ""
    for cell in _cells(results):
        if cell[0].scenario.group != group:
            group = cell[0].scenario.group
            seeds = ", ".join(str(seed) for seed in cell[0].seeds)
            parts.append(f"\n## {group}\n\nSeeds: {seeds}.\n\n{HEADING}")
        best_s = min(each.outcome.quantile_s(0.99) for each in cell)
        parts += [_row(each, best_s) for each in cell]
    parts.append(_speed(results))
    parts.append(f"\nRun on {datetime.now(UTC):%Y-%m-%d} with `make sim`.\n")
    return "".join(parts)


def _row(result: Result, best_s: float) -> str:
    out, scenario = result.outcome, result.scenario
    p99_s = out.quantile_s(0.99)
    shown = f"**{p99_s:.2f}**" if p99_s <= best_s else f"{p99_s:.2f}"
    far = out.cold_share(Tier.PEER) + out.cold_share(Tier.REMOTE)
    network = out.bytes_moved.get(Tier.PEER, 0) + out.bytes_moved.get(Tier.REMOTE, 0)
    cells = (
        scenario.name,
        f"{scenario.load:.2f}",
        result.policy,
        f"{out.mean_s:.2f}",
        f"{out.quantile_s(0.5):.2f}",
        f"{out.quantile_s(0.95):.2f}",
        shown,
        f"{out.attainment:.1%}",
        str(out.failed),
        f"{out.cold_share(Tier.DRAM):.1%}",
        f"{out.cold_share(Tier.SSD):.1%}",
        f"{far:.1%}",
        f"{out.bytes_moved.get(Tier.SSD, 0) / GB:,.0f}, {network / GB:,.0f}",
        str(out.loads),
        f"{out.migrations}, {out.preemptions}",
        f"{quantile(out.pauses_s, 0.99):.2f}",
    )
    return f"| {' | '.join(cells)} |\n"


def _speed(results: Sequence[Result]) -> str:
    """Return how fast it was decided and simulated: measured, so it differs between machines."""
    lines = [
        "\n## Decisions\n\nIn processor time, measured here; all above repeats to the byte.\n\n",
        "| cluster | policy | decisions | per request p50 | p95 | p99 | all decisions a second "
        "| simulator, happenings a second |\n",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    ]
    groups: dict[tuple[str, str], list[Timing]] = {}
    for each in results:
        groups.setdefault((each.scenario.group, each.policy), []).extend(each.timings)
    for (group, policy), timings in groups.items():
        worst = [max(each.acquire_us[index] for each in timings) for index in range(3)]
        decisions = sum(each.decisions for each in timings)
        decided_s = max(1e-9, sum(each.decided_s for each in timings))
        own_s = max(1e-9, sum(each.took_s for each in timings) - decided_s)
        happenings = sum(each.happenings for each in timings)
        shown = " | ".join(f"{each:.0f} us" for each in worst)
        lines.append(
            f"| {group} | {policy} | {decisions:,} | {shown} | {decisions / decided_s:,.0f} "
            f"| {happenings / own_s:,.0f} |\n"
        )
    return "".join(lines)


def _constants(constants: Calibration) -> str:
    lines = [
        "# Simulation: the constants and their sources\n\n"
        "From `sim/calibration.toml`. Bytes, bytes per second and seconds; 1 GB is 1e9 bytes.\n\n"
        "| section | constant | value | source |\n| --- | --- | ---: | --- |\n"
    ]
    lines += [
        f"| {each.section} | {each.name} | {each.value:g} | {each.source} |\n"
        for each in constants.constants
    ]
    return "".join(lines)


METHOD: Final = """\
A discrete-event simulation in virtual time: nodes with an SSD, a memory arena, a network card and
devices, each link a queue; engines that batch and slow down; the router's lines; workers' reports.
`brisk` is the product's own scheduler core, fed with the events that the service feeds it. The
other four share one mechanism and differ in where they start a model (`sim/policies/choices.py`);
they know every store's tiers at once and the hardware's true speeds, and learn nothing. No policy
unloads an idle instance before its memory is wanted. `serverlessllm` migrates running sequences;
`preempt` kills and restarts them, as Shepherd* in that system's paper (OSDI'24).

Times are seconds to the first token, over all requests of all seeds after the first tenth (large
clusters: quarter) of each run. A request that fails counts with the time that it waited; clients
leave after 300 s. `load` is the time that decoding one sequence at a time would keep a device
busy, over all devices. `in time`: first token within 1.5 times an undisturbed start from the SSD.
`pause`: silence after the first token, from a migration, a loss or a restart. Bold: least p99.
Constants and sources: [simulation-constants.md](simulation-constants.md).

"""
