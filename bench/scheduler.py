"""Measure how many placements the scheduler's core decides, and how that grows with the cluster.

The core is fed directly, in one process, with the events of clusters of 100 to 10,000 nodes: cold
requests, the unloads that make room, the loads and their outcomes. A sample of the decisions is
compared with the least start time over all devices of the cluster.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.clusters import Cluster, Timed
from bench.report import Mark, Report, Series, publish, this_run
from services.scheduler import candidates
from services.scheduler.choice import Ask

NODES, NODES_QUICK = (100, 316, 1_000, 3_162, 10_000), (100, 1_000)
MODELS_PER_NODE = 10
PLACEMENTS, PLACEMENTS_QUICK = 20_000, 2_000
BATCH = 50  # requests that come together
SAMPLE, SAMPLE_QUICK = 200, 30
RATE_MARK, P99_MARK_MS, EXCESS_MARK, GROWTH_MARK = 5_000.0, 1.0, 0.05, 2.0
METHOD = (
    "One process feeds the core with a cluster's events. Nodes have 4 devices of 80 GiB, nearly "
    "all full of idle instances, and disks of 1.5, 3 or 6 GB/s; there are ten models to a node, 13 "
    "to 60 GiB large, each on eight disks, some in memory. Requests come in batches of 50 for "
    "models that no device holds; a placement is all that is decided for one of them: the request, "
    "evictions, the load and its outcome, the release. A decision's time is the processor's for "
    "one event. "
    "The excess is the chosen device's estimated start time over the least of all devices "
    "in the cluster, by the same estimates, whatever has to be evicted there."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one size of cluster gave."""

    nodes: int
    placements_per_s: float
    decisions_ms: tuple[float, ...]  # of the events that place something
    acquires_ms: tuple[float, ...]
    excess: tuple[float, ...]
    node_bytes: float
    model_bytes: float

    @property
    def p99_ms(self) -> float:
        """Return the time that 99 % of the decisions do not exceed."""
        return quantile(self.decisions_ms, 0.99)


def quantile(values: tuple[float, ...], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def measure(nodes: int, placements: int, sample: int) -> Found:
    """Build a cluster and let it work."""
    gc.collect()
    before = _resident_bytes()
    cluster = Cluster(nodes, nodes * MODELS_PER_NODE)
    cluster.deploy()
    with_models = _resident_bytes()
    cluster.join()
    gc.collect()
    gc.freeze()  # as a service would after its start: what is there to stay is not searched again
    with_nodes = _resident_bytes()
    _work(cluster, placements // 10)
    excess = tuple(_excess(cluster) for _ in range(sample))
    cluster.settle()
    cluster.timed = timed = Timed()
    starts = cluster.starts
    _work(cluster, placements)
    spent_s = sum(sum(each) for each in timed.ns.values()) / 1e9
    placed = cluster.starts - starts
    gc.unfreeze()
    return Found(
        nodes=nodes,
        placements_per_s=placed / spent_s,
        decisions_ms=tuple(ns / 1e6 for each in timed.ns.values() for ns in each),
        acquires_ms=tuple(ns / 1e6 for ns in timed.ns["AcquireRequested"]),
        excess=excess,
        node_bytes=(with_nodes - with_models) / nodes,
        model_bytes=(with_models - before) / (nodes * MODELS_PER_NODE),
    )


def _work(cluster: Cluster, placements: int) -> None:
    for _ in range(placements // BATCH):
        for _ in range(BATCH):
            cluster.ask()
        cluster.settle()


def _excess(cluster: Cluster) -> float:
    """Return by what share the chosen start exceeds the least over all devices."""
    state = cluster.state
    while True:
        model = cluster.random.choice(cluster.models)
        if model.ref.name not in state.starts and not any(state.instances_of(model.ref.name)):
            break
    ask = Ask(
        claimant="",
        deployment=model.ref.name,
        model=model,
        need_bytes=state.deployments[model.ref.name].device_bytes,
        now_s=cluster.now_s,
        asked_s=cluster.now_s,
        avoided={},
    )
    state.turn += 1
    chosen = state.policy.choose(state, ask).chosen
    every = (candidates.at(state, ask, key) for key in state.ledger.devices)
    least_ms = min(each.estimate.total_ms for each in every if each is not None)
    if chosen is None:
        return math.inf
    return chosen.estimate.total_ms / least_ms - 1.0


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not say how much memory is resident")


def report(found: list[Found]) -> Report:
    """Turn what was found into the report."""
    largest, smallest = found[-1], found[0]
    growth = largest.p99_ms / smallest.p99_ms
    series: list[Series] = []
    for each in found:
        label = f"{each.nodes:,} nodes, {each.nodes * MODELS_PER_NODE:,} models"
        series.append(Series(label=f"{label}: decision", unit="ms", values=each.decisions_ms))
        series.append(Series(label=f"{label}: request", unit="ms", values=each.acquires_ms))
    notes = [
        f"{each.nodes:,} nodes: {each.placements_per_s:,.0f} placements/s; a decision's p99 "
        f"{each.p99_ms:.3f} ms; a cold request's p50 {quantile(each.acquires_ms, 0.5):.3f}, p99 "
        f"{quantile(each.acquires_ms, 0.99):.3f} ms; excess: mean "
        f"{100 * sum(each.excess) / len(each.excess):.2f} %, p95 "
        f"{100 * quantile(each.excess, 0.95):.2f} %, most {100 * max(each.excess):.1f} %; "
        f"{each.node_bytes / 1024:.1f} KiB a node (with its devices, instances and list of "
        f"stored models), {each.model_bytes / 1024:.2f} KiB a model"
        for each in found
    ]
    return Report(
        name="scheduler",
        title="The scheduler's core: placements from 100 to 10,000 nodes",
        method=METHOD,
        series=tuple(series),
        marks=(
            Mark(
                name="placements",
                value=largest.placements_per_s,
                unit="per second",
                limit=RATE_MARK,
                is_floor=True,
            ),
            Mark(name="decision, p99", value=largest.p99_ms, unit="ms", limit=P99_MARK_MS),
            Mark(
                name="start time over the least possible, mean",
                value=sum(largest.excess) / len(largest.excess),
                unit="of it",
                limit=EXCESS_MARK,
            ),
            Mark(
                name=f"p99 at {largest.nodes:,} over {smallest.nodes:,} nodes",
                value=growth,
                unit="times",
                limit=GROWTH_MARK,
            ),
        ),
        notes=tuple(notes),
        run=this_run((), {}),
    )


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if the marks are met, 1 if one is missed."""
    parser = argparse.ArgumentParser(
        description="Measure how many placements the scheduler's core decides.",
        epilog="A full run writes docs/benchmarks/scheduler.md.",
    )
    parser.add_argument("--quick", action="store_true", help="small clusters only, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    placements, sample = (PLACEMENTS_QUICK, SAMPLE_QUICK) if options.quick else (PLACEMENTS, SAMPLE)
    found = [
        measure(nodes, placements, sample) for nodes in (NODES_QUICK if options.quick else NODES)
    ]
    return publish(report(found), as_json=options.json, document=not options.quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
