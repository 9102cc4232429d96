"""A Sampling that exists is within limits; a refusal names the limit and the given value."""

import math
from typing import Any

import pytest

from services.common.errors import InvalidArgumentError
from services.common.sampling import Sampling, TokenBias, seed_of_choice


def bias(token_id: int, value: float) -> TokenBias:
    return TokenBias(token_id=token_id, bias=value)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": math.nan}, "temperature must be between 0 and 10. Given: nan"),
    ({"temperature": math.inf}, "temperature must be between 0 and 10. Given: inf"),
    ({"temperature": -0.1}, "temperature must be between 0 and 10. Given: -0.1"),
    ({"temperature": 10.5}, "temperature must be between 0 and 10. Given: 10.5"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1. Given: 0.0"),
    ({"top_p": 1.01}, "top_p must be above 0 and at most 1. Given: 1.01"),
    ({"top_p": math.nan}, "top_p must be above 0 and at most 1. Given: nan"),
    ({"top_k": -1}, "top_k must be between 0 and 4294967295. Given: -1"),
    ({"seed": -1}, "seed must be between 0 and 18446744073709551615. Given: -1"),
    ({"seed": 2**64}, f"seed must be between 0 and {2**64 - 1}. Given: {2**64}"),
    ({"max_tokens": 0}, "max_tokens must be at least 1 and at most 2147483647. Given: 0"),
    ({"max_tokens": -5}, "max_tokens must be at least 1 and at most 2147483647. Given: -5"),
    ({"max_tokens": 2**31}, "max_tokens must be at least 1"),
    ({"min_p": 1.0}, "min_p must be at least 0 and below 1. Given: 1.0"),
    ({"min_p": -0.1}, "min_p must be at least 0 and below 1. Given: -0.1"),
    ({"min_p": math.nan}, "min_p must be at least 0 and below 1. Given: nan"),
    ({"presence_penalty": 2.1}, "presence_penalty must be between -2 and 2. Given: 2.1"),
    ({"presence_penalty": math.nan}, "presence_penalty must be between -2 and 2. Given: nan"),
    ({"frequency_penalty": -3.0}, "frequency_penalty must be between -2 and 2. Given: -3.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0 and at most 10. Given: 0.0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty must be above 0 and at most 10"),
    ({"logit_bias": (bias(1, 101),)}, "each logit_bias must be between -100 and 100. Given: 101"),
    ({"logit_bias": (bias(1, math.nan),)}, "each logit_bias must be between -100 and 100"),
    ({"logit_bias": (bias(-1, 0),)}, "each token id of logit_bias must be between 0 and"),
    ({"logit_bias": (bias(1, 0), bias(1, 1))}, "logit_bias must name each token once"),
    (
        {"logit_bias": tuple(bias(token, 0) for token in range(1025))},
        "logit_bias must have at most 1024 tokens. Given: 1025",
    ),
    ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20. Given: 21"),
    ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20. Given: -1"),
    ({"min_tokens": -1}, "min_tokens must be at least 0 and at most 2147483647. Given: -1"),
    (
        {"min_tokens": 6, "max_tokens": 5},
        "min_tokens must be at least 0 and at most max_tokens, 5. Given: 6",
    ),
    ({"stop": ("x",) * 10_000}, "stop must have at most 16 texts. Given: 10000"),
    ({"stop": ("a",) * 17}, "stop must have at most 16 texts. Given: 17"),
    ({"stop": ("",)}, "each stop text must have 1 to 256 characters. Given: ''"),
    ({"stop": ("ab" * 129,)}, "(258 characters)"),
    ({"stop_token_ids": (1,) * 65}, "stop_token_ids must have at most 64 tokens. Given: 65"),
    ({"stop_token_ids": (-1,)}, "each stop token id must be between 0 and 4294967295. Given: -1"),
]
TAKEN: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 10.0},
    {"top_p": 1.0},
    {"top_p": 1e-9},
    {"top_k": 2**32 - 1},
    {"seed": 0},
    {"seed": 2**64 - 1},
    {"max_tokens": 1},
    {"max_tokens": 2**31 - 1},
    {"min_p": 0.999},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"repetition_penalty": 10.0},
    {"logit_bias": tuple(bias(token, -100.0) for token in range(1024))},
    {"top_logprobs": 20},
    {"min_tokens": 5, "max_tokens": 5},
    {"stop": ("x" * 256,) * 16},
    {"stop_token_ids": (2**32 - 1,) * 64},
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=str)
def test_a_value_out_of_limits_is_refused_with_limit_and_value(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Sampling(**fields)
    assert message in caught.value.message
    assert caught.value.reason == "INVALID_SAMPLING"


@pytest.mark.parametrize("fields", TAKEN, ids=lambda fields: str(fields)[:40])
def test_a_value_at_its_limit_is_taken(fields: dict[str, Any]) -> None:
    assert all(getattr(Sampling(**fields), name) == value for name, value in fields.items())


def test_only_temperature_zero_is_greedy() -> None:
    assert Sampling(temperature=0.0).is_greedy
    assert not Sampling(temperature=0.1).is_greedy


def test_changes_make_a_new_sampling_and_are_checked_too() -> None:
    original = Sampling(top_k=3)
    assert original.with_seed(7) == Sampling(top_k=3, seed=7)
    assert original.with_max_tokens(9) == Sampling(top_k=3, max_tokens=9)
    with pytest.raises(InvalidArgumentError):
        original.with_max_tokens(0)


def test_each_choice_has_a_seed_of_its_own_that_the_first_ones_decides() -> None:
    seeds = [seed_of_choice(7, index) for index in range(16)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 16
    assert seeds == [seed_of_choice(7, index) for index in range(16)]
    assert set(seeds[1:]).isdisjoint(seed_of_choice(8, index) for index in range(16))
    assert all(0 <= seed < 2**64 for seed in (*seeds, seed_of_choice(2**64 - 1, 15)))
