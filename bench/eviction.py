"""What the eviction policy keeps in memory and on the disk, against LRU and against foresight.

Replays traces of model starts against the policies of services/storemgr/eviction.py: no clock, no
disk, no threads, so the figures are those of the policies alone and the same on every machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.report import Mark, Report, Series, publish, this_run
from services.storemgr.eviction import CostAware, EvictionPolicy, Lru

GB: Final = 10**9
MODELS: Final = 300
STARTS, STARTS_QUICK = 20_000, 3_000
SEEDS, SEEDS_QUICK = 9, 2
SIZES_GB: Final = (0.5, 1, 2.6, 6, 14, 26, 60, 140)  # of common models in 16 bits
SIZE_WEIGHTS: Final = (3, 4, 4, 5, 8, 4, 2, 1)
MEMORY_SHARE, DISK_SHARE = 0.10, 0.40  # of all models' bytes
DISK_BYTES_PER_S, REMOTE_BYTES_PER_S = 3 * GB, 0.6 * GB
DISK_S, REMOTE_S = 0.01, 0.2  # beside the bytes
ZIPF: Final = 0.9
ACTIVE: Final = 12  # models that a bursty trace uses at a time
BACKGROUND: Final = 0.15  # of its starts are of any model
BURST: Final = 60  # starts that an active model stays active for, on average
OF_LRU: Final = {"Zipf": 0.95, "bursts": 1.0}  # the marks
OF_FORESIGHT: Final = 0.75

Policies = Callable[[], EvictionPolicy[int]]
POLICIES: Final[dict[str, Policies]] = {"cost-aware": CostAware, "LRU": Lru}
METHOD = (
    f"{MODELS} models of 0.5 to 140 GB are started in the order of a trace; a tenth of their bytes "
    "fits into memory, four tenths onto the disk, all are remote. Memory is for nothing, the disk "
    f"gives {DISK_BYTES_PER_S / GB:g} GB/s, the remote store {REMOTE_BYTES_PER_S / GB:g}. Zipf: "
    f"popularity falls with rank to the power of {ZIPF}, for ever. Bursts: {ACTIVE} models are "
    f"active at a time, each for about {BURST} starts, and {BACKGROUND:.0%} of starts are of any "
    "model. Foresight (Belády) evicts what is needed again last, and is the best that can be for "
    "models of equal size; so that comparison has all models equal and memory alone."
)


@dataclass(frozen=True, slots=True)
class Model:
    """What a start needs."""

    size_bytes: int

    @property
    def disk_s(self) -> float:
        """Time to bring it from the disk."""
        return DISK_S + self.size_bytes / DISK_BYTES_PER_S

    @property
    def remote_s(self) -> float:
        """Time to bring it from afar."""
        return REMOTE_S + self.size_bytes / REMOTE_BYTES_PER_S


@dataclass(slots=True)
class Tier:
    """A tier of some size and its policy."""

    capacity: int
    policy: EvictionPolicy[int]
    held: dict[int, int] = field(default_factory=dict)
    used: int = 0
    hits: int = 0

    def bring(self, key: int, size: int, cost_s: float) -> None:
        """Let a model in, if it can ever fit; whatever goes, goes."""
        if size > self.capacity:
            return
        if self.used + size > self.capacity:
            for victim in self.policy.ranked():
                self.used -= self.held.pop(victim)
                self.policy.remove(victim)
                if self.used + size <= self.capacity:
                    break
        self.held[key] = size
        self.used += size
        self.policy.admit(key, size, cost_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trace cost."""

    memory_hits: float  # of all starts
    disk_hits: float  # of those that missed memory
    moved_bytes: int  # from disk or afar
    waited_s: float


def zipf(rng: random.Random, starts: int) -> list[int]:
    """Return a trace whose popularities never change."""
    ranks = list(range(MODELS))
    rng.shuffle(ranks)
    weights = [1 / (rank + 1) ** ZIPF for rank in range(MODELS)]
    return rng.choices(ranks, weights, k=starts)


def bursty(rng: random.Random, starts: int) -> list[int]:
    """Return a trace in which models come into use and go out of it."""
    trace = []
    active = [rng.randrange(MODELS) for _ in range(ACTIVE)]
    for _ in range(starts):
        slot = rng.randrange(ACTIVE)
        if rng.random() < 1 / BURST:
            active[slot] = rng.randrange(MODELS)
        any_of_all = rng.random() < BACKGROUND
        trace.append(rng.randrange(MODELS) if any_of_all else active[slot])
    return trace


TRACES: Final = {"Zipf": zipf, "bursts": bursty}


def models(rng: random.Random) -> list[Model]:
    """Return models of all sizes."""
    return [
        Model(int(GB * rng.choices(SIZES_GB, SIZE_WEIGHTS)[0] * rng.uniform(0.8, 1.25)))
        for _ in range(MODELS)
    ]


