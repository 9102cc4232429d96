"""Which sources the operator allows, and which addresses they may lead to.

Whoever may import could otherwise have this host read any service that it can reach: a cloud's
metadata address, a neighbour's Redis. A web source whose host the operator did not name reaches
public addresses only, and that holds for the address connected to, after every redirect.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from services.common.errors import BriskError, InvalidArgumentError, Reason
from services.storemgr.remotes.locations import (
    HttpLocation,
    HubLocation,
    Location,
    PeersLocation,
    S3Location,
    parse_place,
)

KINDS: Final = ("file", "s3", "hf", "http", "https")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SETTING: Final = "BRISK_STOREMGR_SOURCES"

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permits:
    """The rules of the setting `sources`; one that fits is enough."""

    kinds: frozenset[str]  # everything of a kind; of http and https, what has public addresses
    places: tuple[Path | Location, ...]  # and what lies at or below these, wherever they are

    def check(self, place: Path | Location) -> None:
        """Raise InvalidArgumentError (SOURCE_NOT_ALLOWED) unless a rule fits `place`."""
        if isinstance(place, PeersLocation):  # the cluster itself
            return
        kind = _kind(place)
        if kind in self.kinds or any(_holds(each, place) for each in self.places):
            return
        raise InvalidArgumentError(
            f"the operator of the store manager does not allow this {kind} source; "
            f"the setting {_SETTING} says what is allowed",
            reason=Reason.SOURCE_NOT_ALLOWED,
        )

    def is_named(self, place: HttpLocation) -> bool:
        """Return whether a rule names the place, which may then have any address."""
        return any(_holds(each, place) for each in self.places)

    def check_address(self, place: HttpLocation, address: str) -> None:
        """Raise InvalidArgumentError (SOURCE_NOT_ALLOWED) if `place` must not be there."""
        if self.is_named(place) or is_public(ipaddress.ip_address(address.partition("%")[0])):
            return
        raise InvalidArgumentError(
            f"the source's host {place.host} has an address that is not public; "
            f"name it in the setting {_SETTING} to allow that",
            reason=Reason.SOURCE_NOT_ALLOWED,
        )


def parse_permits(text: str) -> Permits:
    """Return the rules in `text`, separated by commas. Raises ValueError."""
    kinds: set[str] = set()
    places: list[Path | Location] = []
    for rule in (each.strip() for each in text.split(",")):
        if rule in KINDS:
            kinds.add(rule)
        elif rule:
            try:
                places.append(parse_place(rule))
            except BriskError as error:
                known = ", ".join(KINDS)
                raise ValueError(
                    f"is neither one of {known} nor a place: {error.message}"
                ) from None
    return Permits(kinds=frozenset(kinds), places=tuple(places))


def is_public(address: Address) -> bool:
    """Return whether `address` is one of the internet, whatever other one it wraps."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def _kind(place: Path | S3Location | HttpLocation | HubLocation) -> str:
    match place:
        case S3Location():
            return "s3"
        case HubLocation():
            return "hf"
        case HttpLocation():
            return place.scheme
        case Path():
            return "file"


def _holds(rule: Path | Location, place: Path | Location) -> bool:
    """Return whether `place` is at or below the place that a rule names."""
    match rule, place:
        case Path(), Path():
            return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(rule))
        case S3Location(), S3Location():
            return rule.bucket == place.bucket and place.prefix.startswith(rule.prefix)
        case HubLocation(), HubLocation():
            owner = place.repository.partition("/")[0]
            return rule.repository in (place.repository, owner)
        case HttpLocation(), HttpLocation():
            at = (rule.scheme, rule.host, rule.port) == (place.scheme, place.host, place.port)
            return at and place.path.startswith(rule.path)
        case _:
            return False
