"""A Sampling that exists is within limits; a refusal names the limit and the given value."""

import math
from typing import Any

import pytest

from services.common.errors import InvalidArgumentError
from services.common.sampling import Sampling

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
