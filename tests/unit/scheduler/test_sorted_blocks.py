"""It holds what a sorted list would hold, in the same order."""

from bisect import insort
from random import Random

from services.scheduler.sorted_blocks import SortedBlocks


def test_it_is_like_a_sorted_list() -> None:
    random = Random(1)  # noqa: S311 - a game
    blocks, plain = SortedBlocks(), list[tuple[float, str]]()
    for number in range(8000):
        if plain and random.random() < 0.3:
            pair = random.choice(plain)
            blocks.remove(pair)
            plain.remove(pair)
        else:
            pair = (random.choice((1.0, 2.0, random.random(), float(number))), f"i{number}")
            blocks.add(pair)
            insort(plain, pair)
    assert list(blocks) == plain
    assert len(blocks) == len(plain)
    for pair in plain:
        blocks.remove(pair)
    assert list(blocks) == []
    blocks.add((1.0, "again"))
    assert list(blocks) == [(1.0, "again")]
