"""What a run is made of: the cluster, its models, its clients, and what will go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.scheduler.deployment import Deployment
from sim.calibration import Control, Hardware
from sim.shapes import Pace, Shape, pace
from sim.store import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A deployment with what the simulator knows of its model."""

    deployment: Deployment
    shape: Shape
    pace: Pace
    slo_s: float  # a first token later than that misses the objective

    @property
    def name(self) -> str:
        """Return the deployment's name, which is the model's as well."""
        return self.deployment.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Nodes that die at a time and are back, with empty memory, at another."""

    at_s: float
    back_s: float
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything but the scheduler, the arrivals and the seed."""

    nodes: int
    hardware: Hardware
    control: Control
    models: Mapping[str, Model]
    copies: int  # nodes that have each model on their SSD at the beginning
    patience_s: float = 300.0  # how long a client waits for its first token
    failures: tuple[Failure, ...] = ()
    # By node and device: the models that are there at the beginning, as a new leader finds them.
    resident: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)


def model(deployment: Deployment, shape: Shape, hardware: Hardware, control: Control) -> Model:
    """Return a deployment's model on this hardware.

    Its objective is a first token within one and a half times an undisturbed start from the SSD.
    """
    its_pace = pace(shape, hardware)
    disk = Link(min(hardware.ssd_speed, hardware.arena_speed))
    load_s = disk.carry(0.0, shape.weight_bytes)[1]
    start_s = load_s + control.init_s + its_pace.prefill_s(256)
    return Model(deployment=deployment, shape=shape, pace=its_pace, slo_s=1.5 * start_s)
