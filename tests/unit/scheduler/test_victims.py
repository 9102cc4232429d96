"""The instances that make room are those that cost least together."""

from itertools import combinations
from random import Random

from services.common.model import ModelRef
from services.common.names import parse_model_name
from services.common.placement import InstanceState
from services.scheduler.first_fit import DeviceKey
from services.scheduler.instance import Instance
from services.scheduler.victims import cheapest


def instance(number: int, size: int) -> Instance:
    return Instance(
        instance_id=f"i{number}",
        deployment=f"d{number}",
        model=ModelRef(name=parse_model_name("m")),
        device=DeviceKey("n", "w", "cpu:0"),
        memory_bytes=size,
        slots=1,
        state=InstanceState.READY,
    )


def best_loss(offered: list[tuple[Instance, float]], lacking_bytes: int) -> float:
    sets = (c for n in range(1, len(offered) + 1) for c in combinations(offered, n))
    return min(
        sum(loss for _, loss in each)
        for each in sets
        if sum(one.memory_bytes for one, _ in each) >= lacking_bytes
    )


def test_the_set_is_as_cheap_as_the_best_of_all_sets() -> None:
    random = Random(1)  # noqa: S311 - a game
    for _ in range(300):
        offered = [
            (instance(number, random.randrange(1, 60)), random.choice((0.0, 5.0, random.random())))
            for number in range(random.randrange(1, 9))
        ]
        lacking_bytes = random.randrange(1, sum(each.memory_bytes for each, _ in offered) + 1)
        taken, loss = cheapest(offered, lacking_bytes)
        assert sum(each.memory_bytes for each in taken) >= lacking_bytes
        assert abs(loss - best_loss(offered, lacking_bytes)) < 1e-9


def test_of_equal_losses_the_fewest_go() -> None:
    offered = [(instance(1, 10), 0.0), (instance(2, 10), 0.0), (instance(3, 20), 0.0)]
    taken, _ = cheapest(offered, 20)
    assert [each.instance_id for each in taken] == ["i3"]


def test_of_very_many_a_good_set_is_found_soon() -> None:
    random = Random(2)  # noqa: S311 - a game
    offered = [(instance(n, random.randrange(5, 15)), random.random()) for n in range(60)]
    taken, loss = cheapest(offered, 200)
    assert sum(each.memory_bytes for each in taken) >= 200
    assert loss < sum(each for _, each in offered) / 2


def test_nothing_goes_where_nothing_lacks() -> None:
    assert cheapest([(instance(1, 10), 1.0)], 0) == ((), 0.0)
