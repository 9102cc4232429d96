"""Workloads have the rate, the burstiness and the popularity asked for, again and again."""

import math
import statistics
from collections import Counter
from itertools import islice
from random import Random

import pytest

from sim.request import Arrival
from sim.workload import GSM8K, SHAREGPT, Kind, Lengths, Workload, arrivals, gaps

MODELS = tuple(f"m{index}" for index in range(20))


def drawn(kind: Kind, cv: float = 1.0, seed: int = 1, lengths: Lengths = GSM8K) -> list[Arrival]:
    workload = Workload(kind=kind, rate=5.0, cv=cv, duration_s=2000.0, lengths=lengths)
    return list(arrivals(workload, MODELS, seed))


@pytest.mark.parametrize("cv", [1.0, 2.0, 4.0, 8.0])
def test_intervals_have_the_mean_and_the_variation_asked_for(cv: float) -> None:
    random = Random("test")  # noqa: S311 - a game, not a secret
    found = list(islice(gaps(random, 5.0, cv), 400_000))
    mean = statistics.fmean(found)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert statistics.pstdev(found) / mean == pytest.approx(cv, rel=0.06)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_seed_gives_one_workload_and_another_seed_another(kind: Kind) -> None:
    first = drawn(kind, cv=4.0)
    assert first == drawn(kind, cv=4.0)
    assert first != drawn(kind, cv=4.0, seed=2)
    assert [each.at_s for each in first] == sorted(each.at_s for each in first)
    assert {each.deployment for each in first} <= set(MODELS)


def test_popularity_falls_as_zipf_says() -> None:
    counts = Counter(each.deployment for each in drawn(Kind.GAMMA))
    ranked = [count for _, count in counts.most_common()]
    share = sum(1 / rank for rank in range(1, 21))
    assert ranked[0] / sum(ranked) == pytest.approx(1 / share, rel=0.1)
    assert ranked[0] / ranked[9] == pytest.approx(10, rel=0.35)


def test_functions_have_rates_of_different_orders_that_add_up() -> None:
    found = [each for seed in range(5) for each in drawn(Kind.FUNCTIONS, seed=seed)]
    assert len(found) == pytest.approx(5 * 10_000, rel=0.05)
    ranked = sorted(Counter(each.deployment for each in drawn(Kind.FUNCTIONS)).values())
    assert ranked[-1] > 30 * max(1, ranked[0])


def test_a_day_has_its_peak_and_keeps_its_mean() -> None:
    found = drawn(Kind.DIURNAL)
    assert len(found) == pytest.approx(10_000, rel=0.05)
    quarters = Counter(int(each.at_s // 500) for each in found)
    assert quarters[0] + quarters[1] > 2.5 * (quarters[2] + quarters[3])


def test_a_crowd_comes_for_the_least_popular_model() -> None:
    found = drawn(Kind.FLASH)
    crowd = [each for each in found if 1000.0 <= each.at_s < 1200.0]
    name, count = Counter(each.deployment for each in crowd).most_common(1)[0]
    assert count > 900
    before = sum(1 for each in found if each.deployment == name and each.at_s < 1000.0)
    assert before < 0.03 * len(found)


@pytest.mark.parametrize("lengths", [GSM8K, SHAREGPT])
def test_lengths_have_their_means_and_fit_the_context(lengths: Lengths) -> None:
    found = drawn(Kind.GAMMA, lengths=lengths)
    mean = statistics.fmean(each.output_tokens for each in found)
    assert mean == pytest.approx(lengths.output_tokens, rel=0.08)
    assert all(each.prompt_tokens + each.output_tokens <= 2048 for each in found)
    assert all(each.prompt_tokens >= 1 and each.output_tokens >= 1 for each in found)
    assert not any(math.isnan(each.at_s) for each in found)
