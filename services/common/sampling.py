"""How to choose tokens and when to stop, validated once.

A `Sampling` cannot be wrong: building one with a value outside its limit raises, with the limit
and the given value in the message. Whoever holds one never checks again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from services.common.constraint import Constraint
from services.common.errors import InvalidArgumentError, Reason
from services.common.names import shorten

TEMPERATURE_MAX: Final = 10.0
PENALTY_MAX: Final = 2.0  # presence and frequency, either way
REPETITION_PENALTY_MAX: Final = 10.0
BIAS_MAX: Final = 100.0
BIASES_MAX: Final = 1024
TOP_LOGPROBS_MAX: Final = 20
STOP_TEXTS_MAX: Final = 16
STOP_CHARS_MAX: Final = 256
STOP_TOKENS_MAX: Final = 64
MAX_TOKENS_DEFAULT: Final = 256
MAX_TOKENS_MAX: Final = 2**31 - 1  # what the wire's counters hold
_UINT32_MAX: Final = 2**32 - 1
_UINT64_MAX: Final = 2**64 - 1
_SEED_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBias:
    """What is added to one token's logit."""

    token_id: int
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Raises InvalidArgumentError (INVALID_SAMPLING) when built with a value out of limits."""

    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all tokens
    min_p: float = 0.0  # as a share of the most likely token's probability
    presence_penalty: float = 0.0  # for tokens that the answer has
    frequency_penalty: float = 0.0  # for each time that it has them
    repetition_penalty: float = 1.0  # a factor, for tokens that prompt or answer have
    logit_bias: tuple[TokenBias, ...] = ()
    seed: int | None = None  # None until the router draws one
    max_tokens: int | None = None  # None: 256, or what the context leaves if less
    min_tokens: int = 0  # before these no stop ends the sequence
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None  # None tells none, 0 the chosen token's only
    constraint: Constraint | None = None  # what the answer must look like

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_penalties(self)
        _check_counts(self)
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


def seed_of_choice(seed: int, index: int) -> int:
    """Return the seed of one of several answers; the first one's is `seed` itself."""
    if index == 0:
        return seed
    drawn = hashlib.blake2b(
        seed.to_bytes(_SEED_BYTES, "little") + index.to_bytes(_SEED_BYTES, "little"),
        digest_size=_SEED_BYTES,
    )
    return int.from_bytes(drawn.digest(), "little")


def _refuse(parameter: str, rule: str, given: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{rule}. Given: {given}",
        reason=Reason.INVALID_SAMPLING,
        metadata={"parameter": parameter},
    )


def _check_within(parameter: str, given: float, least: float, most: float) -> None:
    if not least <= given <= most:  # false for NaN too
        raise _refuse(parameter, f"{parameter} must be between {least:g} and {most:g}", given)


def _check_numbers(sampling: Sampling) -> None:
    top_p, min_p = sampling.top_p, sampling.min_p
    _check_within("temperature", sampling.temperature, 0, TEMPERATURE_MAX)
    if not 0.0 < top_p <= 1.0:
        raise _refuse("top_p", "top_p must be above 0 and at most 1", top_p)
    if not 0.0 <= min_p < 1.0:
        raise _refuse("min_p", "min_p must be at least 0 and below 1", min_p)
    if not 0 <= sampling.top_k <= _UINT32_MAX:
        raise _refuse("top_k", f"top_k must be between 0 and {_UINT32_MAX}", sampling.top_k)
    if sampling.seed is not None and not 0 <= sampling.seed <= _UINT64_MAX:
        raise _refuse("seed", f"seed must be between 0 and {_UINT64_MAX}", sampling.seed)
    if sampling.top_logprobs is not None:
        _check_within("top_logprobs", sampling.top_logprobs, 0, TOP_LOGPROBS_MAX)


def _check_penalties(sampling: Sampling) -> None:
    repetition = sampling.repetition_penalty
    _check_within("presence_penalty", sampling.presence_penalty, -PENALTY_MAX, PENALTY_MAX)
    _check_within("frequency_penalty", sampling.frequency_penalty, -PENALTY_MAX, PENALTY_MAX)
    if not 0.0 < repetition <= REPETITION_PENALTY_MAX:
        raise _refuse(
            "repetition_penalty",
            f"repetition_penalty must be above 0 and at most {REPETITION_PENALTY_MAX:g}",
            repetition,
        )
    biases = sampling.logit_bias
    if len(biases) > BIASES_MAX:
        raise _refuse(
            "logit_bias", f"logit_bias must have at most {BIASES_MAX} tokens", len(biases)
        )
    for each in biases:
        _check_token("logit_bias", "each token id of logit_bias", each.token_id)
        if not -BIAS_MAX <= each.bias <= BIAS_MAX:
            rule = f"each logit_bias must be between {-BIAS_MAX:g} and {BIAS_MAX:g}"
            raise _refuse("logit_bias", rule, each.bias)
    if len({each.token_id for each in biases}) != len(biases):
        raise _refuse("logit_bias", "logit_bias must name each token once", "one twice")


def _check_counts(sampling: Sampling) -> None:
    max_tokens, min_tokens = sampling.max_tokens, sampling.min_tokens
    if max_tokens is not None and not 1 <= max_tokens <= MAX_TOKENS_MAX:
        raise _refuse(
            "max_tokens",
            f"max_tokens must be at least 1 and at most {MAX_TOKENS_MAX}",
            max_tokens,
        )
    most = MAX_TOKENS_MAX if max_tokens is None else max_tokens
    if not 0 <= min_tokens <= most:
        limit = "max_tokens, " if max_tokens is not None else ""
        rule = f"min_tokens must be at least 0 and at most {limit}{most}"
        raise _refuse("min_tokens", rule, min_tokens)


def _check_stops(sampling: Sampling) -> None:
    if sampling.ignore_eos and sampling.constraint is not None:
        rule = "ignore_eos must be false with a constraint, which decides where the answer ends"
        raise _refuse("ignore_eos", rule, "true")
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
        _check_token("stop_token_ids", "each stop token id", token)


def _check_token(parameter: str, what: str, token: int) -> None:
    if not 0 <= token <= _UINT32_MAX:
        raise _refuse(parameter, f"{what} must be between 0 and {_UINT32_MAX}", token)
