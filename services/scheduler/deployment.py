"""What an operator asked for: a deployment, its specification and the memory it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.common.errors import InvalidArgumentError, Reason
from services.common.model import ModelInfo, ModelRef
from services.common.names import ModelName

KEEP_ALIVE_S_DEFAULT: Final = 300.0
KEEP_ALIVE_S_MAX: Final = 365 * 86_400.0
SLOTS_DEFAULT: Final = 4
SLOTS_MAX: Final = 256
CONTEXT_TOKENS_RESERVED_MAX: Final = 2048  # per slot; but one sequence of full length always fits
CONTEXT_TOKENS_UNSTATED: Final = 2048  # for a model whose config states no limit
CONTEXT_TOKENS_MAX: Final = 2**31 - 1
REPLICAS_MAX: Final = 1000
PRIORITY_MAX: Final = 10
MAX_QUEUE_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """How a deployment should behave."""

    keep_alive_s: float | None  # None: an idle instance stays for ever
    slots: int
    context_tokens_max: int
    priority: int = 0  # a step counts like having come a turn earlier
    min_replicas: int = 0
    max_replicas: int = 1
    target_concurrency: int | None = None  # sequences to an instance; None: as many as its slots
    max_queue: int | None = None  # requests that wait for an instance; None: no limit of its own
    learns_keep_alive: bool = False  # from its idle times; then keep_alive_s holds until it has


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecWish:
    """A specification as given: None where the operator left the choice to us."""

    keep_alive_s: float | None = None  # negative: for ever
    slots: int | None = None
    context_tokens_max: int | None = None
    priority: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    target_concurrency: int | None = None
    max_queue: int | None = None
    learns_keep_alive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model that an operator made available under a name."""

    name: ModelName
    model: ModelInfo
    spec: Spec
    created_at: datetime

    @property
    def device_bytes(self) -> int:
        """Return what an instance reserves on its device: weights and key/value cache."""
        context = self.spec.context_tokens_max
        tokens = max(context, self.spec.slots * min(context, CONTEXT_TOKENS_RESERVED_MAX))
        return self.model.weight_bytes + tokens * self.model.kv_bytes_per_token

    def serves_like(self, other: Deployment) -> bool:
        """Whether an instance of one can serve requests for the other."""
        return (
            self.model.ref == other.model.ref
            and self.spec.slots == other.spec.slots
            and self.spec.context_tokens_max == other.spec.context_tokens_max
            and self.device_bytes == other.device_bytes
        )

    def made(self, *, ref: ModelRef, slots: int, memory_bytes: int) -> bool:
        """Whether an instance with these facts is one of ours as it is specified now."""
        return (
            ref == self.model.ref and slots == self.spec.slots and memory_bytes == self.device_bytes
        )


def check_wish(wish: SpecWish) -> None:
    """Check what needs no knowledge of the model. Raises InvalidArgumentError (INVALID_SPEC)."""
    _check_scale(wish)
    if wish.slots is not None and not 1 <= wish.slots <= SLOTS_MAX:
        raise _invalid(f"slots must be between 1 and {SLOTS_MAX}. Given: {wish.slots}")
    if wish.context_tokens_max is not None and wish.context_tokens_max < 1:
        raise _invalid(f"context_tokens_max must be at least 1. Given: {wish.context_tokens_max}")
    if wish.keep_alive_s is not None and (
        not math.isfinite(wish.keep_alive_s) or wish.keep_alive_s > KEEP_ALIVE_S_MAX
    ):
        raise _invalid(
            f"keep_alive must be at most {KEEP_ALIVE_S_MAX:.0f} s. Given: {wish.keep_alive_s:g} s"
        )


def _check_scale(wish: SpecWish) -> None:
    for what, value, least, most in (
        ("priority", wish.priority, -PRIORITY_MAX, PRIORITY_MAX),
        ("min_replicas", wish.min_replicas, 0, REPLICAS_MAX),
        ("max_replicas", wish.max_replicas, 1, REPLICAS_MAX),
        ("target_concurrency", wish.target_concurrency, 1, REPLICAS_MAX * SLOTS_MAX),
        ("max_queue", wish.max_queue, 1, MAX_QUEUE_MAX),
    ):
        if value is not None and not least <= value <= most:
            raise _invalid(f"{what} must be between {least} and {most}. Given: {value}")
    least_allowed = wish.min_replicas or 0
    if wish.max_replicas is not None and wish.max_replicas < least_allowed:
        raise _invalid(
            f"max_replicas must be at least min_replicas, {least_allowed}. "
            f"Given: {wish.max_replicas}"
        )


def settle(wish: SpecWish, model: ModelInfo) -> Spec:
    """Return the specification with defaults filled in from `model`.

    Raises InvalidArgumentError (INVALID_SPEC) with limit and given value.
    """
    check_wish(wish)
    limit = model.context_tokens_max
    min_replicas = wish.min_replicas or 0
    tokens = wish.context_tokens_max
    if tokens is not None and limit and tokens > limit:
        raise _invalid(
            f"context_tokens_max must be at most {limit}, which {model.ref.name} supports. "
            f"Given: {tokens}"
        )
    keep_alive_s = KEEP_ALIVE_S_DEFAULT if wish.keep_alive_s is None else wish.keep_alive_s
    return Spec(
        keep_alive_s=keep_alive_s if keep_alive_s >= 0.0 else None,
        slots=SLOTS_DEFAULT if wish.slots is None else wish.slots,
        context_tokens_max=tokens or limit or CONTEXT_TOKENS_UNSTATED,
        priority=wish.priority or 0,
        min_replicas=min_replicas,
        max_replicas=wish.max_replicas or max(1, min_replicas),
        target_concurrency=wish.target_concurrency,
        max_queue=wish.max_queue,
        learns_keep_alive=wish.learns_keep_alive,
    )


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason=Reason.INVALID_SPEC)
