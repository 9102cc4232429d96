"""Every request ends, budgets hold, tokens add up, and times are those of the hardware."""

from collections import Counter
from dataclasses import replace

import pytest

from services.common.model import Tier
from sim.metrics import outcome
from sim.request import Arrival
from sim.runner import NAMES
from sim.scenarios import Size, scale, warmed
from sim.setup import Failure
from sim.workload import Kind, Workload, arrivals, popularity
from sim.world import World
from tests.unit.sim.small import CONSTANTS, SHORT, played, setup


def busy(kind: Kind = Kind.GAMMA, rate: float = 1.0, duration_s: float = 120.0) -> Workload:
    return Workload(kind=kind, rate=rate, cv=4.0, duration_s=duration_s, lengths=SHORT)


def audit(world: World) -> None:
    """Check what must hold after any run."""
    for request in world.requests:
        assert request.ended_s is not None
        if not request.failure:
            assert (request.done, request.left) == (request.arrival.output_tokens, 0)
            assert request.first_token_s is not None
            model = world.setup.models[request.arrival.deployment]
            least_s = model.pace.prefill_s(request.arrival.prompt_tokens)
            assert request.first_token_s - request.arrival.at_s >= least_s
    for worker in world.workers.values():
        assert worker.free_bytes >= 0
        assert all(each.running == 0 for each in worker.held.values())
    assert world.router.waiting == 0
    for shelf in (each for store in world.stores for each in (store.arena, store.ssd)):
        assert shelf.used_bytes == sum(shelf.sizes.values()) <= shelf.capacity_bytes


def test_a_cold_start_takes_the_disk_and_a_second_one_nothing() -> None:
    made = setup("a", nodes=1)
    model = made.models["a"]
    world = played(made, "random", [Arrival(1.0, "a", 100, 10), Arrival(60.0, "a", 100, 10)])
    audit(world)
    cold, warm = ((each.first_token_s or 0.0) - each.arrival.at_s for each in world.requests)
    disk_s = model.shape.weight_bytes / made.hardware.ssd_speed
    assert cold == pytest.approx(disk_s + 0.065 + model.pace.prefill_s(100), abs=0.02)
    assert warm == pytest.approx(model.pace.prefill_s(100), abs=0.01)
    assert [each.source for each in world.requests] == [Tier.SSD, Tier.DEVICE]


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("kind", [Kind.GAMMA, Kind.FUNCTIONS, Kind.FLASH])
def test_every_request_ends_under_every_policy(policy: str, kind: Kind) -> None:
    made = setup(*"abcdefgh")
    world = played(made, policy, tuple(arrivals(busy(kind), tuple(made.models), 3)))
    audit(world)
    found = outcome(world, made.models, 0.0)
    assert found.requests > 30
    assert found.failed == 0
    assert sum(found.by_tier.values()) == found.requests
    assert found.ttft_s == tuple(sorted(found.ttft_s))


@pytest.mark.parametrize("policy", NAMES)
def test_models_that_share_devices_are_served_too(policy: str) -> None:
    made = setup(*"abcdefgh", slots=4, is_exclusive=False)
    audit(played(made, policy, tuple(arrivals(busy(rate=3.0), tuple(made.models), 4))))


@pytest.mark.parametrize("policy", NAMES)
def test_nothing_is_lost_with_a_node(policy: str) -> None:
    failure = Failure(at_s=60.0, back_s=90.0, nodes=(0,))
    made = setup(*"abcd", failures=(failure,))
    world = played(made, policy, tuple(arrivals(busy(rate=2.0), tuple(made.models), 5)))
    audit(world)
    assert sum(each.moves for each in world.requests) > 0, "nobody was hit"
    assert all(not each.failure for each in world.requests)
    lives = {each.worker_id for each in world.workers.values() if each.store.node_id == "n00000"}
    assert lives == {"n00000-w0-61", "n00000-w1-61"}


def test_clients_that_got_nothing_leave_in_the_end() -> None:
    made = setup("a", nodes=1)
    wanted = [Arrival(0.01 * index, "a", 100, 1900) for index in range(30)]
    world = played(made, "random", wanted)
    failed = [each for each in world.requests if each.failure]
    assert failed, "the cluster was not overloaded"
    assert {each.failure for each in failed} == {"DEADLINE_EXCEEDED"}
    waits = {round((each.ended_s or 0.0) - each.arrival.at_s) for each in failed}
    assert waits == {300}
    audit(world)


def test_what_was_read_is_accounted_for() -> None:
    made = setup(*"abcd")
    world = played(made, "locality", tuple(arrivals(busy(), tuple(made.models), 6)))
    found = outcome(world, made.models, 0.0)
    size = made.models["a"].shape.weight_bytes
    assert found.loads > 4
    assert found.bytes_moved[Tier.DRAM] == found.loads * size
    assert found.bytes_moved[Tier.SSD] % size == 0
    assert 4 * size <= found.bytes_moved[Tier.SSD] <= found.loads * size


@pytest.mark.parametrize("policy", NAMES)
def test_what_is_resident_at_the_beginning_serves_without_a_load(policy: str) -> None:
    made = setup("a", "b", nodes=2)
    made = replace(made, resident={(0, 0): ("a",), (1, 1): ("b",)})
    world = played(made, policy, [Arrival(1.0, "a", 50, 5), Arrival(2.0, "b", 50, 5)])
    audit(world)
    assert world.loads.finished == 0
    assert [each.source for each in world.requests] == [Tier.DEVICE] * 2
    assert world.stores[0].tier_of("a") is Tier.DRAM


def test_a_warmed_cluster_has_the_popular_models_and_keeps_its_budgets() -> None:
    size = Size(nodes=20, models=200, duration_s=20.0)
    cold = scale(CONSTANTS, size, Kind.GAMMA, load=0.5)
    warm = warmed(cold, 3).setup
    held = Counter(name for names in warm.resident.values() for name in names)
    popular = popularity(tuple(warm.models), 3)
    assert held[popular[0]] > 1
    assert set(held) == set(popular[: len(held)])
    for names in warm.resident.values():
        used = sum(warm.models[name].deployment.device_bytes for name in names)
        assert used <= warm.hardware.device_bytes
    total = sum(warm.models[name].deployment.device_bytes * n for name, n in held.items())
    assert 0.6 <= total / (warm.hardware.device_bytes * 80) < 0.62
