"""A source leads where the operator allows and nowhere else: no metadata service, no neighbour."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from services.common.errors import InvalidArgumentError
from services.storemgr.config import StoremgrConfig
from services.storemgr.remotes.locations import HttpLocation, parse_place
from services.storemgr.remotes.permits import Permits, is_public, parse_permits

DEFAULT = str(StoremgrConfig.model_fields["sources"].default)


def is_allowed(permits: Permits, source: str) -> bool:
    try:
        permits.check(parse_place(source))
    except InvalidArgumentError as error:
        return error.reason != "SOURCE_NOT_ALLOWED" or "BRISK_STOREMGR_SOURCES" not in str(error)
    return True


@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        (DEFAULT, ["/srv", "s3://abc", "hf://a/b", "http://h/x", "https://h/x"], []),
        ("", [], ["/srv", "s3://abc", "hf://a/b", "http://h/x", "https://h/x"]),
        ("s3", ["s3://abc/x"], ["/srv", "https://h/x"]),
        ("s3://abc/m", ["s3://abc/m/x"], ["s3://abc/mm/x", "s3://abc", "s3://other/m/x"]),
        ("hf://meta", ["hf://meta/x"], ["hf://metal/x", "hf://x/meta"]),
        ("hf://meta/x", ["hf://meta/x@v1"], ["hf://meta/y"]),
        ("/srv/models", ["/srv/models/x", "file:///srv/models"], ["/srv", "/srv/models/../x"]),
        ("https://h/m, s3", ["https://h/m/x", "s3://abc"], ["https://h/x", "http://h/m/x"]),
        ("http://h:81/", ["http://h:81/x"], ["http://h/x", "http://h:82/x"]),
    ],
)
def test_only_what_a_rule_fits_is_allowed(
    rules: str, allowed: list[str], refused: list[str]
) -> None:
    permits = parse_permits(rules)
    assert [source for source in allowed if not is_allowed(permits, source)] == []
    assert [source for source in refused if is_allowed(permits, source)] == []


def test_a_link_out_of_an_allowed_folder_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    permits = parse_permits(str(tmp_path / "models"))
    assert is_allowed(permits, str(tmp_path / "models" / "x"))
    assert not is_allowed(permits, str(tmp_path / "models" / "link"))


@pytest.mark.parametrize("rules", ["ftp", "s3:/x", "models", "http://user@h/", "s3,nonsense"])
def test_a_rule_that_says_nothing_is_refused(rules: str) -> None:
    with pytest.raises(ValueError, match="neither one of"):
        parse_permits(rules)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",  # noqa: S104 - no binding
        "100.64.0.1", "224.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:0:1::1",
    ],
)  # fmt: skip
def test_no_address_of_the_inside_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_host_that_is_named_may_be_inside_and_no_other() -> None:
    permits = parse_permits("https, http://store:8080/models")
    named, other = parse_place("http://store:8080/models/x"), parse_place("https://store/x")
    assert isinstance(named, HttpLocation)
    assert isinstance(other, HttpLocation)
    permits.check_address(named, "10.0.0.7")
    permits.check_address(other, "1.1.1.1")
    with pytest.raises(InvalidArgumentError, match="not public"):
        permits.check_address(other, "10.0.0.7")
