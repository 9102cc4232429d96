"""The arguments of a body that say how to choose tokens, under OpenAI's and vLLM's names."""

from __future__ import annotations

from typing import Any, Final

from services.common.sampling import TOP_LOGPROBS_MAX, Sampling, TokenBias
from services.router.http.constraints import parse_constraint
from services.router.http.errors import refuse
from services.router.http.fields import Fields

_TOKEN_ID_MAX: Final = 2**32 - 1
_SEED_MODULUS: Final = 2**64


def parse_sampling(fields: Fields, max_tokens: int | None, top_logprobs: int | None) -> Sampling:
    """Take the arguments out of `fields`. Raises InvalidArgumentError naming the argument."""
    top_k = fields.integer("top_k")
    return Sampling(
        temperature=_number(fields, "temperature", 1.0),
        top_p=_number(fields, "top_p", 1.0),
        top_k=0 if top_k in (None, -1) else top_k or 0,  # -1 is vLLM's word for all
        min_p=_number(fields, "min_p", 0.0),
        presence_penalty=_number(fields, "presence_penalty", 0.0),
        frequency_penalty=_number(fields, "frequency_penalty", 0.0),
        repetition_penalty=_number(fields, "repetition_penalty", 1.0),
        logit_bias=_logit_bias(fields),
        seed=_seed(fields),
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens") or 0,
        stop=_stop(fields),
        stop_token_ids=token_ids(fields, "stop_token_ids", fields.list("stop_token_ids") or []),
        ignore_eos=fields.flag("ignore_eos") or False,
        top_logprobs=top_logprobs,
        constraint=parse_constraint(fields),
    )


def chat_logprobs(fields: Fields) -> int | None:
    """Take `logprobs`, a flag, and `top_logprobs`, a number; return how many to tell."""
    are_wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs")
    if are_wanted:
        return top or 0
    if top:
        raise refuse("top_logprobs", "top_logprobs is only for logprobs: set logprobs to true")
    return None


def completion_logprobs(fields: Fields) -> int | None:
    """Take `logprobs`, which is a number here."""
    top = fields.integer("logprobs")
    if top is not None and not 0 <= top <= TOP_LOGPROBS_MAX:
        raise fields.wrong("logprobs", f"must be between 0 and {TOP_LOGPROBS_MAX}", top)
    return top


def token_ids(fields: Fields, name: str, given: list[Any]) -> tuple[int, ...]:
    """Return a list of token ids, checked."""
    if not all(type(token) is int and 0 <= token <= _TOKEN_ID_MAX for token in given):
        raise fields.wrong(name, f"must be a list of token ids of 0 to {_TOKEN_ID_MAX}", given)
    return tuple(given)


def _number(fields: Fields, name: str, default: float) -> float:
    number = fields.number(name)
    return default if number is None else number


def _logit_bias(fields: Fields) -> tuple[TokenBias, ...]:
    """Return the biases: an object from token ids, as strings, to numbers."""
    given = fields.take("logit_bias")
    if given is None:
        return ()
    rule = "must be an object from token ids to numbers"
    if not isinstance(given, dict):
        raise fields.wrong("logit_bias", rule, given)
    biases = []
    for token, bias in given.items():
        is_id = token.isascii() and token.isdecimal() and len(token) <= len(str(_TOKEN_ID_MAX))
        if not is_id or not isinstance(bias, int | float) or isinstance(bias, bool):
            raise fields.wrong("logit_bias", rule, token if not is_id else bias)
        biases.append(TokenBias(token_id=int(token), bias=_as_float(bias)))
    return tuple(biases)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def _seed(fields: Fields) -> int | None:
    """Return the seed; OpenAI's may be negative and is then taken for its two's complement."""
    seed = fields.integer("seed")
    return None if seed is None else seed % _SEED_MODULUS


def _stop(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop")
    if given is None:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.wrong("stop", "must be a string or a list of strings", given)
    return tuple(texts)
