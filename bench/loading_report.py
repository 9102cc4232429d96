"""What the runs of bench.loading come to: figures, ratios to the disk's limit, and the marks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.plot import Bar, draw
from bench.report import DOCUMENTS, Mark, Report, Series, this_run

METHOD = (
    "Random weights of the published shapes, each loader in fresh processes and in a shuffled "
    "order in each round. Imports come before the clock, and so does the faulting-in of Brisk's "
    "pool, which a service does once at its start, and the calibration, which is done once for a "
    "file system; 'fresh memory' is Brisk without a pool. Seconds "
    "run from the call until every page of every tensor was touched, less what touching takes "
    "once all is there. Cold: the page cache was dropped after the imports; warm: the files "
    "were read once before. Brisk verifies the checksum of every chunk, the peers verify none. "
    "The checksum of all tensors, taken outside the times, is equal in every run. 'Of the "
    "limit' is a run's speed over that of fio right before it: one direct read of the same "
    "bytes into huge pages. 'In place' is a new process that maps the pool in which another "
    "holds the model. CPU is of all threads, user and system. Peak is the growth of the "
    "resident set, the pool and mapped file cache included."
)
BRISK, SHARDED, STORED, SMALL, FRESH, IN_PLACE = (
    "brisk",
    "brisk, 4 shards",
    "brisk, stored form",
    "brisk, 4 KiB pages",
    "brisk, fresh memory",
    "brisk, in place",
)
HELD_AGAINST_THE_DISK = (BRISK, SHARDED, STORED, SMALL, FRESH)
OF_LIMIT, OF_LIMIT_SMALL = 0.95, 0.85
OVER_BEST_PEER, OVER_SAFETENSORS = 1.15, 1.3
CPU_S_PER_GB, IN_PLACE_MS = 0.12, 10.0
PEERS = ("safetensors", "runai-model-streamer", "fastsafetensors", "tensorizer")
HUGE_PAGE = 2 << 20


@dataclass(slots=True, kw_only=True)
class Figures:
    """What the runs of one loader took, one entry per run."""

    seconds: list[float] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)  # until the call returned
    cpu_s: list[float] = field(default_factory=list)
    system_s: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    peak_bytes: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Results:
    """What was measured of one model."""

    model: str
    file_bytes: int
    conversion_gb_per_s: float = math.nan
    in_huge_pages: bool = False  # fio's buffers
    limits: list[float] = field(default_factory=list)  # fio's GB/s, all of them
    beside: dict[str, list[float]] = field(default_factory=dict)  # of them, right before its runs
    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, loader: str, kind: str, found: Mapping[str, float]) -> None:
        """Keep what one run reported."""
        figures = self.figures.setdefault((loader, kind), Figures())
        figures.seconds.append(found["seconds"])
        figures.call_s.append(found["call_s"])
        figures.cpu_s.append(found["cpu_s"])
        figures.system_s.append(found["system_s"])
        figures.faults.append(found["faults"])
        figures.peak_bytes.append(found["peak_bytes"])
        if loader == BRISK and found["page_bytes"] < HUGE_PAGE:
            self.notes["pages"] = "Brisk's pool got no huge pages."

    def forget(self, loader: str, reason: str) -> None:
        """Drop a loader that failed: half a series says nothing."""
        self.notes[loader] = f"{loader} was not measured: {reason}"
        self.figures = {key: one for key, one in self.figures.items() if key[0] != loader}

    def of_limit(self, loader: str) -> list[float]:
        """Return each cold run's speed over what fio read at right before it."""
        seconds = self.figures.get((loader, "cold"), Figures()).seconds
        pairs = zip(seconds, self.beside.get(loader, ()), strict=False)  # without fio: none
        return [self.file_bytes / 1e9 / took / limit for took, limit in pairs]

    def cold_s(self, loader: str) -> float:
        """Return the median of the cold runs in seconds; NaN without any."""
        return _median(self.figures.get((loader, "cold"), Figures()).seconds)

    def best_peer(self) -> str | None:
        """Return the loader that was fastest on the cold disk, ours aside."""
        peers = [
            name for name, kind in self.figures if kind == "cold" and not name.startswith("brisk")
        ]
        return min(peers, key=self.cold_s, default=None)


def report(results: Results, *, with_plot: bool) -> Report:
    """Turn the figures of one model into its report; with `with_plot` write its picture too."""
    name = f"loading-{results.model.lower()}"
    plot = f"{name}.svg" if with_plot else ""
    if with_plot:
        DOCUMENTS.mkdir(parents=True, exist_ok=True)
        draw(DOCUMENTS / plot, f"{results.model}, cold disk to usable memory", _bars(results))
    return Report(
        name=name,
        title=f"Loading {results.model}: from the disk to tensors in memory",
        method=METHOD,
        series=tuple(_series(results)),
        marks=tuple(_marks(results)),
        notes=tuple(_notes(results)),
        run=this_run(("torch", "transformers", *PEERS), {}),
        plot=plot,
    )


