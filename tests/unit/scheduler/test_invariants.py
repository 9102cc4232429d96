"""In whatever order things happen: one answer per request, budgets kept, routes to what is ready.

And one load per deployment at a time. The promises are checked after every decision, by `audit`
and by the cluster itself.
"""

import pytest

from services.common.placement import InstanceState
from services.scheduler.state import Limits
from tests.unit.scheduler.cluster import NAMES, Cluster


def play(seed: int, steps: int, limits: Limits | None = None) -> Cluster:
    """Return a cluster after `steps` random happenings."""
    cluster = Cluster(seed, limits)
    for name in NAMES:
        cluster.put(name)
    cluster.add_worker()
    for _ in range(steps):
        cluster.step()
        cluster.run(cluster.now_s + cluster.random.expovariate(2.0))
    return cluster


@pytest.mark.parametrize("seed", range(60))
def test_promises_hold_in_any_order_of_events(seed: int) -> None:
    cluster = play(seed, steps=120)
    cluster.calm_down()
    cluster.run(cluster.now_s + 30.0)
    assert not cluster.open, "requests wait for ever"
    assert max(cluster.answers.values()) >= 1


@pytest.mark.parametrize("seed", range(10))
def test_promises_hold_when_everything_is_scarce(seed: int) -> None:
    limits = Limits(waiters_max=5, window=2, patience_s=0.5, learning_s=0.5, grant_s=1.0)
    cluster = play(1000 + seed, steps=120, limits=limits)
    cluster.calm_down()
    cluster.run(cluster.now_s + 30.0)
    assert not cluster.open


def test_idle_instances_leave_in_the_end() -> None:
    cluster = play(7, steps=100)
    cluster.calm_down()
    cluster.run(cluster.now_s + 60.0)
    kept = [
        each
        for each in cluster.state.instances.values()
        if cluster.state.deployments[each.deployment].spec.keep_alive_s is not None
    ]
    assert kept == []


def test_the_same_seed_plays_the_same_game() -> None:
    first, second = play(3, steps=100), play(3, steps=100)
    assert first.answers == second.answers
    assert first.routes == second.routes
    assert sorted(first.state.instances) == sorted(second.state.instances)


def test_the_games_are_not_dull() -> None:
    games = [play(seed, steps=120) for seed in range(20)]
    assert sum(len(game.granted) for game in games) > 300
    assert sum(sum(game.answers.values()) - len(game.granted) for game in games) > 100
    states = [each.state for game in games for each in game.state.instances.values()]
    assert {InstanceState.LOADING, InstanceState.READY, InstanceState.LEAVING} <= set(states)
