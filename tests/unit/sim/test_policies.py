"""Each comparison policy does what it is named for, in a cluster made to tell them apart.

Two nodes of one device. The SSD of node 0 has `victim` and `wanted`, that of node 1 neither. Two
early requests bring `victim` to both nodes. Then it computes on node 0, for 40 s, and `wanted` is
asked for: from the SSD of node 0 it takes 2.3 s, to node 1 over the network 10.7 s.
"""

from dataclasses import replace

import pytest

from services.common.model import Tier
from sim.request import Arrival, Request
from sim.world import World
from tests.unit.sim.small import played, setup

LONG = 1500  # tokens: 40 s
PLAY = (
    Arrival(1.0, "victim", 50, 5),
    Arrival(1.0, "victim", 50, 5),
    Arrival(40.0, "victim", 50, LONG),
    Arrival(50.0, "wanted", 50, 5),
)


def contended(policy: str) -> World:
    made = setup("victim", "other", "wanted", nodes=2, copies=1)
    return played(replace(made, hardware=replace(made.hardware, devices=1.0)), policy, PLAY)


def ttft(request: Request) -> float:
    assert request.first_token_s is not None
    return request.first_token_s - request.arrival.at_s


def test_random_takes_what_is_free_though_the_network_is_slow() -> None:
    world = contended("random")
    assert 10.0 < ttft(world.requests[-1]) < 12.0
    assert world.requests[-1].source is Tier.PEER
    assert world.requests[-2].moves == 0


def test_locality_waits_for_the_best_tier_though_another_node_is_free() -> None:
    world = contended("locality")
    assert ttft(world.requests[-1]) > 25.0
    assert world.requests[-1].source is Tier.SSD
    assert world.requests[-2].moves == 0


def test_serverlessllm_migrates_what_is_in_the_way_and_its_client_hardly_notices() -> None:
    world = contended("serverlessllm")
    victim, wanted = world.requests[-2:]
    assert ttft(wanted) < 5.0
    assert (world.migrations, world.preemptions) == (1, 0)
    assert (victim.moves, victim.restarts) == (1, 0)
    assert max(victim.pauses_s) < 0.5, "it decodes on while its destination loads"
    model, tokens = world.setup.models["victim"], 50 + 10.0 / 0.0264
    hardware, control = world.setup.hardware, world.setup.control
    size = model.shape.weight_bytes
    least_s = size / hardware.arena_speed + size / hardware.ssd_speed + 2 * control.init_s
    least_s += model.pace.prefill_s(int(tokens)) + model.pace.prefill_s(50) + 2 * control.unload_s
    assert ttft(wanted) > least_s, "evict, load there, prefill, hand over, unload, load here"
    assert ttft(wanted) < least_s + 0.1


def test_preempt_kills_what_is_in_the_way_and_its_client_waits_for_all_again() -> None:
    world = contended("preempt")
    victim, wanted = world.requests[-2:]
    assert ttft(wanted) < 4.0
    assert (world.migrations, world.preemptions) == (0, 1)
    assert (victim.moves, victim.restarts) == (1, 1)
    assert victim.ended_s is not None
    assert victim.ended_s - victim.arrival.at_s > 49.0, "the first ten seconds were for nothing"


@pytest.mark.parametrize("policy", ["preempt", "serverlessllm"])
def test_nothing_is_moved_that_has_nowhere_to_go(policy: str) -> None:
    made = setup("victim", "wanted", nodes=1, copies=1)
    made = replace(made, hardware=replace(made.hardware, devices=1.0))
    world = played(made, policy, [Arrival(1.0, "victim", 50, 500), Arrival(9.0, "wanted", 50, 5)])
    assert (world.migrations, world.preemptions) == (0, 0)
    assert ttft(world.requests[-1]) > 5.0


def test_random_does_not_care_where_the_weights_are() -> None:
    names = "abcdefghijkl"
    made = setup(*names, nodes=4, copies=4)
    wanted = [Arrival(20.0 * index, names[index % 12], 50, 5) for index in range(96)]
    sources = {
        policy: [each.source for each in played(made, policy, wanted).requests]
        for policy in ("random", "locality")
    }
    assert sources["locality"].count(Tier.SSD) < sources["random"].count(Tier.SSD)