def _series(results: Results) -> list[Series]:
    found: list[Series] = []
    gigabytes = results.file_bytes / 1e9

    def add(label: str, unit: str, values: Sequence[float]) -> None:
        if values:
            found.append(Series(label=label, unit=unit, values=tuple(values)))

    add(
        f"fio, direct, {'huge' if results.in_huge_pages else '4 KiB'} pages", "GB/s", results.limits
    )
    order = sorted(results.figures, key=lambda key: (key[1], _median(results.figures[key].seconds)))
    for loader, kind in order:
        figures = results.figures[loader, kind]
        add(f"{kind}: {loader}", "s", figures.seconds)
        if loader == IN_PLACE:
            add(
                f"{kind}: {loader}, until the call returned",
                "ms",
                [s * 1e3 for s in figures.call_s],
            )
            continue
        add(f"{kind}: {loader}, speed", "GB/s", [gigabytes / one for one in figures.seconds])
        if kind == "cold":
            add(f"{kind}: {loader}, of the limit", "x", results.of_limit(loader))
        add(f"{kind}: {loader}, CPU", "s/GB", [one / gigabytes for one in figures.cpu_s])
        add(f"{kind}: {loader}, peak", "GB", [one / 1e9 for one in figures.peak_bytes])
    return found


def _marks(results: Results) -> list[Mark]:
    def floor(name: str, value: float, limit: float) -> Mark:
        return Mark(name=name, value=value, unit="x", limit=limit, is_floor=True)

    own_s, best = results.cold_s(BRISK), results.best_peer()
    cpu_s = _median(results.figures.get((BRISK, "cold"), Figures()).cpu_s)
    in_place = results.figures.get((IN_PLACE, "cold"))
    marks = [
        floor("best peer's time over Brisk's", _ratio(results, best, own_s), OVER_BEST_PEER),
        floor(
            "safetensors' time over Brisk's",
            _ratio(results, "safetensors", own_s),
            OVER_SAFETENSORS,
        ),
        *(
            floor(f"{loader}: of the disk's limit", _median(results.of_limit(loader)), limit)
            for loader, limit in (
                (BRISK, OF_LIMIT),
                (SHARDED, OF_LIMIT),
                (STORED, OF_LIMIT),
                (SMALL, OF_LIMIT_SMALL),
            )
        ),
        Mark(
            name="CPU with checksums",
            value=cpu_s / (results.file_bytes / 1e9),
            unit="s/GB",
            limit=CPU_S_PER_GB,
        ),
    ]
    if in_place is not None:
        value = _median(in_place.call_s) * 1e3
        marks.append(Mark(name="in place from the pool", value=value, unit="ms", limit=IN_PLACE_MS))
    return marks


def _ratio(results: Results, peer: str | None, own_s: float) -> float:
    return math.nan if peer is None else results.cold_s(peer) / own_s


def _notes(results: Results) -> list[str]:
    notes = list(results.notes.values())
    if not results.limits:
        notes.append("fio is not on the PATH: the disk's limit was not measured.")
    elif not results.in_huge_pages:
        notes.append("fio had no huge pages, so that its figure understates the disk.")
    if (best := results.best_peer()) is not None:
        notes.append(f"The fastest peer is {best}.")
    if not math.isnan(results.conversion_gb_per_s):
        speed = f"{results.conversion_gb_per_s:.2f} GB/s"
        notes.append(f"Converted into the stored form once, at {speed}.")
    fresh, pool = (results.figures.get((name, "cold")) for name in (FRESH, BRISK))
    if fresh is not None and pool is not None:
        notes.append(_where_fresh_memory_goes(fresh, pool))
    return notes


def _where_fresh_memory_goes(fresh: Figures, pool: Figures) -> str:
    more_s = _median(fresh.seconds) - _median(pool.seconds)
    system_s = _median(fresh.system_s) - _median(pool.system_s)
    return (
        f"Fresh memory costs {more_s:.2f} s more than the pool. Its "
        f"{_median(fresh.faults):.0f} page faults take {system_s:.2f} s more of the kernel's "
        "processor time, on all threads, for getting and clearing pages."
    )


def _bars(results: Results) -> list[Bar]:
    gigabytes = results.file_bytes / 1e9
    bars = [
        Bar(label=loader, values=tuple(gigabytes / one for one in figures.seconds))
        for (loader, kind), figures in results.figures.items()
        if kind == "cold" and loader != IN_PLACE
    ]
    if results.limits:
        bars.append(Bar(label="fio (the disk's limit)", values=tuple(results.limits)))
    return bars


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