def replay(trace: Sequence[int], of: Sequence[Model], make: Policies) -> Outcome:
    """Start the models of a trace from memory, disk or afar."""
    total = sum(model.size_bytes for model in of)
    memory = Tier(int(total * MEMORY_SHARE), make())
    disk = Tier(int(total * DISK_SHARE), make())
    moved, waited_s = 0, 0.0
    for key in trace:
        model = of[key]
        in_memory, on_disk = key in memory.held, key in disk.held
        if on_disk:  # in use, wherever the bytes come from
            disk.policy.use(key)
        if in_memory:
            memory.hits += 1
            memory.policy.use(key)
            continue
        moved += model.size_bytes
        if on_disk:
            disk.hits += 1
            waited_s += model.disk_s
        else:
            moved += model.size_bytes
            waited_s += model.remote_s
            disk.bring(key, model.size_bytes, model.remote_s)
        memory.bring(key, model.size_bytes, model.disk_s)
    missed = max(1, len(trace) - memory.hits)
    return Outcome(memory.hits / len(trace), disk.hits / missed, moved, waited_s)


def hits(trace: Sequence[int], slots: int, make: Policies) -> float:
    """Return the share of starts that find their model among `slots` of equal size."""
    tier = Tier(slots, make())
    for key in trace:
        if key in tier.held:
            tier.hits += 1
            tier.policy.use(key)
        else:
            tier.bring(key, 1, 1.0)
    return tier.hits / len(trace)


def foreseen_hits(trace: Sequence[int], slots: int) -> float:
    """Return the same for a policy that knows the future: nothing can be better."""
    coming: dict[int, list[int]] = defaultdict(list)
    for place in range(len(trace) - 1, -1, -1):
        coming[trace[place]].append(place)
    held: set[int] = set()
    found = 0
    for key in trace:
        coming[key].pop()
        if key in held:
            found += 1
            continue
        if len(held) == slots:
            held.remove(
                max(held, key=lambda each: coming[each][-1] if coming[each] else len(trace))
            )
        held.add(key)
    return found / len(trace)


def measure(starts: int, seeds: int) -> dict[tuple[str, str, str], list[float]]:
    """Return every figure by trace, policy and kind; one value for each seed."""
    figures: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    slots = round(MODELS * MEMORY_SHARE)
    for trace_name, make_trace in TRACES.items():
        for seed in range(seeds):
            rng = random.Random(f"{trace_name} {seed}")  # noqa: S311 - repeatable, no secret
            of, trace = models(rng), make_trace(rng, starts)
            for name, make in POLICIES.items():
                outcome = replay(trace, of, make)
                figures[trace_name, name, "memory hits"].append(100 * outcome.memory_hits)
                figures[trace_name, name, "disk hits"].append(100 * outcome.disk_hits)
                figures[trace_name, name, "moved"].append(outcome.moved_bytes / 1e12)
                figures[trace_name, name, "waited"].append(outcome.waited_s / starts)
                equal = 100 * hits(trace, slots, make)
                figures[trace_name, name, "hits, equal sizes"].append(equal)
            foreseen = 100 * foreseen_hits(trace, slots)
            figures[trace_name, "foresight", "hits, equal sizes"].append(foreseen)
    return figures


UNITS: Final = {
    "memory hits": "%",
    "disk hits": "%",
    "moved": "TB",
    "waited": "s per start",
    "hits, equal sizes": "%",
}


def report(figures: dict[tuple[str, str, str], list[float]]) -> Report:
    """Return the page's content."""
    series = tuple(
        Series(label=f"{trace}, {kind}: {name}", unit=UNITS[kind], values=tuple(values))
        for (trace, name, kind), values in figures.items()
    )

    def ratio(trace: str, kind: str, other: str) -> float:
        ours, theirs = figures[trace, "cost-aware", kind], figures[trace, other, kind]
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))

    marks = tuple(
        Mark(
            name=f"{trace}: time waited against LRU",
            value=ratio(trace, "waited", "LRU"),
            unit="of LRU's",
            limit=OF_LRU[trace],
        )
        for trace in TRACES
    ) + tuple(
        Mark(
            name=f"{trace}: hits against foresight, equal sizes",
            value=ratio(trace, "hits, equal sizes", "foresight"),
            unit="of foresight's",
            limit=OF_FORESIGHT,
            is_floor=True,
        )
        for trace in TRACES
    )
    return Report(
        name="eviction",
        title="Eviction: what stays in memory and on the disk",
        method=METHOD,
        series=series,
        marks=marks,
        notes=("Bytes from afar count twice: they go to the disk and to memory.",),
        run=this_run((), {}),
    )


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if the marks are met, 1 if one is missed."""
    parser = argparse.ArgumentParser(
        description="Replay traces of model starts against the eviction policies.",
        epilog="A full run writes docs/benchmarks/eviction.md and takes minutes.",
    )
    parser.add_argument("--quick", action="store_true", help="shorter traces, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    starts, seeds = (STARTS_QUICK, SEEDS_QUICK) if options.quick else (STARTS, SEEDS)
    try:
        figures = measure(starts, seeds)
    except KeyboardInterrupt:
        return 130
    return publish(report(figures), as_json=options.json, document=not options.quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
