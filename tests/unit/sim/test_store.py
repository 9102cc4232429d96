"""Stores bring models as fast as their slowest link, one after another, and keep what fits."""

from dataclasses import replace

import pytest

from services.common.model import Tier
from sim.store import Loading, Shelf, Store
from tests.unit.sim.small import HARDWARE

SIZE = 12_000_000_000  # two seconds from the SSD, about half a second from the arena
DISK_S, COPY_S = SIZE / HARDWARE.ssd_speed, SIZE / HARDWARE.arena_speed
NETWORK_S = HARDWARE.remote_latency_s + SIZE / HARDWARE.nic_speed

Told = list[tuple[str, str, Tier, bool]]


def store(told: Told | None = None, **changes: float) -> Store:
    heard: Told = [] if told is None else told

    def hear(node_id: str, model: str, tier: Tier, *, is_there: bool) -> None:
        heard.append((node_id, model, tier, is_there))

    return Store("n", replace(HARDWARE, **changes), hear)


def load(place: Store, model: str, now_s: float = 0.0, device: int = 0) -> Loading:
    return place.load(now_s, model, SIZE, device=device)


def test_a_model_comes_from_the_best_tier_and_stays_in_all_that_it_passed() -> None:
    told: Told = []
    place = store(told)
    far = load(place, "m")
    assert far.source is Tier.REMOTE
    assert far.ends_s == pytest.approx(NETWORK_S)
    place.finish(far)
    assert ("n", "m", Tier.SSD, True) in told
    assert ("n", "m", Tier.DRAM, True) in told
    near = load(place, "m", now_s=100.0)
    assert near.source is Tier.DRAM
    assert near.ends_s == pytest.approx(100.0 + COPY_S)


def test_loads_queue_on_the_disk_and_copies_to_two_devices_do_not() -> None:
    place = store()
    place.place([("a", SIZE), ("b", SIZE)])
    first, second = load(place, "a"), load(place, "b", device=1)
    assert first.ends_s == pytest.approx(DISK_S)
    assert second.ends_s == pytest.approx(2 * DISK_S)
    for each in (first, second):
        place.finish(each)
    both = load(place, "a", 50.0), load(place, "b", 50.0, device=1)
    assert [each.ends_s for each in both] == [pytest.approx(50.0 + COPY_S)] * 2


def test_two_loads_of_one_model_read_it_once() -> None:
    place = store()
    place.place([("a", SIZE), ("b", SIZE)])
    first, second = load(place, "a"), load(place, "a", device=1)
    assert second.ends_s == first.ends_s == pytest.approx(DISK_S)
    place.give_up(0.5, first)  # the other still needs what it reads
    assert load(place, "a", now_s=1.0).ends_s == pytest.approx(DISK_S)
    assert load(place, "b", now_s=1.0, device=1).ends_s == pytest.approx(2 * DISK_S)


def test_a_peer_gives_what_the_node_lacks() -> None:
    here, peer = store(), store()
    loading = here.load(0.0, "m", SIZE, peer=peer)
    assert loading.source is Tier.PEER
    assert loading.ends_s == pytest.approx(NETWORK_S)
    assert peer.outward.carried_bytes == SIZE


def test_what_is_given_up_frees_its_links() -> None:
    place = store()
    place.place([("a", SIZE), ("b", SIZE)])
    place.give_up(0.5, load(place, "a"))
    assert load(place, "b", now_s=0.5).ends_s == pytest.approx(0.5 + DISK_S)
    assert place.disk.carried_bytes == pytest.approx(1.25 * SIZE, rel=1e-6)


def test_a_slower_moment_takes_longer() -> None:
    place = store()
    place.place([("a", SIZE)])
    assert place.load(0.0, "a", SIZE, factor=0.5).ends_s == pytest.approx(2 * DISK_S)


def test_a_shelf_evicts_what_was_used_least_recently_but_nothing_leased() -> None:
    shelf = Shelf(30)
    for name in "abc":
        assert shelf.put(name, 10) == []
    shelf.touch("a")
    shelf.lease("b")
    assert shelf.put("d", 10) == ["c"]
    assert shelf.put("e", 30) is None
    shelf.release("b")
    assert shelf.put("e", 30) == ["b", "a", "d"]
    assert shelf.used_bytes == 30


def test_a_node_that_died_has_its_disk_but_not_its_memory() -> None:
    told: Told = []
    place = store(told)
    place.place([("a", SIZE)])
    place.finish(load(place, "a"))
    place.empty(10.0)
    assert ("n", "a", Tier.DRAM, False) in told
    assert load(place, "a", now_s=10.0).source is Tier.SSD
