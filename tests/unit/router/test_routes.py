"""The table knows where each model can be served, whatever order news comes in."""

from services.router.ports import RouteUpdate
from services.router.routes import RouteTable
from tests.unit.router.doubles import MODEL, a_route

ANY: frozenset[str] = frozenset()


def a_table(*instance_ids: str, slots: int = 2) -> RouteTable:
    table = RouteTable()
    table.apply(
        RouteUpdate(
            leader_epoch=5,
            is_snapshot=True,
            upserted=tuple(a_route(i, slots=slots) for i in instance_ids),
        )
    )
    return table


def took(table: RouteTable, excluded: frozenset[str] = ANY, now_s: float = 0.0) -> str | None:
    route = table.take(MODEL, excluded, now_s)
    return route.instance_id if route else None


def test_the_least_outstanding_instance_is_taken_and_ties_go_by_id() -> None:
    table = a_table("c", "a", "b")
    assert [took(table) for _ in range(7)] == ["a", "b", "c", "a", "b", "c", None]


def test_a_slot_given_back_is_taken_next() -> None:
    table = a_table("a", "b")
    for _ in range(4):
        took(table)
    table.give_back("b")
    assert table.outstanding("b") == 1
    assert took(table) == "b"


def test_a_delta_adds_changes_and_removes() -> None:
    table = a_table("a", "b")
    changed = table.apply(
        RouteUpdate(
            leader_epoch=5,
            is_snapshot=False,
            upserted=(a_route("c"), a_route("d", model="other")),
            removed_instance_ids=("a", "never-known"),
        )
    )
    assert changed == {MODEL, "other"}
    assert len(table) == 3
    assert took(table, excluded=frozenset({"c"})) == "b"


def test_a_snapshot_forgets_what_it_does_not_list() -> None:
    table = a_table("a", "b")
    update = RouteUpdate(leader_epoch=6, is_snapshot=True, upserted=(a_route("b"),))
    assert table.apply(update) == {MODEL}
    assert len(table) == 1
    assert not table.serves(MODEL, frozenset({"b"}), 0.0)


def test_an_empty_snapshot_empties_the_table() -> None:
    table = a_table("a")
    assert table.apply(RouteUpdate(leader_epoch=6, is_snapshot=True)) == {MODEL}
    assert took(table) is None
    assert len(table) == 0


def test_news_of_an_older_leader_is_ignored() -> None:
    table = a_table("a")
    old = RouteUpdate(leader_epoch=4, is_snapshot=True, upserted=(a_route("z"),))
    assert table.apply(old) == ANY
    assert took(table) == "a"


def test_outstanding_sequences_are_counted_beyond_their_route() -> None:
    table = a_table("a", slots=1)
    assert took(table) == "a"
    table.drop("a")
    table.learn(a_route("a", slots=1))
    assert took(table) is None, "its sequence still runs"
    table.give_back("a")
    assert took(table) == "a"


def test_an_avoided_instance_is_used_again_after_its_time() -> None:
    table = a_table("a")
    table.avoid("a", until_s=10.0)
    assert took(table, now_s=9.9) is None
    assert not table.serves(MODEL, ANY, 9.9)
    assert took(table, now_s=10.0) == "a"


def test_an_avoided_instance_is_trusted_again_when_the_scheduler_names_it() -> None:
    table = a_table("a")
    table.avoid("a", until_s=10.0)
    table.learn(a_route("a"))
    assert took(table, now_s=0.0) == "a"


def test_avoiding_an_unknown_instance_leaves_nothing_behind() -> None:
    table = a_table("a")
    table.avoid("b", until_s=10.0)
    table.learn(a_route("b"))
    assert took(table, excluded=frozenset({"a"})) == "b"


def test_an_excluded_instance_serves_others_only() -> None:
    table = a_table("a")
    assert not table.serves(MODEL, frozenset({"a"}), 0.0)
    assert took(table, excluded=frozenset({"a"})) is None
    assert took(table) == "a"


def test_dropping_twice_is_harmless() -> None:
    table = a_table("a")
    dropped = table.drop("a")
    assert dropped is not None
    assert dropped.instance_id == "a"
    assert table.drop("a") is None
