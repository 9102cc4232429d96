"""A model on a web server: a folder's URL, or that of the weight file in it.

HTTP has no listings. What a folder holds is said by its brisk.json, or else found by asking for
the names that Hugging Face folders have, and for the shards that their index names.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import quote, urljoin

from services.common.errors import InvalidArgumentError, NotFoundError, Reason
from services.storemgr.folder import CONFIG, INDEX, SINGLE, SUPPORT_NAMES
from services.storemgr.manifest import MANIFEST, MANIFEST_BYTES_MAX
from services.storemgr.refusal import blaming
from services.storemgr.remotes.checksums import names_in
from services.storemgr.remotes.listing import Listing, RemoteFile
from services.storemgr.remotes.locations import HttpLocation
from services.storemgr.remotes.ranges import RangeReader, Target
from services.storemgr.weight_index import INDEX_BYTES_MAX, parse_index

_ASK_AT_ONCE: Final = 8
_ADVICE: Final = "its server wants credentials, which URLs must not carry"


class WebRemote:
    """Implements listing.Remote."""

    def __init__(self, location: HttpLocation, reader: RangeReader) -> None:
        self._location = location
        self._reader = reader

    def list(self) -> Listing:
        """Return what is there; see listing.Remote."""
        manifest = self._find(MANIFEST, needed=False)
        if manifest is not None:
            with blaming(MANIFEST):
                names = names_in(self._small(MANIFEST, MANIFEST_BYTES_MAX))
            return _listing([manifest, *self._find_all(names, needed=True)])
        config = self._find(CONFIG, needed=True)
        files = [config, *self._find_all(SUPPORT_NAMES - {CONFIG}, needed=False)]
        return _listing([*files, *self._weights()])

    def target(self, file: RemoteFile) -> Target:
        """Return where to read a file; see listing.Remote."""
        return Target(
            what=file.name,
            url=self._url(file.name),
            size_bytes=file.size_bytes,
            etag=file.version or None,
            advice=_ADVICE,
        )

    def _weights(self) -> Iterable[RemoteFile | None]:
        if self._location.weights is not None:
            return (self._find(self._location.weights, needed=True),)
        single = self._find(SINGLE, needed=False)
        if single is not None:
            return (single,)
        index = self._find(INDEX, needed=False)
        if index is None:
            return ()  # whoever chooses the files says what is missing
        with blaming(INDEX):
            shards = parse_index(self._small(INDEX, INDEX_BYTES_MAX)).shards
        return (index, *self._find_all(shards, needed=True))

    def _find_all(self, names: Iterable[str], *, needed: bool) -> Iterable[RemoteFile | None]:
        with ThreadPoolExecutor(_ASK_AT_ONCE, "storemgr-listing") as threads:
            return tuple(threads.map(lambda name: self._find(name, needed=needed), sorted(names)))

    def _find(self, name: str, *, needed: bool) -> RemoteFile | None:
        """Return a file's facts. Of what is not needed, None if it is not there or not for us."""
        try:
            facts = self._reader.facts(name, self._url(name), {}, _ADVICE)
        except NotFoundError:
            if needed:
                raise
            return None
        except InvalidArgumentError as error:
            if needed or error.reason != Reason.SOURCE_UNREADABLE:
                raise
            return None
        return RemoteFile(name=name, size_bytes=facts.size_bytes, version=facts.etag or "")

    def _small(self, name: str, bytes_max: int) -> bytes:
        return self._reader.read_small(name, self._url(name), {}, _ADVICE, bytes_max=bytes_max)

    def _url(self, name: str) -> str:
        return urljoin(self._location.folder, quote(name))


def _listing(files: Iterable[RemoteFile | None]) -> Listing:
    return Listing(files={file.name: file for file in files if file is not None})
