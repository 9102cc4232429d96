"""Models by their shape: how large they are, and how fast a device computes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from services.common.model import ModelInfo, ModelRef
from services.common.names import parse_model_name
from services.scheduler.deployment import REPLICAS_MAX, Deployment, Spec
from sim.calibration import Hardware

CREATED: Final = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXT_TOKENS: Final = 2048  # what OPT was trained with


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's dimensions, in fp16."""

    name: str
    parameters: float
    layers: int
    hidden: int

    @property
    def weight_bytes(self) -> int:
        """Return the size of its weights."""
        return int(2 * self.parameters)

    @property
    def kv_bytes_per_token(self) -> int:
        """Return what keys and values of one token take."""
        return 2 * 2 * self.layers * self.hidden


OPT: Final = {
    each.name: each
    for each in (
        Shape(name="opt-1.3b", parameters=1.316e9, layers=24, hidden=2048),
        Shape(name="opt-2.7b", parameters=2.652e9, layers=32, hidden=2560),
        Shape(name="opt-6.7b", parameters=6.658e9, layers=32, hidden=4096),
        Shape(name="opt-13b", parameters=12.853e9, layers=40, hidden=5120),
        Shape(name="opt-30b", parameters=29.974e9, layers=48, hidden=7168),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast one kind of device computes one shape."""

    prefill_token_s: float
    step_s: float  # one decode step of one sequence, and what a prefill takes beside its tokens
    step_more_s: float  # for each further sequence in the batch

    def prefill_s(self, tokens: int) -> float:
        """Return the time to the first token of a prompt: a·t + b."""
        return self.prefill_token_s * tokens + self.step_s

    def decode_s(self, batch: int) -> float:
        """Return the time of one step of a batch."""
        return self.step_s + self.step_more_s * (batch - 1)


def pace(shape: Shape, hardware: Hardware) -> Pace:
    """Return how fast `hardware` computes `shape`: prefill by arithmetic, decoding by memory."""
    memory_speed = hardware.memory_speed * hardware.memory_share
    half_context_bytes = shape.kv_bytes_per_token * CONTEXT_TOKENS / 4  # a usual sequence's keys
    return Pace(
        prefill_token_s=2 * shape.parameters / (hardware.compute_speed * hardware.compute_share),
        step_s=hardware.step_s + (shape.weight_bytes + half_context_bytes) / memory_speed,
        step_more_s=half_context_bytes / memory_speed,
    )


def deployment(
    name: str, shape: Shape, *, slots: int, keep_alive_s: float | None = None
) -> Deployment:
    """Return a deployment of a model of this shape, as an operator's would be."""
    info = ModelInfo(
        ref=ModelRef(name=parse_model_name(name), revision="1"),
        architecture="OPTForCausalLM",
        dtype="float16",
        weight_bytes=shape.weight_bytes,
        parameters=int(shape.parameters),
        context_tokens_max=CONTEXT_TOKENS,
        kv_bytes_per_token=shape.kv_bytes_per_token,
    )
    spec = Spec(
        keep_alive_s=keep_alive_s,
        slots=slots,
        context_tokens_max=CONTEXT_TOKENS,
        max_replicas=REPLICAS_MAX,
    )
    return Deployment(name=parse_model_name(name), model=info, spec=spec, created_at=CREATED)
