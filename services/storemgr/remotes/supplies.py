"""The bytes of a file of the store, read from the source's files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.storemgr.folder import opened
from services.storemgr.refusal import blaming
from services.storemgr.remotes.assembly import Assembly
from services.storemgr.remotes.listing import Remote, RemoteFile
from services.storemgr.remotes.ranges import RangeReader
from services.storemgr.remotes.refusals import changed


class OriginSupply:
    """Implements fetch.Supply with the source itself, and what a cache on this host has of it."""

    def __init__(
        self,
        remote: Remote,
        reader: RangeReader,
        files: Sequence[RemoteFile],
        cached: Mapping[str, Path],
    ) -> None:
        self._remote = remote
        self._reader = reader
        self._files = files
        self._cached = cached

    def fill(self, assembly: Assembly, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; see fetch.Supply."""
        assembly.start(offset, buffer)
        for read in assembly.reads(offset, len(buffer)):
            file = self._files[read.source]
            if read.is_direct:
                place = read.parts[0][2]
                self.read(file, read.offset, buffer[place : place + read.size])
                continue
            span = memoryview(bytearray(read.size))
            self.read(file, read.offset, span)
            for at, size, place in read.parts:
                buffer[place : place + size] = span[at : at + size]

    def read(self, file: RemoteFile, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a source's file. Raises what `fill` raises."""
        if not view:
            return
        cached = self._cached.get(file.name)
        if cached is None:
            self._reader.read_into(self._remote.target(file), offset, view)
            return
        with blaming(file.name), opened(Path(os.path.realpath(cached))) as descriptor:
            while view:
                got = os.preadv(descriptor, [view], offset)
                if not got:
                    raise changed(file.name)
                view, offset = view[got:], offset + got
