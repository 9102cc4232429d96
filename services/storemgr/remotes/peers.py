"""A model that other nodes have: read from all of them at once, verified against its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from services.common.errors import BriskError, NotFoundError, Reason
from services.common.log import get_logger
from services.common.model import ModelRef
from services.storemgr.manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest, decode_manifest
from services.storemgr.refusal import MalformedError
from services.storemgr.remotes.listing import Listing, RemoteFile
from services.storemgr.remotes.locations import PeersLocation
from services.storemgr.remotes.ranges import RangeReader, Target
from services.storemgr.remotes.refusals import PassingError
from services.storemgr.remotes.supplies import OriginSupply
from services.storemgr.remotes.swarm import Member, Swarm

log = get_logger(__name__)

_ADVICE = "its node is of another cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStore:
    """A store manager that has the model."""

    node_id: str
    url: str  # of the model's folder, ends with "/"


FindPeers = Callable[[ModelRef], Sequence[PeerStore]]  # blocks; raises BriskError


class PeerRemote:
    """Implements listing.Remote with one peer."""

    def __init__(self, ref: ModelRef, peer: PeerStore, reader: RangeReader) -> None:
        self._ref = ref
        self._peer = peer
        self._reader = reader

    def manifest(self) -> Manifest:
        """Return what the peer says the model is. Raises PassingError and BriskError."""
        url = urljoin(self._peer.url, MANIFEST)
        raw = self._reader.read_small(MANIFEST, url, {}, _ADVICE, bytes_max=MANIFEST_BYTES_MAX)
        try:
            manifest = decode_manifest(raw)
        except MalformedError as error:
            raise PassingError(f"a peer's {MANIFEST} {error}") from error
        if manifest.ref != self._ref:
            raise PassingError("a peer has another model under this name")
        return manifest

    def list(self) -> Listing:
        """Return what is there; see listing.Remote."""
        files = [
            RemoteFile(name=file.name, size_bytes=file.size_bytes, version="")
            for file in self.manifest().files
        ]
        return Listing(files={file.name: file for file in files})

    def target(self, file: RemoteFile) -> Target:
        """Return where to read a file; see listing.Remote."""
        return Target(
            what=file.name,
            url=urljoin(self._peer.url, quote(file.name)),
            size_bytes=file.size_bytes,
            etag=None,  # its checksums say which version it is
            advice=_ADVICE,
        )


class PeersRemote:
    """Implements listing.Remote with all peers that answer."""

    def __init__(
        self, location: PeersLocation, peers: Sequence[PeerStore], reader: RangeReader
    ) -> None:
        if not peers:
            raise NotFoundError(
                f'model "{location.ref.name}" at {location.ref.revision} is on no node',
                reason=Reason.MODEL_NOT_FOUND,
            )
        self._reader = reader
        self._remotes = {peer.node_id: PeerRemote(location.ref, peer, reader) for peer in peers}
        self.manifest: Manifest | None = None

    def list(self) -> Listing:
        """Return what is there; see listing.Remote. The first peer that answers says so."""
        last: PassingError | BriskError | None = None
        for node_id, remote in self._remotes.items():
            try:
                self.manifest = remote.manifest()
            except (PassingError, BriskError) as error:
                log.warning("peer does not answer", node=node_id, problem=str(error))
                last = error
                continue
            files = [
                RemoteFile(name=file.name, size_bytes=file.size_bytes, version="")
                for file in self.manifest.files
            ]
            return Listing(files={file.name: file for file in files})
        raise last or PassingError("no peer answers")

    def target(self, file: RemoteFile) -> Target:
        """Return where the first peer has a file; see listing.Remote."""
        return next(iter(self._remotes.values())).target(file)

    def swarm(self, files: Sequence[RemoteFile]) -> Swarm:
        """Return what reads `files` from all peers."""
        return Swarm(
            [
                Member(node_id, OriginSupply(remote, self._reader, files, {}), rank)
                for rank, (node_id, remote) in enumerate(self._remotes.items())
            ]
        )
