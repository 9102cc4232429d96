"""What a remote source holds, and which of it makes up a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.storemgr.manifest import MANIFEST
from services.storemgr.remotes.ranges import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a source: its size, and what tells this version of it from others."""

    name: str
    size_bytes: int
    version: str  # an ETag, a commit; empty if the source has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a source that a model may consist of, by name."""

    files: Mapping[str, RemoteFile]

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all files."""
        return frozenset(self.files)

    @property
    def has_manifest(self) -> bool:
        """Return whether the source says what its bytes' checksums are."""
        return MANIFEST in self.files

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return what changes when one of the files `names` does."""
        digest = hashlib.sha256(b"brisk source 1\n")
        for name in sorted(names):
            file = self.files[name]
            digest.update(f"{name}\0{file.size_bytes}\0{file.version}\n".encode())
        return digest.hexdigest()


class Remote(Protocol):
    """A source, opened for one import."""

    def list(self) -> Listing:
        """Return what is there. Raises BriskError, PassingError and JobStoppedError."""

    def target(self, file: RemoteFile) -> Target:
        """Return where to read a file of the listing; asked for anew before each try."""
