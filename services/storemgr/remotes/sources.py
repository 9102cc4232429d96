"""Open a remote source for one import, as far as the operator allows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from services.storemgr.manifest import Manifest
from services.storemgr.ports import Job
from services.storemgr.remotes.fetch import FetchLimits, Supply
from services.storemgr.remotes.lines import Lines
from services.storemgr.remotes.listing import Listing, Remote, RemoteFile
from services.storemgr.remotes.locations import (
    HttpLocation,
    HubLocation,
    Location,
    PeersLocation,
    S3Location,
)
from services.storemgr.remotes.pace import Pace
from services.storemgr.remotes.patience import Patience
from services.storemgr.remotes.peers import FindPeers, PeersRemote
from services.storemgr.remotes.permits import Permits
from services.storemgr.remotes.ranges import RangeReader, place_of
from services.storemgr.remotes.supplies import OriginSupply
from services.storemgr.remotes.web import WebRemote

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRules:
    """What the operator says of sources."""

    permits: Permits
    limits: FetchLimits
    pace: Pace  # shared by all imports
    stall_s: float  # a connection that brings nothing for so long is given up
    find_peers: FindPeers | None = None  # None: there are none


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSource:
    """A source that answers."""

    kind: str  # "s3", "http", "hub" or "peer", for progress
    remote: Remote
    reader: RangeReader
    patience: Patience
    listing: Listing
    location: Location

    @property
    def manifest(self) -> Manifest | None:
        """Return what other nodes say of the model; None for a source from outside."""
        return self.remote.manifest if isinstance(self.remote, PeersRemote) else None

    def supply(self, files: tuple[RemoteFile, ...]) -> Supply:
        """Return what reads `files`, which an assembly's pieces number."""
        if isinstance(self.remote, PeersRemote):
            return self.remote.swarm(files)
        cached: dict[str, Path] = {}
        if isinstance(self.location, HubLocation):
            from services.storemgr.remotes.hub import cached_file  # noqa: PLC0415 - see _remote

            for file in files:
                path = cached_file(self.location, file)
                if path is not None:
                    cached[file.name] = path
        return OriginSupply(self.remote, self.reader, files, cached)


@contextmanager
def opened_source(location: Location, rules: SourceRules, job: Job) -> Iterator[OpenSource]:
    """Open the source and list it. Raises BriskError and JobStoppedError."""

    def is_stopped() -> bool:
        return job.is_stopped

    trusted = _Trust(rules.permits, location)
    with Lines(check=trusted.check_address, stall_s=rules.stall_s, is_stopped=is_stopped) as lines:
        reader = RangeReader(lines, pace=rules.pace, is_stopped=is_stopped)
        patience = Patience(
            backoff=rules.limits.backoff, is_stopped=is_stopped, over=threading.Event()
        )
        remote = patience.run("the source", lambda _: _remote(location, reader, trusted, rules))
        listing = patience.run("the source", lambda _: remote.list())
        yield OpenSource(
            kind=_KINDS[type(location)],
            remote=remote,
            reader=reader,
            patience=patience,
            listing=listing,
            location=location,
        )


_KINDS: Final = {
    S3Location: "s3",
    HttpLocation: "http",
    HubLocation: "hub",
    PeersLocation: "peer",
}


class _Trust:
    """Which hosts one import may go to: the operator's own, and what the rules allow."""

    def __init__(self, permits: Permits, location: Location) -> None:
        self._permits = permits
        self._own: set[tuple[str, str, int]] = set()
        if isinstance(location, HubLocation):
            from services.storemgr.remotes.hub import hub_endpoint  # noqa: PLC0415 - see _remote

            self.add(place_of(hub_endpoint()))

    def add(self, place: HttpLocation) -> None:
        """Trust the host of an endpoint that the operator's environment names."""
        self._own.add((place.scheme, place.host, place.port))

    def check_address(self, place: HttpLocation, address: str) -> None:
        """Raise InvalidArgumentError (SOURCE_NOT_ALLOWED) unless the address may be gone to."""
        if not self._is_own(place):
            self._permits.check_address(place, address)

    def _is_own(self, place: HttpLocation) -> bool:
        return (place.scheme, place.host, place.port) in self._own


def _remote(location: Location, reader: RangeReader, trusted: _Trust, rules: SourceRules) -> Remote:
    """Open the source. Its library is imported when needed: that takes up to half a second."""
    match location:
        case S3Location():
            from services.storemgr.remotes.s3 import S3Remote  # noqa: PLC0415

            remote = S3Remote(location, reader.check_stopped)
            trusted.add(place_of(remote.endpoint))
            return remote
        case HubLocation():
            from services.storemgr.remotes.hub import HubRemote  # noqa: PLC0415

            return HubRemote(location, reader)
        case HttpLocation():
            return WebRemote(location, reader)
        case PeersLocation():
            peers = rules.find_peers(location.ref) if rules.find_peers is not None else ()
            for peer in peers:
                trusted.add(place_of(peer.url))
            return PeersRemote(location, peers, reader)
