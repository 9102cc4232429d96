"""The index offers a device that fits, of the best rank, with little left over."""

from random import Random

from services.scheduler.capacity import Capacity
from services.scheduler.first_fit import DeviceKey


def key(number: int) -> DeviceKey:
    return DeviceKey(f"n{number:05}", "w", "cpu:0")


def test_what_it_offers_fits_and_no_better_rank_has_any() -> None:
    random = Random(1)  # noqa: S311 - a game
    for _ in range(20):
        index, room = Capacity(), dict[DeviceKey, tuple[int, int]]()
        for _ in range(300):
            each = key(random.randrange(60))
            if random.random() < 0.15:
                index.discard(each)
                room.pop(each, None)
            else:
                place = (random.choice((-5, 0, 10, 100, 1000, 5000)), random.randrange(5))
                index.set(each, *place)
                room[each] = place
                if place[0] <= 0:
                    del room[each]
            assert len(index) == len(room)
            need_bytes = random.choice((1, 10, 90, 100, 999))
            offered = list(index.best(need_bytes, ranks=1))
            fitting = [rank for free, rank in room.values() if free >= need_bytes]
            assert all(room[found][0] >= need_bytes for found in offered)
            if offered:
                assert {room[found][1] for found in offered} == {min(fitting)}
            elif fitting:  # only where a class holds more misfits than are looked at
                assert sum(free < need_bytes for free, _ in room.values()) >= 8


def test_it_leaves_large_holes_to_large_models() -> None:
    index = Capacity()
    for number, free_bytes in enumerate((1000, 64, 16, 4000)):
        index.set(key(number), free_bytes, 0)
    assert list(index.best(60, ranks=1)) == [key(1)]
    assert list(index.best(17, ranks=1)) == [key(1)]
    assert list(index.best(2000, ranks=1)) == [key(3)]
    assert list(index.best(5000, ranks=1)) == []


def test_more_ranks_are_offered_in_order() -> None:
    index = Capacity()
    for number, rank in enumerate((3, 1, 2, 1)):
        index.set(key(number), 100, rank)
    assert list(index.best(50, ranks=2)) == [key(1), key(3), key(2)]
    assert list(index.best(50, ranks=9)) == [key(1), key(3), key(2), key(0)]
    index.set(key(1), 100, 9)
    index.set(key(3), 10, 1)
    assert list(index.best(50, ranks=1)) == [key(2)]


def test_a_question_looks_at_few_of_very_many() -> None:
    index = Capacity()
    for number in range(20_000):
        index.set(key(number), 10 + number % 50, number % 3)
    assert len(list(index.best(30, ranks=2))) <= 6
