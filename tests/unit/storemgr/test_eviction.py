"""What goes first: LRU by age alone, the cost-aware one by what is lost per byte."""

from __future__ import annotations

from services.storemgr.eviction import CostAware, EvictionPolicy, Lru

GB = 10**9


def filled(policy: EvictionPolicy[str], *keys: str) -> EvictionPolicy[str]:
    for key in keys:
        policy.admit(key, GB, 1.0)
    return policy


def test_lru_ranks_by_the_last_use() -> None:
    policy = filled(Lru(), "a", "b", "c")
    policy.use("a")
    assert policy.ranked() == ["b", "c", "a"]
    policy.remove("b")
    policy.remove("unknown")
    assert policy.ranked() == ["c", "a"]


def test_among_equals_recency_decides() -> None:
    assert filled(CostAware(), "a", "b", "c").ranked() == ["a", "b", "c"]


def test_what_is_used_often_stays() -> None:
    policy = filled(CostAware(), "often")
    for _ in range(5):
        policy.use("often")
    filled(policy, "once", "again")
    assert policy.ranked() == ["once", "again", "often"]


def test_old_uses_count_less_and_less() -> None:
    policy = filled(CostAware(half_life=4), "old", "new")
    for _ in range(3):
        policy.use("old")
    assert policy.ranked() == ["new", "old"]
    for _ in range(8):
        policy.use("new")
    assert policy.ranked() == ["old", "new"]


def test_what_costs_more_per_byte_to_bring_back_stays() -> None:
    policy: CostAware[str] = CostAware()
    policy.admit("from afar", GB, 10.0)
    policy.admit("near", GB, 1.0)
    policy.admit("large", 8 * GB, 1.0)
    assert policy.ranked() == ["large", "near", "from afar"]


def test_uses_are_remembered_across_an_absence() -> None:
    policy = filled(CostAware(), "popular", "stranger")
    for _ in range(3):
        policy.use("popular")
    policy.remove("popular")
    assert policy.ranked() == ["stranger"]
    filled(policy, "popular", "late")
    assert policy.ranked() == ["stranger", "late", "popular"]


def test_counts_never_overflow() -> None:
    policy = filled(CostAware(half_life=1), "a", "b")
    for _ in range(5000):
        policy.use("a")
        policy.use("b")
    assert policy.ranked() == ["a", "b"]
