"""A small cluster for tests: round numbers, so that times can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim import calibration
from sim.request import Arrival
from sim.runner import scheduler
from sim.setup import Failure, Model, Setup, model
from sim.shapes import OPT, deployment
from sim.workload import Lengths
from sim.world import World

CONSTANTS = calibration.load()
HARDWARE = replace(CONSTANTS.hardware["a40"], devices=2.0, spread=1e-9)
SHORT = Lengths(name="short", prompt_tokens=50, prompt_cv=0.3, output_tokens=40, output_cv=0.4)


def models(*names: str, shape: str = "opt-6.7b", slots: int = 1) -> dict[str, Model]:
    """Return deployments of one shape."""
    made = (deployment(name, OPT[shape], slots=slots, keep_alive_s=None) for name in names)
    return {each.name: model(each, OPT[shape], HARDWARE, CONSTANTS.control) for each in made}


def setup(
    *names: str,
    nodes: int = 2,
    slots: int = 1,
    copies: int = 2,
    failures: tuple[Failure, ...] = (),
    is_exclusive: bool = True,
) -> Setup:
    """Return a cluster; `is_exclusive`: a device has room for one instance."""
    made = models(*names, slots=slots)
    device_bytes = float(next(iter(made.values())).deployment.device_bytes)
    hardware = replace(HARDWARE, device_bytes=device_bytes) if is_exclusive else HARDWARE
    return Setup(
        nodes=nodes,
        hardware=hardware,
        control=CONSTANTS.control,
        models=made,
        copies=copies,
        failures=failures,
    )


def played(made: Setup, policy: str, arrivals: Sequence[Arrival], seed: int = 1) -> World:
    """Return the world after a run."""
    world = World(made, scheduler(policy, made.hardware, seed), seed)
    world.run(arrivals)
    return world
