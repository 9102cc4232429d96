"""Engines take the time that their pace says: alone, in a batch, shared, and after a move."""

from dataclasses import dataclass, field

import pytest

from sim.agenda import Agenda
from sim.engine import Engine
from sim.request import Arrival, Request
from sim.shapes import Pace

PACE = Pace(prefill_token_s=0.001, step_s=0.02, step_more_s=0.005)


@dataclass
class Bench:
    """An engine and what it told."""

    agenda: Agenda = field(default_factory=Agenda)
    first: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = Engine(self.agenda, self._first, self._ended)

    def _first(self, request: Request) -> None:
        self.first[request.key] = self.agenda.now_s

    def _ended(self, _: str, request: Request) -> None:
        assert request.left == 0
        assert request.done == request.arrival.output_tokens
        self.ended[request.key] = self.agenda.now_s


def request(key: str, prompt: int = 100, output: int = 11) -> Request:
    return Request(key=key, arrival=Arrival(0.0, "m", prompt, output), left=output)


def test_one_sequence_takes_its_prefill_and_a_step_for_each_further_token() -> None:
    bench = Bench()
    bench.engine.add("i", PACE)
    bench.engine.begin("i", request("r"))
    bench.agenda.run(10.0)
    assert bench.first["r"] == pytest.approx(0.12)
    assert bench.ended["r"] == pytest.approx(0.12 + 10 * 0.02)


def test_a_batch_is_slower_for_each_but_faster_for_all() -> None:
    bench = Bench()
    bench.engine.add("i", PACE)
    for key in "ab":
        bench.engine.begin("i", request(key))
    bench.agenda.run(10.0)
    assert bench.ended["a"] == bench.ended["b"] == pytest.approx(0.12 + 10 * 0.025)


def test_the_last_of_a_batch_speeds_up_when_the_others_have_ended() -> None:
    bench = Bench()
    bench.engine.add("i", PACE)
    bench.engine.begin("i", request("short", output=6))
    bench.engine.begin("i", request("long", output=11))
    bench.agenda.run(10.0)
    assert bench.ended["short"] == pytest.approx(0.12 + 5 * 0.025)
    assert bench.ended["long"] == pytest.approx(0.12 + 5 * 0.025 + 5 * 0.02)


def test_instances_that_compute_at_once_share_the_device() -> None:
    bench = Bench()
    for name in "ij":
        bench.engine.add(name, PACE)
    bench.engine.begin("i", request("a", prompt=1, output=101))
    bench.agenda.run(1.0)
    bench.engine.begin("j", request("b", prompt=1, output=2))
    bench.agenda.run(60.0)
    alone = 0.021 + 100 * 0.02
    shared_s = 2 * 0.021 + 2 * 0.02  # while the other prefills and decodes its second token
    assert bench.ended["b"] == pytest.approx(1.0 + shared_s)
    assert bench.ended["a"] == pytest.approx(alone + shared_s / 2)


def test_a_sequence_that_leaves_keeps_its_tokens_and_no_token_is_lost() -> None:
    bench = Bench()
    for name in "ij":
        bench.engine.add(name, PACE)
    moved = request("r", output=101)
    bench.engine.begin("i", moved)
    bench.agenda.run(0.12 + 0.61)
    assert bench.engine.tokens("i", moved) == 100 + 1 + 30
    bench.engine.leave("i", moved)
    assert (moved.done, moved.left) == (31, 70)
    bench.engine.join("j", moved)
    bench.agenda.run(60.0)
    assert bench.ended["r"] == pytest.approx(0.12 + 0.61 + 70 * 0.02)


def test_a_removed_instance_hands_its_sequences_back_and_ends_none() -> None:
    bench = Bench()
    bench.engine.add("i", PACE)
    decoding, prefilling = request("a"), request("b", prompt=5000)
    bench.engine.begin("i", decoding)
    bench.engine.begin("i", prefilling)
    bench.agenda.run(0.2)
    assert {each.key for each in bench.engine.remove("i")} == {"a", "b"}
    bench.agenda.run(60.0)
    assert bench.ended == {}
    assert prefilling.done == 0
    assert decoding.done + decoding.left == 11
