"""Promise: every way decodes the same sequences, and the marks say which one is ahead."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from bench.engine import PEERS, Results, Subject, measure, report, work_for
from bench.engine_ways import Timing, Work

TINY = Subject(
    label="tiny",
    config=LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    ),
)
WAYS = ("Brisk", "Brisk, exact", *PEERS)


def timing(per_s: float) -> Timing:
    return Timing(tokens=((1, 2),), times_s=((1 / per_s, 2 / per_s),))


def test_all_ways_decode_all_sequences() -> None:
    results = measure(TINY, (2,), 1)
    assert set(results.rates) == {(way, 2) for way in WAYS}
    assert min(rate for rates in results.rates.values() for rate in rates) > 0
    assert len(results.step_ms) == 16 * 31
    assert len(results.bare_ms) == 31
    assert results.unequal == set()


def test_a_rate_counts_until_the_last_token_and_a_gap_is_between_two_of_a_sequence() -> None:
    found = Timing(tokens=((1, 2), (3,)), times_s=((0.5, 2.0), (1.0,)))
    assert found.tokens_per_s == 1.5
    assert found.gaps_ms == [1500.0]


def test_the_marks_compare_with_each_peer_and_with_the_bare_loop() -> None:
    results = Results(bare_ms=[10.0], step_ms=[10.5])
    for way, rate in zip(WAYS, (20.0, 10.0, 10.0, 25.0), strict=True):
        results.add(way, 4, timing(rate))
    marks = report({"tiny": results}).marks
    assert [mark.value for mark in marks] == pytest.approx([2.0, 0.8, 5.0])
    assert [mark.passed for mark in marks] == [True, False, True]
    assert "2.00 times the time at 4" in report({"tiny": results}).notes[0]


def test_the_work_is_the_same_each_time_and_unequal() -> None:
    work = work_for(16, 64)
    assert work == work_for(16, 64)
    assert isinstance(work, Work)
    assert len({len(prompt) for prompt in work.prompts}) > 5
    assert len(set(work.tokens)) > 5
