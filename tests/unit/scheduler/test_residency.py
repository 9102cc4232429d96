"""What store managers tell decides which tier a start's bytes come from."""

from services.common.model import ModelRef, Tier
from services.common.names import parse_model_name
from services.scheduler.residency import Residency, Source, Stored


def ref(name: str) -> ModelRef:
    return ModelRef(name=parse_model_name(name), revision="1")


A, B = ref("a"), ref("b")


def test_a_node_that_has_not_told_is_believed_to_have_it_on_ssd() -> None:
    assert Residency().source("n1", A, 100) == Source(Tier.SSD, 100)


def test_the_tier_is_that_of_the_bytes_that_are_missing() -> None:
    residency = Residency()
    residency.follow("n1", (Stored(A, 100), Stored(B, 30)))
    assert residency.source("n1", A, 100) == Source(Tier.DRAM, 100)
    assert residency.source("n1", B, 100) == Source(Tier.SSD, 70)
    assert residency.source("n1", ref("c"), 100) == Source(Tier.REMOTE, 100)


def test_changes_are_followed_and_all_is_replaced_by_all() -> None:
    residency = Residency()
    residency.change("n1", (Stored(A, 100),))  # before it has told all: not to be believed
    assert list(residency.in_dram(A, 9, 0)) == []
    residency.follow("n1", (Stored(A, 0), Stored(B, 100)))
    residency.change("n1", (Stored(A, 100),), (B,))
    assert list(residency.in_dram(A, 9, 0)) == ["n1"]
    assert list(residency.in_dram(B, 9, 0)) == []
    assert residency.source("n1", B, 100).tier is Tier.REMOTE
    residency.follow("n1", (Stored(B, 100),))
    assert list(residency.in_dram(A, 9, 0)) == []
    residency.forget("n1")
    assert list(residency.in_dram(B, 9, 0)) == []
    assert residency.source("n1", B, 100).tier is Tier.SSD


def test_of_many_holders_others_are_offered_at_each_turn() -> None:
    residency = Residency()
    for number in range(100):
        residency.follow(f"n{number}", (Stored(A, 100),) if number < 40 else ())
    seen = {node for turn in range(100) for node in residency.in_dram(A, 4, turn)}
    assert len(list(residency.in_dram(A, 4, 7))) == 4
    assert len(seen) == 40
    assert len(list(residency.on_ssd(A, 4, 7))) == 4


def test_what_nearly_every_node_has_on_ssd_is_no_reason_to_prefer_one() -> None:
    residency = Residency()
    for number in range(10):
        residency.follow(f"n{number}", (Stored(A),))
    assert list(residency.on_ssd(A, 4, 0)) == []
