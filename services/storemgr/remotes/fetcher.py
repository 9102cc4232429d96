"""Bring a remote model to this host: choose its files, look at them, fetch what they consist of.

The source's folder is laid out in small first: support files whole, weight files of their full size
with nothing but their headers in them. All checks of local folders work on that. The weights then
come straight into the file that the store will keep, in the stored form unless asked otherwise, so
that no original is written: ranges go to their places as they arrive. Only where the source has
checksums of originals in another form are these fetched whole and verified, to be converted then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import brisk_native
from brisk_native import CHUNK_BYTES

from services.common.errors import BriskError, Reason
from services.storemgr.checkpoint import inspect
from services.storemgr.conversion import STORED_NAME, plan_conversion
from services.storemgr.folder import (
    INDEX,
    SUPPORT_BYTES_MAX,
    Choice,
    FileKind,
    ModelFile,
    choose,
    survey,
)
from services.storemgr.manifest import MANIFEST, MANIFEST_BYTES_MAX
from services.storemgr.metrics import FETCHED_BYTES
from services.storemgr.ports import Job, JobStoppedError
from services.storemgr.progress import ImportProgress, Report
from services.storemgr.refusal import blaming, invalid_model
from services.storemgr.remotes.assembly import Assembly, Piece, first_damaged, whole
from services.storemgr.remotes.checksums import Promise, promises_in
from services.storemgr.remotes.fetch import Fetch
from services.storemgr.remotes.listing import RemoteFile
from services.storemgr.remotes.locations import HttpLocation, HubLocation, Location, S3Location
from services.storemgr.remotes.pace import Speed
from services.storemgr.remotes.refusals import PassingError, mismatch
from services.storemgr.remotes.sources import OpenSource, SourceRules, opened_source
from services.storemgr.remotes.workplaces import Workplace, Workplaces
from services.storemgr.weight_index import INDEX_BYTES_MAX, WeightIndex, parse_index

_HEAD_BYTES: Final = 256 << 10  # of a weight file, to begin with: most headers fit
_HEAD_BYTES_MAX: Final = (8 << 20) + 8 + 1  # no header may be longer
_LENGTH_BYTES: Final = 8
_KEPT_FOR: Final = frozenset({Reason.SOURCE_UNAVAILABLE, Reason.SHUTTING_DOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """A file that is here, durable, with the checksums of its chunks."""

    name: str
    path: Path
    checksums: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A model that is here."""

    folder: Path  # support files, and the originals of weights that are still to be converted
    weights: tuple[FetchedFile, ...]  # as they will be stored; empty if they are in `folder`
    is_stored_form: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """What to fetch."""

    location: Location
    name: str
    as_is: bool


Room = Callable[[int], None]  # raises unless so many bytes have room


class Fetcher:
    """Fetches one model per call; calls may run side by side."""

    def __init__(self, rules: SourceRules, places: Workplaces) -> None:
        self._rules = rules
        self.places = places

    def settle(self, place: Path | Location) -> Path | Location:
        """Return where to import from: a repository may lie in huggingface_hub's cache.

        Raises InvalidArgumentError (SOURCE_NOT_ALLOWED), NotFoundError (SOURCE_NOT_FOUND).
        """
        self._rules.permits.check(place)
        if isinstance(place, HubLocation):
            from services.storemgr.remotes.hub import cached_folder  # noqa: PLC0415 - slow to import

            return cached_folder(place) or place
        return place

    @contextmanager
    def fetched(self, order: FetchOrder, job: Job, tell: Report, room: Room) -> Iterator[Fetched]:
        """Give what was fetched; it is gone after the block, unless that can be gone on with.

        Raises BriskError, OSError and JobStoppedError.
        """
        key = order.location.text, order.name, str(order.as_is)
        with self.places.place(*key) as place:
            try:
                with opened_source(order.location, self._rules, job) as source:
                    run = _Run(
                        order, source, place, rules=self._rules, job=job, tell=tell, room=room
                    )
                    yield run.run()
            except JobStoppedError:
                raise
            except BriskError as error:
                if error.reason not in _KEPT_FOR:
                    place.clear()
                raise
            except BaseException:
                place.clear()
                raise
            else:
                place.clear()


