"""The sampler's promises: the right distribution, and noise that (seed, position) decides."""

import numpy as np
import pytest

from services.common.errors import InternalError, Reason
from services.common.sampling import Sampling
from services.worker.sampler import Logits, _draw, choose

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
