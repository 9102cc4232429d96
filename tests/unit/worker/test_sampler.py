"""The sampler's promises: the right distribution, and noise that (seed, position) decides."""

from typing import Any

import numpy as np
import pytest

from services.common.errors import InternalError, InvalidArgumentError, Reason
from services.common.sampling import Sampling, TokenBias
from services.worker.sampler import Logits, Sampler, _draw, choose

LOGITS: Logits = np.log(np.array([0.5, 0.05, 0.25, 0.15, 0.05], dtype=np.float32))


def drawn(sampling: Sampling, count: int = 4000, logits: Logits = LOGITS) -> np.ndarray:
    """Return the share of each token over many positions."""
    tokens = [choose(logits, sampling, position) for position in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_temperature_0_takes_the_first_of_the_most_likely() -> None:
    logits = np.array([1, 3, 3, 2], dtype=np.float32)
    assert choose(logits, Sampling(temperature=0.0), 7) == 1


def test_temperature_1_draws_from_the_models_own_distribution() -> None:
    assert drawn(Sampling(seed=1)) == pytest.approx([0.5, 0.05, 0.25, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    squared = np.array([0.5, 0.05, 0.25, 0.15, 0.05]) ** 2
    assert drawn(Sampling(seed=2, temperature=0.5)) == pytest.approx(
        squared / squared.sum(), abs=0.03
    )
    assert drawn(Sampling(seed=2, temperature=10.0)).max() < 0.27


def test_top_k_keeps_the_k_most_likely_in_proportion() -> None:
    assert drawn(Sampling(seed=3, top_k=2)) == pytest.approx([2 / 3, 0, 1 / 3, 0, 0], abs=0.03)
    assert set(np.flatnonzero(drawn(Sampling(seed=3, top_k=100)))) == {0, 1, 2, 3, 4}


def test_top_k_keeps_exactly_k_also_among_equals() -> None:
    flat = np.zeros(10, dtype=np.float32)
    assert set(np.flatnonzero(drawn(Sampling(seed=4, top_k=3), logits=flat))) == {0, 1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    def kept(top_p: float) -> set[int]:
        return set(np.flatnonzero(drawn(Sampling(seed=5, top_p=top_p), 1500)).tolist())

    assert kept(0.4) == {0}
    assert kept(0.74) == {0, 2}
    assert kept(0.76) == {0, 2, 3}
    assert kept(1e-9) == {0}


def test_top_k_is_applied_before_top_p() -> None:
    # Of the two kept by top_k, 0.5 and 0.25, the first alone has two thirds.
    assert drawn(Sampling(seed=6, top_k=2, top_p=0.6))[0] == 1.0


def test_equal_seed_and_position_draw_equally_and_others_do_not() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    first = [choose(flat, Sampling(seed=7), position) for position in range(50)]
    assert first == [choose(flat, Sampling(seed=7), position) for position in range(50)]
    assert len(set(first)) > 40
    assert first != [choose(flat, Sampling(seed=8), position) for position in range(50)]
    assert choose(flat, Sampling(seed=2**64 - 1), 0) != choose(flat, Sampling(seed=0), 0)


def test_what_was_drawn_before_does_not_matter() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    alone = choose(flat, Sampling(seed=9), 31)
    for position in (4, 31, 2):
        choose(flat, Sampling(seed=10), position)
    assert choose(flat, Sampling(seed=9), 31) == alone


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], dtype=np.float32)
    assert set(np.flatnonzero(drawn(Sampling(seed=11), 500, logits))) == {1, 3}


def test_the_smallest_temperature_is_as_good_as_none() -> None:
    assert drawn(Sampling(seed=12, temperature=5e-324), 200)[0] == 1.0


@pytest.mark.parametrize("worst", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_fail_the_sequence(worst: float, temperature: float) -> None:
    logits = np.array([1, worst, 2], dtype=np.float32)
    with pytest.raises(InternalError) as failed:
        choose(logits, Sampling(temperature=temperature, seed=1), 0)
    assert failed.value.reason == Reason.ENGINE_FAILED


def test_a_row_of_minus_infinity_fails_the_sequence() -> None:
    with pytest.raises(InternalError):
        choose(np.full(3, -np.inf, dtype=np.float32), Sampling(seed=1), 0)


@pytest.mark.parametrize("total", [1.0, 1.0 + 2**-52, 1.5, 2.0 - 2**-52, 3.7, 1e-300, 49_999.3])
def test_the_largest_number_below_1_draws_the_last_token_that_can_be(total: float) -> None:
    assert _draw(np.array([0.0, total, 0.0]), 1 - 2**-53) == 1
    assert _draw(np.array([0.0, total, 0.0]), 0.0) == 1


def test_the_last_token_can_be_drawn_and_none_beyond_it() -> None:
    logits = np.zeros(3, dtype=np.float32)
    tokens = {choose(logits, Sampling(seed=seed), 0) for seed in range(200)}
    assert tokens == {0, 1, 2}


def test_min_p_drops_what_is_unlikely_beside_the_most_likely() -> None:
    def kept(min_p: float) -> set[int]:
        return set(np.flatnonzero(drawn(Sampling(seed=13, min_p=min_p), 1500)).tolist())

    assert kept(0.05) == {0, 1, 2, 3, 4}
    assert kept(0.2) == {0, 2, 3}
    assert kept(0.4) == {0, 2}
    assert kept(0.6) == {0}


def sampler(
    prompt: tuple[int, ...] = (), delivered: tuple[int, ...] = (), **fields: Any
) -> Sampler:
    return Sampler.of(
        Sampling(temperature=0.0, **fields), prompt, delivered=delivered, stop_token_ids=(4,)
    )


def chosen(by: Sampler, *rows: list[float]) -> list[int]:
    """Return what is chosen from these logits, one row after the other."""
    made = [np.array(row, dtype=np.float32) for row in rows]
    return [by.choose(row, position).token_id for position, row in enumerate(made)]


def test_a_presence_penalty_counts_once_and_for_the_answer_only() -> None:
    row = [3.0, 2.5, 1.0, 0.0, -9.0]
    assert chosen(sampler(presence_penalty=1.0), row, row, row) == [0, 1, 0]
    assert chosen(sampler((0, 0), presence_penalty=1.0), row) == [0]


def test_a_frequency_penalty_counts_each_time() -> None:
    row = [3.0, 1.5, 1.0, 0.0, -9.0]
    assert chosen(sampler(frequency_penalty=1.0), row, row, row) == [0, 0, 1]


def test_a_negative_penalty_is_a_reward() -> None:
    first, then = [1.0, 0.0, 0.0, 0.0, -9.0], [1.0, 2.0, 0.0, 0.0, -9.0]
    assert chosen(sampler(presence_penalty=-2.0), first, then) == [0, 0]
    assert chosen(sampler(), first, then) == [0, 1]


def test_a_repetition_penalty_counts_prompt_and_answer_and_lowers_either_sign() -> None:
    assert chosen(sampler((0,), repetition_penalty=2.0), [3.0, 2.0, 0.0, 0.0, -9.0]) == [1]
    assert chosen(sampler((0,), repetition_penalty=2.0), [-1.0, -1.5, -3.0, -3.0, -9.0]) == [1]
    row = [3.0, 2.0, 1.75, 0.0, -9.0]
    assert chosen(sampler(repetition_penalty=2.0), row, row, row) == [0, 1, 2]


def test_a_bias_moves_its_tokens_only() -> None:
    bias = (TokenBias(token_id=2, bias=100.0), TokenBias(token_id=0, bias=-100.0))
    assert chosen(sampler(logit_bias=bias), [3.0, 2.0, 1.0, 0.0, -9.0]) == [2]
    assert chosen(sampler(logit_bias=bias[1:]), [3.0, 2.0, 1.0, 0.0, -9.0]) == [1]


def test_a_bias_for_a_token_that_the_model_has_not_is_refused_with_the_limit() -> None:
    sampling = Sampling(logit_bias=(TokenBias(token_id=5, bias=1.0),))
    with pytest.raises(InvalidArgumentError, match=r"must be below 5\. Given: 5") as refused:
        Sampler.of(sampling, (), vocabulary=5)
    assert refused.value.metadata["parameter"] == "logit_bias"


def test_no_stop_token_is_chosen_before_min_tokens() -> None:
    row = [1.0, 0.0, 0.0, 0.0, 5.0]
    assert chosen(sampler(min_tokens=2), row, row, row) == [0, 0, 4]
    assert chosen(sampler((), (3,), min_tokens=2), row, row) == [0, 4]


def test_a_stop_token_is_chosen_early_if_there_is_no_other() -> None:
    assert chosen(sampler(min_tokens=2), [-np.inf] * 4 + [5.0]) == [4]


def test_the_models_logits_stay_as_they_are() -> None:
    row = np.array([3.0, 2.0, 1.0, 0.0, -9.0], dtype=np.float32)
    row.setflags(write=False)
    by = sampler((0,), presence_penalty=1.0, repetition_penalty=2.0, min_tokens=9)
    assert [by.choose(row, position).token_id for position in range(2)] == [1, 0]


FIELDS: dict[str, Any] = {
    "temperature": 0.9,
    "seed": 3,
    "presence_penalty": 0.7,
    "frequency_penalty": 0.4,
    "repetition_penalty": 1.3,
    "min_tokens": 12,
    "logit_bias": (TokenBias(token_id=1, bias=0.5),),
}


@pytest.mark.parametrize("cut", [0, 1, 7, 19])
def test_an_answer_taken_up_elsewhere_draws_what_it_would_have_drawn(cut: int) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    prompt = (2, 5)
    whole = Sampler.of(Sampling(**FIELDS), prompt, stop_token_ids=(0, 1))
    tokens = [whole.choose(row, len(prompt) + i).token_id for i, row in enumerate(rows)]
    resumed = Sampler.of(Sampling(**FIELDS), prompt, delivered=tokens[:cut], stop_token_ids=(0, 1))
    rest = [resumed.choose(row, len(prompt) + cut + i).token_id for i, row in enumerate(rows[cut:])]
    assert rest == tokens[cut:]


def test_logprobs_are_the_models_own_most_likely_first() -> None:
    bias = (TokenBias(token_id=4, bias=100.0),)
    choice = sampler(top_logprobs=3, logit_bias=bias).choose(LOGITS, 0)
    assert choice.token_id == 4
    assert choice.logprob == pytest.approx(np.log(0.05))
    assert [token for token, _ in choice.top] == [0, 2, 3]
    assert [np.exp(each) for _, each in choice.top] == pytest.approx([0.5, 0.25, 0.15])


def test_logprobs_of_equals_are_told_from_the_lowest_token_on() -> None:
    choice = sampler(top_logprobs=2).choose(np.zeros(4, dtype=np.float32), 0)
    assert [token for token, _ in choice.top] == [0, 1]


def test_logprobs_are_told_if_asked_for_only() -> None:
    assert sampler().choose(LOGITS, 0).logprob is None
    alone = sampler(top_logprobs=0).choose(LOGITS, 0)
    assert alone.top == ()
    assert alone.logprob == pytest.approx(np.log(0.5))
    masked = np.array([1.0, -np.inf], dtype=np.float32)
    assert len(sampler(top_logprobs=20).choose(masked, 0).top) == 1


def test_tokens_beyond_the_models_last_logit_do_no_harm() -> None:
    bias = (TokenBias(token_id=9, bias=1.0), TokenBias(token_id=1, bias=9.0))
    assert chosen(sampler((9,), repetition_penalty=2.0, logit_bias=bias), [1.0, 0.0]) == [1]


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_penalties_do_not_hide_logits_that_are_no_numbers(worst: float) -> None:
    bias = (TokenBias(token_id=1, bias=-100.0),)
    with pytest.raises(InternalError):
        chosen(sampler(logit_bias=bias), [1.0, worst, 2.0])


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_top_p_of_a_large_vocabulary_is_that_of_sorting_all_of_it(scale: float) -> None:
    logits = np.random.default_rng(1).normal(scale=scale, size=5000).astype(np.float32)
    shares = np.exp(logits.astype(np.float64))
    order = np.argsort(-shares, kind="stable")
    reached = np.cumsum(shares[order]) / shares.sum()
    for top_p in (0.3, 0.9, 0.999):
        nucleus = order[: int(np.searchsorted(reached, top_p)) + 1]
        masked = np.full_like(logits, -np.inf)
        masked[nucleus] = logits[nucleus]
        for position in range(100):
            expected = choose(masked, Sampling(seed=14), position)
            assert choose(logits, Sampling(seed=14, top_p=top_p), position) == expected
