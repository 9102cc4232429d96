"""How long a sequence may become: refused with limit and given value, or capped at the context."""

from dataclasses import replace

import pytest

from services.common.errors import InvalidArgumentError, Reason
from services.common.sampling import Sampling
from services.worker.plan import TokenLimits, plan_sequence

LIMITS = TokenLimits(
    vocabulary=100, context_tokens_max=1000, kv_bytes_per_token=7, kv_bytes=7 * 2000
)
PROMPT = (1,) * 10


def test_unset_max_tokens_means_256() -> None:
    plan = plan_sequence(PROMPT, Sampling(), LIMITS)
    assert plan.max_tokens == 256
    assert plan.kv_bytes == 266 * 7


def test_unset_max_tokens_is_what_the_context_leaves_if_less() -> None:
    assert plan_sequence((1,) * 900, Sampling(), LIMITS).max_tokens == 100


def test_max_tokens_that_fit_are_taken_as_they_are() -> None:
    assert plan_sequence(PROMPT, Sampling(max_tokens=990), LIMITS).max_tokens == 990
    assert plan_sequence(PROMPT, Sampling(max_tokens=1), LIMITS).max_tokens == 1


def test_max_tokens_beyond_the_context_end_at_its_limit() -> None:
    plan = plan_sequence(PROMPT, Sampling(max_tokens=2_000_000), LIMITS)
    assert plan.max_tokens == 990
    assert plan.kv_bytes == 1000 * 7


def test_unset_max_tokens_are_what_the_memory_leaves_if_less() -> None:
    tight = replace(LIMITS, kv_bytes=7 * 100 + 6)
    assert plan_sequence(PROMPT, Sampling(), tight).max_tokens == 90
    # What is asked for is not cut: admission refuses it with the numbers.
    assert plan_sequence(PROMPT, Sampling(max_tokens=200), tight).kv_bytes == 7 * 210
    assert plan_sequence((1,) * 150, Sampling(), tight).kv_bytes == 7 * 151
    unknown = replace(LIMITS, kv_bytes_per_token=0, kv_bytes=0)
    assert plan_sequence(PROMPT, Sampling(), unknown).max_tokens == 256


def test_a_prompt_that_leaves_one_token_is_the_longest() -> None:
    assert plan_sequence((1,) * 999, Sampling(), LIMITS).max_tokens == 1
    with pytest.raises(InvalidArgumentError, match=r"at most 999 tokens.*Given: 1000") as refused:
        plan_sequence((1,) * 1000, Sampling(), LIMITS)
    assert refused.value.reason == Reason.PROMPT_TOO_LONG
    assert refused.value.metadata == {"limit": "999", "given": "1000"}


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="Given: 0"):
        plan_sequence((), Sampling(), LIMITS)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    plan_sequence((99,), Sampling(), LIMITS)
    with pytest.raises(InvalidArgumentError, match=r"below 100\. Given: 100"):
        plan_sequence((1, 100, 2), Sampling(), LIMITS)


def test_memory_in_blocks_is_counted_in_whole_ones() -> None:
    blocks = replace(LIMITS, block_tokens=16)
    assert plan_sequence(PROMPT, Sampling(max_tokens=6), blocks).kv_bytes == 16 * 7
    assert plan_sequence(PROMPT, Sampling(max_tokens=7), blocks).kv_bytes == 32 * 7
