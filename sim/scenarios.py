"""The runs that `make sim` makes: the paper's cluster, and clusters of 100 to 10,000 nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from sim.calibration import Calibration
from sim.setup import Failure, Model, Setup, model
from sim.shapes import OPT, Shape, deployment
from sim.workload import LENGTHS, Kind, Lengths, Workload, popularity

FAILED_SHARE: Final = 0.05
BIG_CLUSTER: Final = 1_000  # nodes, from which on heartbeats are rarer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One cluster under one workload."""

    group: str  # of the page
    name: str
    setup: Setup
    workload: Workload
    warm_up_s: float  # requests that come before are served but not counted
    load: float  # the offered load: busy time of devices, over all there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Models of one experiment of the paper."""

    shape: Shape
    count: int
    joined: int  # devices that one instance takes
    rates: tuple[float, ...]


# Rates from little load to the edge of saturation, for each size on 16 devices.
PAPER: Final = (
    Fleet(shape=OPT["opt-6.7b"], count=32, joined=1, rates=(0.2, 0.8, 1.4)),
    Fleet(shape=OPT["opt-13b"], count=16, joined=1, rates=(0.2, 0.5, 0.8)),
    Fleet(shape=OPT["opt-30b"], count=8, joined=2, rates=(0.1, 0.2, 0.4)),
)
CVS: Final = (1.0, 2.0, 4.0, 8.0)


def paper(calibration: Calibration, *, duration_s: float, is_quick: bool) -> list[Scenario]:
    """Return the paper's cluster: 4 nodes of 4 A40, one request at a time on each instance."""
    return [
        _paper_run(calibration, fleet, _draw(lengths, rate, cv, duration_s))
        for fleet in (PAPER[:1] if is_quick else PAPER)
        for lengths in LENGTHS.values()
        for rate in (fleet.rates[1:2] if is_quick else fleet.rates)
        for cv in (CVS[-1:] if is_quick else CVS)
    ]


def _draw(lengths: Lengths, rate: float, cv: float, duration_s: float) -> Workload:
    return Workload(kind=Kind.FUNCTIONS, rate=rate, cv=cv, duration_s=duration_s, lengths=lengths)