class _Run:
    """One fetch, as far as it has come."""

    def __init__(
        self,
        order: FetchOrder,
        source: OpenSource,
        place: Workplace,
        *,
        rules: SourceRules,
        job: Job,
        tell: Report,
        room: Room,
    ) -> None:
        self._order = order
        self._source = source
        self._place = place
        self._rules = rules
        self._job = job
        self._tell = tell
        self._room = room
        self._promises: Mapping[str, Promise] = {}
        self._speed = Speed()
        self._done = 0
        self._total = 0

    def run(self) -> Fetched:
        files = self._source.listing.files
        self._promises = self._promised()
        choice = self._choice()
        chosen = choice.weights | choice.support
        self._check_sizes(chosen)
        self._place.begin(self._source.listing.fingerprint(chosen))
        self._total = sum(files[name].size_bytes for name in chosen)
        for name in sorted(choice.support):
            self._assemble(self._whole(files[name], 0), (files[name],), self._place.files)
        for name in sorted(choice.weights):
            self._head(files[name])
        found = survey(self._place.files)
        inspect(found)  # refuse what is plainly wrong before any of it is moved
        return self._weights(found)

    def _promised(self) -> Mapping[str, Promise]:
        """Return what the source says that its files' checksums are, if it does."""
        if self._source.manifest is not None:
            return {
                file.name: Promise(size_bytes=file.size_bytes, checksums=file.checksums)
                for file in self._source.manifest.files
            }
        if not self._source.listing.has_manifest:
            return {}
        raw = self._small(self._source.listing.files[MANIFEST], MANIFEST_BYTES_MAX)
        with blaming(MANIFEST):
            return promises_in(raw)

    def _weights(self, found: tuple[ModelFile, ...]) -> Fetched:
        """Fetch the weights in the form that they are to have."""
        weights = [file.name for file in found if file.kind is FileKind.WEIGHTS]
        sources = tuple(self._source.listing.files[name] for name in weights)
        stored = None if self._order.as_is else self._stored_form(found, sources)
        if stored is None or (self._promises and not self._is_same(stored, sources)):
            keep, manifest = stored is None, self._source.manifest
            folder = self._place.parts if keep else self._place.files
            made = [self._assemble(self._whole(each, 0), (each,), folder) for each in sources]
            return Fetched(
                folder=self._place.files,
                weights=tuple(made) if keep else (),
                is_stored_form=manifest is not None and manifest.is_stored_form,
            )
        self._total += stored.size_bytes - sum(each.size_bytes for each in sources)
        return Fetched(
            folder=self._place.files,
            weights=(self._assemble(stored, sources, self._place.parts),),
            is_stored_form=True,
        )

    def _stored_form(
        self, found: tuple[ModelFile, ...], sources: tuple[RemoteFile, ...]
    ) -> Assembly | None:
        """Return how the stored form is put together; None if the weights cannot have it."""
        conversion = plan_conversion(self._place.files, found)
        if conversion is None:
            return None
        layout = brisk_native.stored_layout(conversion.weights)
        numbers = {file.name: number for number, file in enumerate(sources)}
        names = [file.name for file in conversion.weights.files]
        return Assembly(
            name=STORED_NAME,
            size_bytes=layout.file_bytes,
            prefix=layout.header,
            pieces=tuple(
                Piece(source=numbers[names[source]], offset=offset, size=size, target=target)
                for source, offset, size, target in layout.pieces
                if size
            ),
            expected=self._expected(STORED_NAME, layout.file_bytes),
        )

    def _is_same(self, stored: Assembly, sources: tuple[RemoteFile, ...]) -> bool:
        """Return whether the source's own file is the stored form already, byte for byte."""
        if len(sources) != 1 or sources[0].size_bytes != stored.size_bytes:
            return False
        with (self._place.files / sources[0].name).open("rb") as file:
            head = file.read(len(stored.prefix))
        return head == stored.prefix and all(
            piece.offset == piece.target for piece in stored.pieces
        )

    def _assemble(
        self, assembly: Assembly, sources: tuple[RemoteFile, ...], folder: Path
    ) -> FetchedFile:
        path = folder / assembly.name
        self._room(max(0, assembly.size_bytes - _bytes_on_disk(path)))
        fetch = Fetch(
            assembly,
            self._source.supply(sources),
            self._rules.limits,
            is_stopped=lambda: self._job.is_stopped,
            arrived=lambda size, new: self._arrived(assembly.name, size, is_new=new),
        )
        checksums = fetch.run(path, self._place.parts / f"{assembly.name}.journal")
        return FetchedFile(name=assembly.name, path=path, checksums=checksums)

    def _whole(self, file: RemoteFile, source: int) -> Assembly:
        return whole(file.name, source, file.size_bytes, self._expected(file.name, file.size_bytes))

    def _expected(self, name: str, size_bytes: int) -> tuple[int, ...] | None:
        promise = self._promises.get(name)
        return promise.checksums if promise and promise.size_bytes == size_bytes else None

    def _head(self, file: RemoteFile) -> None:
        """Lay a weight file out with its full size and no more in it than its header."""
        path = self._place.files / file.name
        if path.exists() and path.stat().st_size == file.size_bytes:
            return
        head = self._begin_of(file, min(_HEAD_BYTES, file.size_bytes))
        needed = _LENGTH_BYTES + int.from_bytes(head[:_LENGTH_BYTES], "little")
        needed = min(needed, _HEAD_BYTES_MAX, file.size_bytes)
        if needed > len(head):
            head = self._begin_of(file, needed)
        scratch = path.with_name(f"{path.name}.part")
        with scratch.open("wb") as laid:
            laid.write(head[:needed])
            laid.truncate(file.size_bytes)
            laid.flush()
            os.fsync(laid.fileno())
        scratch.rename(path)

    def _begin_of(self, file: RemoteFile, size: int) -> bytes:
        """Return at least `size` bytes of the file's beginning, verified where that can be."""
        expected = self._expected(file.name, file.size_bytes)
        if expected is not None:  # whole chunks have checksums
            size = min(-(-size // CHUNK_BYTES) * CHUNK_BYTES, file.size_bytes)
        content = memoryview(bytearray(size))
        supply = self._source.supply((file,))
        plan = whole(file.name, 0, file.size_bytes, expected)

        def attempt(is_last: bool) -> None:  # noqa: FBT001
            supply.fill(plan, 0, content)
            damaged = first_damaged(plan, 0, content)
            if damaged is not None:
                if is_last:
                    raise mismatch(file.name, damaged)
                raise PassingError("a chunk arrived damaged")

        self._source.patience.run(file.name, attempt)
        return bytes(content)

    def _small(self, file: RemoteFile, bytes_max: int) -> bytes:
        if file.size_bytes > bytes_max:
            raise invalid_model(file.name, f"has {file.size_bytes} bytes, the limit is {bytes_max}")
        return self._begin_of(file, file.size_bytes)

    def _choice(self) -> Choice:
        """Return the names of the model's files, weights as the URL names them if it does."""
        names = self._source.listing.names
        location = self._order.location
        named = location.weights if isinstance(location, (S3Location, HttpLocation)) else None
        if named is not None:
            if named not in names:
                raise invalid_model(named, "is missing")
            others = (name for name in names if not name.endswith(".safetensors"))
            names = frozenset(others) - {INDEX} | {named}
        return choose(names, self._read_index)

    def _read_index(self) -> WeightIndex:
        raw = self._small(self._source.listing.files[INDEX], INDEX_BYTES_MAX)
        with blaming(INDEX):
            return parse_index(raw)

    def _check_sizes(self, chosen: frozenset[str]) -> None:
        for name in sorted(chosen):
            file = self._source.listing.files[name]
            is_support = not name.endswith(".safetensors")
            if is_support and file.size_bytes > SUPPORT_BYTES_MAX:
                raise invalid_model(
                    name, f"has {file.size_bytes} bytes, the limit is {SUPPORT_BYTES_MAX}"
                )
            promise = self._promises.get(name)
            if promise is not None and promise.size_bytes != file.size_bytes:
                raise invalid_model(
                    name,
                    f"has {file.size_bytes} bytes at the source, whose {MANIFEST} says "
                    f"{promise.size_bytes}",
                )

    def _arrived(self, name: str, size_bytes: int, *, is_new: bool) -> None:
        self._done += size_bytes
        if is_new:
            self._speed.add(size_bytes)
            FETCHED_BYTES.labels(self._source.kind).inc(size_bytes)
        self._tell(
            ImportProgress(
                bytes_done=min(self._done, self._total),
                bytes_total=self._total,
                file=name,
                bytes_per_s=self._speed.bytes_per_s,
                origin=self._source.kind,
            )
        )


def _bytes_on_disk(path: Path) -> int:
    """Return the room that a file takes already."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
