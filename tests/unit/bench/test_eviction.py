"""The replay's promise: nothing beats foresight, and the figures are those of the policies."""

from __future__ import annotations

import random

from bench.eviction import POLICIES, TRACES, Model, foreseen_hits, hits, main, replay, zipf
from services.storemgr.eviction import Lru


def test_no_policy_finds_more_than_foresight() -> None:
    for make_trace in TRACES.values():
        trace = make_trace(random.Random(1), 2000)  # noqa: S311 - repeatable
        best = foreseen_hits(trace, 30)
        for make in POLICIES.values():
            assert 0 < hits(trace, 30, make) <= best < 1


def test_foresight_keeps_what_is_needed_again_first() -> None:
    assert foreseen_hits([1, 2, 3, 1, 2, 3], 2) == 2 / 6
    assert hits([1, 2, 3, 1, 2, 3], 2, Lru) == 0


def test_a_tier_never_holds_more_than_it_can() -> None:
    rng = random.Random(2)  # noqa: S311 - repeatable
    of = [Model(rng.randrange(1, 100)) for _ in range(300)]
    outcome = replay(zipf(rng, 1000), of, Lru)
    assert 0 < outcome.memory_hits < 1
    assert replay([0, 0], [Model(5)] + [Model(500)] * 299, Lru).memory_hits == 0.5


def test_a_quick_run_measures_and_says_so() -> None:
    assert main(["--quick", "--json"]) in {0, 1}
