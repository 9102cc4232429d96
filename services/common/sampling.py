"""How to choose tokens and when to stop, validated once.

A `Sampling` cannot be wrong: building one with a value outside its limit raises, with the limit
and the given value in the message. Whoever holds one never checks again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from services.common.errors import InvalidArgumentError, Reason
from services.common.names import shorten

TEMPERATURE_MAX: Final = 10.0
STOP_TEXTS_MAX: Final = 16
STOP_CHARS_MAX: Final = 256
STOP_TOKENS_MAX: Final = 64
MAX_TOKENS_DEFAULT: Final = 256
MAX_TOKENS_MAX: Final = 2**31 - 1  # what the wire's counters hold
_UINT32_MAX: Final = 2**32 - 1
_UINT64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Raises InvalidArgumentError (INVALID_SAMPLING) when built with a value out of limits."""

    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all tokens
    seed: int | None = None  # None until the router draws one
    max_tokens: int | None = None  # None: 256, or what the context leaves if less
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_stops(self)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature == 0.0

    def with_seed(self, seed: int) -> Sampling:
        """Return the same with `seed`, an unsigned 64-bit number."""
        return replace(self, seed=seed)

    def with_max_tokens(self, max_tokens: int) -> Sampling:
        """Return the same with `max_tokens`."""
        return replace(self, max_tokens=max_tokens)


def _refuse(parameter: str, rule: str, given: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{rule}. Given: {given}",
        reason=Reason.INVALID_SAMPLING,
        metadata={"parameter": parameter},
    )


def _check_numbers(sampling: Sampling) -> None:
    temperature, top_p, seed = sampling.temperature, sampling.top_p, sampling.seed
    if not math.isfinite(temperature) or not 0.0 <= temperature <= TEMPERATURE_MAX:
        raise _refuse(
            "temperature", f"temperature must be between 0 and {TEMPERATURE_MAX:g}", temperature
        )
    if not 0.0 < top_p <= 1.0:  # false for NaN too
        raise _refuse("top_p", "top_p must be above 0 and at most 1", top_p)
    if not 0 <= sampling.top_k <= _UINT32_MAX:
        raise _refuse("top_k", f"top_k must be between 0 and {_UINT32_MAX}", sampling.top_k)
    if seed is not None and not 0 <= seed <= _UINT64_MAX:
        raise _refuse("seed", f"seed must be between 0 and {_UINT64_MAX}", seed)
    if sampling.max_tokens is not None and not 1 <= sampling.max_tokens <= MAX_TOKENS_MAX:
        raise _refuse(
            "max_tokens",
            f"max_tokens must be at least 1 and at most {MAX_TOKENS_MAX}",
            sampling.max_tokens,
        )


def _check_stops(sampling: Sampling) -> None:
    if len(sampling.stop) > STOP_TEXTS_MAX:
        raise _refuse("stop", f"stop must have at most {STOP_TEXTS_MAX} texts", len(sampling.stop))
    for text in sampling.stop:
        if not 1 <= len(text) <= STOP_CHARS_MAX:
            raise _refuse(
                "stop", f"each stop text must have 1 to {STOP_CHARS_MAX} characters", shorten(text)
            )
    if len(sampling.stop_token_ids) > STOP_TOKENS_MAX:
        raise _refuse(
            "stop_token_ids",
            f"stop_token_ids must have at most {STOP_TOKENS_MAX} tokens",
            len(sampling.stop_token_ids),
        )
    for token in sampling.stop_token_ids:
        if not 0 <= token <= _UINT32_MAX:
            raise _refuse(
                "stop_token_ids", f"each stop token id must be between 0 and {_UINT32_MAX}", token
            )
