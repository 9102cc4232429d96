"""The index finds what a scan would find: the first device, in order, with enough."""

from random import Random

from services.scheduler.first_fit import DeviceKey, FirstFit


def key(number: int) -> DeviceKey:
    return DeviceKey(f"n{number:03}", "w", "cpu:0")


def scanned(values: dict[DeviceKey, int], least: int, after: DeviceKey | None) -> DeviceKey | None:
    for each in sorted(values):
        if (after is None or each > after) and values[each] >= least:
            return each
    return None


def test_it_finds_what_a_scan_finds() -> None:
    random = Random(1)  # noqa: S311 - a game
    for _ in range(30):
        index, values = FirstFit(), dict[DeviceKey, int]()
        for _ in range(200):
            each = key(random.randrange(40))
            if random.random() < 0.2:
                index.discard(each)
                values.pop(each, None)
            else:
                values[each] = random.randrange(-20, 100)
                index.set(each, values[each])
            assert len(index) == len(values)
            if not values:
                continue
            least = random.randrange(-30, 110)
            after = random.choice([None, *values])
            assert index.first(least, after=after) == scanned(values, least, after)
            assert index.largest() == max(values.values())


def test_an_empty_index_has_nothing() -> None:
    assert FirstFit().first(0) is None


def test_a_change_costs_few_steps() -> None:
    index = FirstFit()
    for number in range(1000):
        index.set(key(number), 1)
    assert index.first(1) == key(0)
    index.set(key(999), 5)
    assert index.first(5) == key(999)
    index.set(key(500), 5)
    assert index.first(5) == key(500)
    assert index.first(5, after=key(500)) == key(999)
    assert index.first(5, after=key(999)) is None
