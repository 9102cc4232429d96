"""What is deployed outlives its leader and a loss of Redis; what is not understood stays."""

import json
from dataclasses import replace

import pytest

from services.common.errors import BriskError, FailedPreconditionError, UnavailableError
from services.scheduler.deployment import Deployment
from services.scheduler.deployments import MARK, Deployments, decode, from_json, to_json
from tests.unit.scheduler.dialogue import deployment
from tests.unit.scheduler.doubles import Hash

ALPHA = deployment("org/alpha", 40)
EVER = deployment("beta", 10, keep_alive_s=None)


@pytest.mark.parametrize("each", [ALPHA, EVER])
def test_the_stored_form_reads_back(each: Deployment) -> None:
    assert from_json(each.name, to_json(each)) == each


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alpha", "not json"),
        ("alpha", "[]"),
        ("alpha", to_json(ALPHA).replace('"schema": 1', '"schema": 2')),
        ("alpha", to_json(ALPHA).replace('"schema": 1, ', "")),
        ("../alpha", to_json(ALPHA)),
        ("alpha", to_json(ALPHA).replace('"slots": 4', '"slots": "4"')),
        ("alpha", to_json(ALPHA).replace('"slots": 4', '"slots": -4')),
        ("alpha", to_json(ALPHA).replace('"slots": 4', '"slots": true')),
        ("alpha", to_json(ALPHA).replace('"dtype": "F32"', '"dtype": 32')),
        ("alpha", to_json(ALPHA).replace('"dtype": "F32", ', "")),
        ("alpha", to_json(ALPHA).replace("2026-01-01", "yesterday")),
        ("alpha", to_json(ALPHA).replace('"keep_alive_s": 300.0', '"keep_alive_s": []')),
    ],
)
def test_what_is_not_understood_is_left_out(name: str, text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, BriskError)):
        from_json(name, text)
    assert decode({name: text, "beta": to_json(EVER)}) == {"beta": EVER}


async def test_a_new_leader_reads_what_the_last_one_wrote() -> None:
    records = Hash()
    first = Deployments(records)
    await first.load(1)
    await first.put(1, ALPHA)
    await first.put(1, EVER)
    await first.remove(1, "beta")
    assert dict(first.known) == {ALPHA.name: ALPHA}
    records.epoch = 2
    second = Deployments(records)
    await second.load(2)
    assert dict(second.known) == {ALPHA.name: ALPHA}


async def test_a_deposed_leader_writes_nothing() -> None:
    records = Hash()
    first = Deployments(records)
    await first.load(1)
    records.epoch = 2
    with pytest.raises(FailedPreconditionError):
        await first.put(1, ALPHA)
    with pytest.raises(FailedPreconditionError):
        await first.remove(1, "beta")
    assert list(records.fields) == [MARK]
    assert dict(first.known) == {}


async def test_what_all_of_redis_lost_is_written_back() -> None:
    records = Hash()
    leader = Deployments(records)
    await leader.load(1)
    await leader.put(1, ALPHA)
    records.fields.clear()
    records.epoch = 2
    await leader.load(2)
    assert dict(leader.known) == {ALPHA.name: ALPHA}
    assert from_json(ALPHA.name, records.fields[ALPHA.name]) == ALPHA


async def test_an_emptied_store_is_not_mistaken_for_a_lost_one() -> None:
    records = Hash()
    leader = Deployments(records)
    await leader.load(1)
    await leader.put(1, ALPHA)
    other = Deployments(records)
    records.epoch = 2
    await other.load(2)
    await other.remove(2, ALPHA.name)
    records.epoch = 3
    await leader.load(3)
    assert dict(leader.known) == {}


async def test_one_who_stands_by_follows_and_can_write_it_back() -> None:
    records = Hash()
    leader, standby = Deployments(records), Deployments(records)
    await leader.load(1)
    await leader.put(1, ALPHA)
    await standby.follow()
    assert dict(standby.known) == {ALPHA.name: ALPHA}
    changed = replace(ALPHA, spec=replace(ALPHA.spec, slots=8))
    await leader.put(1, changed)
    await standby.follow()
    assert dict(standby.known) == {ALPHA.name: changed}
    records.fields.clear()
    records.epoch = 2
    await standby.load(2)
    assert from_json(ALPHA.name, records.fields[ALPHA.name]) == changed


async def test_following_reads_only_what_has_changed_and_never_forgets() -> None:
    records = Hash()
    leader, standby = Deployments(records), Deployments(records)
    await leader.load(1)
    await leader.put(1, ALPHA)
    await standby.follow()
    reads = records.reads
    await standby.follow()
    assert records.reads == reads
    records.fields.clear()
    await standby.follow()
    assert dict(standby.known) == {ALPHA.name: ALPHA}


async def test_every_write_is_counted() -> None:
    records = Hash()
    leader = Deployments(records)
    await leader.load(1)
    marks = [records.fields[MARK]]
    for _ in range(3):
        await leader.put(1, ALPHA)
        marks.append(records.fields[MARK])
    assert [json.loads(mark)["writes"] for mark in marks] == [0, 1, 2, 3]
    records.epoch = 5
    await leader.load(5)
    assert json.loads(records.fields[MARK]) == {"epoch": 5, "schema": 1, "writes": 0}


async def test_a_write_that_got_no_answer_is_repeated_a_few_times() -> None:
    records = Hash()
    leader = Deployments(records)
    await leader.load(1)
    records.errors.extend([UnavailableError("away")] * 2)
    await leader.put(1, ALPHA)
    assert ALPHA.name in records.fields
    records.errors.extend([UnavailableError("away")] * 3)
    with pytest.raises(UnavailableError):
        await leader.put(1, EVER)
    assert dict(leader.known) == {ALPHA.name: ALPHA}


async def test_a_write_that_could_not_be_counted_has_happened() -> None:
    records = Hash()
    leader = Deployments(records)
    await leader.load(1)
    records.unwritable = frozenset({MARK})
    await leader.put(1, ALPHA)
    assert dict(leader.known) == {ALPHA.name: ALPHA}