def _paper_run(calibration: Calibration, fleet: Fleet, workload: Workload) -> Scenario:
    hardware = calibration.hardware["a40"].joined(fleet.joined)
    models: dict[str, Model] = {}
    for index in range(fleet.count):
        name = f"{fleet.shape.name}-{index:02d}"
        wanted = deployment(name, fleet.shape, slots=1, keep_alive_s=None)
        models[name] = model(wanted, fleet.shape, hardware, calibration.control)
    # One instance to a device, as in the paper: its engine takes all of the memory.
    whole = next(iter(models.values())).deployment.device_bytes
    setup = Setup(
        nodes=4,
        hardware=replace(hardware, device_bytes=float(whole)),
        control=calibration.control,
        models=models,
        copies=4,
    )
    return Scenario(
        group=f"{fleet.count} x {fleet.shape.name}, {workload.lengths.name}",
        name=f"{workload.rate:g}/s, CV {workload.cv:g}",
        setup=setup,
        workload=workload,
        warm_up_s=0.1 * workload.duration_s,
        load=offered_load(setup, workload),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A cluster's size, and for how long it is simulated."""

    nodes: int
    models: int
    duration_s: float


SIZES: Final = (
    Size(nodes=100, models=1_000, duration_s=300.0),
    Size(nodes=1_000, models=10_000, duration_s=60.0),
    Size(nodes=10_000, models=100_000, duration_s=20.0),
)
SLOTS: Final = 4
COPIES: Final = 8  # nodes that have each model on their SSD at the beginning
MIX: Final = (("opt-1.3b", 1), ("opt-2.7b", 2), ("opt-6.7b", 4), ("opt-13b", 3))
RESIDENT_SHARE: Final = 0.6  # of all device memory, taken by the most popular models at first
SPARE: Final = 0.7  # of an instance's slots that its usual load takes


def scale(calibration: Calibration, size: Size, kind: Kind, *, load: float) -> Scenario:
    """Return a large cluster: models of mixed sizes that share devices, four sequences each."""
    hardware = calibration.hardware["a40"]
    shapes = [OPT[name] for name, share in MIX for _ in range(share)]
    models: dict[str, Model] = {}
    for index in range(size.models):
        shape = shapes[index % len(shapes)]
        wanted = deployment(f"m{index:06d}", shape, slots=SLOTS, keep_alive_s=None)
        models[wanted.name] = model(wanted, shape, hardware, calibration.control)
    control = calibration.control
    if size.nodes >= BIG_CLUSTER:
        control = replace(control, heartbeat_s=4.0 * control.heartbeat_s)
    setup = Setup(
        nodes=size.nodes, hardware=hardware, control=control, models=models, copies=COPIES
    )
    lengths = LENGTHS["gsm8k"]
    probe = Workload(kind=kind, rate=1.0, cv=4.0, duration_s=size.duration_s, lengths=lengths)
    workload = replace(probe, rate=load / offered_load(setup, probe))
    return Scenario(
        group=f"{size.nodes:,} nodes, {size.models:,} models",
        name=kind.value,
        setup=setup,
        workload=workload,
        warm_up_s=0.25 * size.duration_s,
        load=load,
    )


def warmed(scenario: Scenario, seed: int) -> Scenario:
    """Return a scenario whose popular models are resident, as a leader finds them that takes over.

    Each has as many instances as its rate keeps busy, spread over all devices in turn.
    """
    setup, workload = scenario.setup, scenario.workload
    popular = popularity(tuple(setup.models), seed)
    total = sum((rank + 1) ** -workload.zipf for rank in range(len(popular)))
    rooms = _Rooms(setup)
    for rank, name in enumerate(popular):
        its = setup.models[name]
        busy_s = its.pace.decode_s(1) * workload.lengths.output_tokens
        sequences = workload.rate * (rank + 1) ** -workload.zipf / total * busy_s
        count = math.ceil(sequences / (SPARE * its.deployment.spec.slots))
        if not all(rooms.take(name, its.deployment.device_bytes) for _ in range(count)):
            break
    return replace(scenario, setup=replace(setup, resident=rooms.taken()))


class _Rooms:
    """Devices that are filled in turn, up to a share of all their memory."""

    def __init__(self, setup: Setup) -> None:
        self._nodes = setup.nodes
        count = setup.nodes * int(setup.hardware.devices)
        self._free = [setup.hardware.device_bytes] * count
        self._left = RESIDENT_SHARE * sum(self._free)
        self._names: dict[int, list[str]] = {}
        self._at = 0

    def take(self, name: str, need_bytes: int) -> bool:
        """Give a model the next device that has room; False if enough is taken."""
        count = len(self._free)
        for _ in range(count if self._left > 0 else 0):
            self._at = (self._at + 1) % count
            if self._free[self._at] >= need_bytes:
                self._free[self._at] -= need_bytes
                self._left -= need_bytes
                self._names.setdefault(self._at, []).append(name)
                return True
        return False

    def taken(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """Return what is where, by node and device; neighbours in turn are on different nodes."""
        return {
            (at % self._nodes, at // self._nodes): tuple(names) for at, names in self._names.items()
        }


def failing(scenario: Scenario, seed: int) -> Scenario:
    """Return a scenario in which 5 % of the nodes die halfway, for a fifth of the run."""
    nodes = scenario.setup.nodes
    random = Random(f"failures {seed}")
    dead = random.sample(range(nodes), max(1, round(FAILED_SHARE * nodes)))
    duration_s = scenario.workload.duration_s
    failure = Failure(at_s=0.5 * duration_s, back_s=0.7 * duration_s, nodes=tuple(sorted(dead)))
    return replace(
        scenario,
        name=f"{scenario.name}, 5 % of nodes fail",
        setup=replace(scenario.setup, failures=(failure,)),
    )


def offered_load(setup: Setup, workload: Workload) -> float:
    """Return the share of the devices' time that decoding one sequence at a time would take."""
    lengths = workload.lengths
    busy_s = 0.0
    for each in setup.models.values():
        decode_s = each.pace.decode_s(1) * lengths.output_tokens
        busy_s += each.pace.prefill_s(int(lengths.prompt_tokens)) + decode_s
    mean_s = busy_s / len(setup.models)
    return workload.rate * mean_s / (setup.nodes * setup.hardware.devices)


def traced(calibration: Calibration, models: Mapping[str, None], shape: Shape, nodes: int) -> Setup:
    """Return a cluster for a trace: all of its models have one shape."""
    hardware = calibration.hardware["a40"]
    made: dict[str, Model] = {}
    for name in models:
        wanted = deployment(name, shape, slots=SLOTS, keep_alive_s=None)
        made[name] = model(wanted, shape, hardware, calibration.control)
    return Setup(nodes=nodes, hardware=hardware, control=calibration.control, models=made, copies=3)
