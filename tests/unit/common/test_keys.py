"""The schema document and the code name the same keys, and keys cannot collide."""

import re
from pathlib import Path

import pytest

from services.common import keys, lease, registry
from services.common.keys import ServiceKind, service_key, service_pattern

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "redis-schema.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOCUMENT.splitlines()
    if line.startswith("| `")
]
CONSTANTS = {
    value
    for name, value in vars(keys).items()
    if isinstance(value, str) and value.startswith(keys.PREFIX) and name != "PREFIX"
}


def test_the_document_lists_exactly_the_keys_of_the_code() -> None:
    in_code = CONSTANTS | {service_key(ServiceKind.WORKER, "<id>").replace("worker", "<kind>")}
    assert {row[0].strip("`") for row in ROWS} == in_code


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_key_says_all_that_a_reader_needs(row: list[str]) -> None:
    assert len(row) == 6
    assert all(row)
    section = DOCUMENT.partition(f"\n## {row[0]}: ")[2].partition("\n## ")[0]
    assert "*When it vanishes:*" in section


def test_the_document_states_the_times_and_limits_of_the_code() -> None:
    by_key = {row[0].strip("`"): row for row in ROWS}
    lease_ttl = by_key[keys.LEADER_LEASE][4]
    assert lease_ttl == f"{lease.TTL_S:g} s, renewed every {lease.RENEW_S:g} s"
    facts = by_key["brisk:v1:service:<kind>:<id>"]
    assert facts[4] == f"{registry.TTL_S:g} s, rewritten every {registry.HEARTBEAT_S:g} s"
    assert f"{registry.SERVICES_MAX:,} keys" in facts[5]
    assert f"{lease.FIELDS_MAX:,} fields" in by_key[keys.DEPLOYMENTS][5]
    assert f"{lease.GIVE_UP_S:g} s after the last renewal" in DOCUMENT


def test_the_document_names_every_script_and_kind() -> None:
    scripts = {path.name for path in (ROOT / "services/common/lua").glob("*.lua")}
    assert set(re.findall(r"lua/(\w+\.lua)", DOCUMENT)) == scripts
    assert all(f"`{kind.value}`" in DOCUMENT for kind in ServiceKind)


def test_no_other_module_writes_a_key_by_hand() -> None:
    sources = [*ROOT.glob("services/**/*.py"), *ROOT.glob("services/**/*.lua")]
    guilty = [
        path for path in sources if path.name != "keys.py" and "brisk:v1:" in path.read_text()
    ]
    assert guilty == []


def test_scripts_are_short_enough_to_be_read() -> None:
    for path in (ROOT / "services/common/lua").glob("*.lua"):
        assert len(path.read_text().splitlines()) <= 30


def test_keys_of_one_script_share_a_hash_tag() -> None:
    tagged = [keys.LEADER_LEASE, keys.LEADER_EPOCH, keys.DEPLOYMENTS]
    assert {re.findall(r"\{(.*)\}", key)[0] for key in tagged} == {"leader"}


def test_a_pattern_matches_its_own_kind_only() -> None:
    for kind in ServiceKind:
        own = service_pattern(kind).removesuffix("*")
        matching = [k for k in ServiceKind if service_key(k, "x").startswith(own)]
        assert matching == [kind]
