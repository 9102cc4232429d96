"""Bring a checkpoint into the store: look, stage, verify, publish.

Weights are written in the stored form unless the order says to keep the files as they are.

The source may be anything and may change while it is read, so nothing that was seen there counts:
the files are brought into a staging folder first, and what lies there is checked and described.
What lies elsewhere is fetched to a place of its own before, where an interrupted import goes on.
Weights that are kept become hard links where the file system allows, which costs no room; a file
that is edited by hand (a config, a template) is always copied. Everything here blocks, on one
thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from services.common.clock import wall_clock
from services.common.errors import (
    Reason,
    ResourceExhaustedError,
)
from services.storemgr.checkpoint import inspect
from services.storemgr.conversion import STORED_NAME, Conversion, plan_conversion
from services.storemgr.facts import ModelFacts
from services.storemgr.folder import INDEX, FileKind, ModelFile, survey
from services.storemgr.manifest import Manifest, StoredFile, revision_of
from services.storemgr.ports import Disk, Job, JobStoppedError, Progress
from services.storemgr.progress import ImportProgress, Report
from services.storemgr.refusal import MalformedError, blaming
from services.storemgr.remotes.fetcher import Fetched, Fetcher, FetchOrder
from services.storemgr.remotes.locations import Location
from services.storemgr.source import Source
from services.storemgr.source_checksums import Checksums, checksums_of, compare
from services.storemgr.store import Store, identity, make_durable

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP)
_SPARE_BYTES: Final = 1 << 20  # for folders and the manifest
_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What to import."""

    source: Source
    after: datetime | None  # when this name was imported last; this import counts as later


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What becomes of a folder's files."""

    kept: tuple[ModelFile, ...]
    conversion: Conversion | None  # of the files that are not kept
    checksums: Checksums  # that the folder brings along

    @property
    def names(self) -> list[str]:
        """Return the names of the files in the store."""
        made = [] if self.conversion is None else [STORED_NAME]
        return sorted([*(file.name for file in self.kept), *made])

    @property
    def file_bytes(self) -> int:
        """Return the bytes of the files in the store."""
        made = 0 if self.conversion is None else self.conversion.size_bytes
        return sum(file.size_bytes for file in self.kept) + made


class Importer:
    """Imports one checkpoint at a time per call; calls for different names may run side by side."""

    def __init__(self, store: Store, disk: Disk, fetcher: Fetcher, *, hard_links: bool) -> None:
        self._store = store
        self._disk = disk
        self._fetcher = fetcher
        self._hard_links = hard_links

    def run(self, order: ImportOrder, job: Job, report: Report) -> Manifest:
        """Carry out `order` and return what the store then holds.

        Equal content that is stored already is kept and becomes the latest import. Raises
        InvalidArgumentError (INVALID_MODEL, SOURCE_...), NotFoundError (SOURCE_NOT_FOUND),
        UnavailableError (SOURCE_UNAVAILABLE), AbortedError (SOURCE_CHANGED), DataLossError
        (CHECKSUM_MISMATCH), ResourceExhaustedError (DISK_FULL), OSError, and JobStoppedError once
        `job` is stopped; whatever it raises, the models in the store are as they were.
        """
        place = self._fetcher.settle(order.source.place)
        if isinstance(place, Path):
            return self._import_folder(place, order, job, report)
        return self._import_remote(place, order, job, report)

    def _import_folder(
        self, folder: Path, order: ImportOrder, job: Job, report: Report
    ) -> Manifest:
        files = survey(folder)
        inspect(files)  # refuse what is plainly wrong before any of it is moved
        plan = _plan(folder, files, as_is=order.source.as_is)
        self._check_room(plan)
        with self._naming_full_disk(plan.file_bytes), self._store.staging() as staging:
            stored = self._stage(staging, plan, job, report)
            is_stored_form = plan.conversion is not None
            return self._publish(staging, stored, order, job, is_stored_form=is_stored_form)

    def _import_remote(
        self, location: Location, order: ImportOrder, job: Job, report: Report
    ) -> Manifest:
        source = order.source
        wanted = FetchOrder(location=location, name=source.name, as_is=source.as_is)

        with (
            self._naming_full_disk(0),
            self._fetcher.fetched(wanted, job, report, self._make_room) as fetched,
        ):
            if not fetched.weights:  # verified originals, of a form to convert
                return self._import_folder(fetched.folder, order, job, report)
            with self._store.staging() as staging:
                stored = self._adopt(staging, fetched, job)
                is_stored_form = fetched.is_stored_form
                return self._publish(staging, stored, order, job, is_stored_form=is_stored_form)

    def _publish(
        self,
        staging: Path,
        stored: tuple[StoredFile, ...],
        order: ImportOrder,
        job: Job,
        *,
        is_stored_form: bool,
    ) -> Manifest:
        facts = inspect([_staged(staging, file) for file in stored])
        manifest = _manifest(order, facts, stored, is_stored_form=is_stored_form)
        present = self._store.whole(manifest.ref)
        if job.is_stopped:  # the last chance: from here on it happens
            raise JobStoppedError
        if present is not None:
            manifest = replace(present, imported_at=manifest.imported_at)
            self._store.restate(manifest)
        else:
            self._store.publish(staging, manifest)
        return manifest

    def _adopt(self, staging: Path, fetched: Fetched, job: Job) -> tuple[StoredFile, ...]:
        """Move what was fetched into `staging`; support files are copied, and verified again."""
        stored = []
        for weights in fetched.weights:
            target = staging / weights.name
            weights.path.rename(target)
            size, modified_ns = identity(target)
            stored.append(
                StoredFile(
                    name=weights.name,
                    kind=FileKind.WEIGHTS,
                    size_bytes=size,
                    modified_ns=modified_ns,
                    checksums=weights.checksums,
                )
            )
        for file in survey(fetched.folder):
            is_needless = fetched.is_stored_form and file.name == INDEX
            if file.kind is FileKind.SUPPORT and not is_needless:
                with blaming(file.name):
                    stored.append(self._bring(file, staging / file.name, job, lambda _: None))
        return tuple(sorted(stored, key=lambda file: file.name))

    def _stage(
        self, staging: Path, plan: _Plan, job: Job, report: Report
    ) -> tuple[StoredFile, ...]:
        """Bring all files into `staging`, durably, and return their checksums."""
        kept = {file.name: file for file in plan.kept}
        total = plan.file_bytes
        done = 0
        stored: list[StoredFile] = []
        for name in plan.names:
            base = done

            def progress(file_done: int, *, base: int = base, name: str = name) -> None:
                report(ImportProgress(bytes_done=base + file_done, bytes_total=total, file=name))

            progress(0)
            with blaming(name):
                if name in kept:
                    file = self._bring(kept[name], staging / name, job, progress)
                    compare(name, file.checksums, plan.checksums.get(name))
                else:
                    file = _convert(plan, staging / name, job, progress)
            stored.append(file)
            done += file.size_bytes
        report(ImportProgress(bytes_done=total, bytes_total=total, file=""))
        return tuple(stored)

    def _bring(self, file: ModelFile, target: Path, job: Job, progress: Progress) -> StoredFile:
        before = identity(file.path)
        if file.kind is FileKind.WEIGHTS and self._hard_links and _link(file.path, target):
            checksums = job.checksum(target, progress)
            make_durable(target)
            after = identity(target)
        else:
            checksums = job.copy(file.path, target, progress)
            after = identity(file.path)
        size, modified_ns = identity(target)
        if before != after or size != file.size_bytes:
            raise MalformedError("changed while it was imported")
        return StoredFile(
            name=file.name,
            kind=file.kind,
            size_bytes=size,
            modified_ns=modified_ns,
            checksums=checksums,
        )

    def _check_room(self, plan: _Plan) -> None:
        """Refuse before copying what cannot fit. Files that will be linked take no room."""
        device = self._store.root.stat().st_dev
        linked = sum(
            file.size_bytes
            for file in plan.kept
            if self._hard_links and file.kind is FileKind.WEIGHTS and file.device == device
        )
        needed = plan.file_bytes - linked
        if needed + _SPARE_BYTES > self._disk.free_bytes(self._store.root):
            raise self._disk_full(needed)

    def _make_room(self, needed_bytes: int) -> None:
        """Refuse to fetch what cannot fit, not even without unfinished imports."""
        for attempt in range(2):
            if needed_bytes + _SPARE_BYTES <= self._disk.free_bytes(self._store.root):
                return
            if attempt == 0:
                self._fetcher.places.drop_idle()
        raise self._disk_full(needed_bytes)

    @contextmanager
    def _naming_full_disk(self, needed_bytes: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise self._disk_full(needed_bytes) from error

    def _disk_full(self, needed_bytes: int) -> ResourceExhaustedError:
        available_bytes = self._disk.free_bytes(self._store.root)
        return ResourceExhaustedError(
            f"the store's disk is full: the model needs {needed_bytes} bytes, "
            f"{available_bytes} are available",
            reason=Reason.DISK_FULL,
            metadata={
                "needed_bytes": str(needed_bytes),
                "available_bytes": str(available_bytes),
            },
        )


def _link(path: Path, target: Path) -> bool:
    """Make `target` another name of the file, or return False where that cannot be."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def _plan(folder: Path, files: tuple[ModelFile, ...], *, as_is: bool) -> _Plan:
    checksums = checksums_of(folder, files)
    conversion = None if as_is else plan_conversion(folder, files)
    if conversion is None:
        return _Plan(kept=files, conversion=None, checksums=checksums)
    # The index of shards goes with them.
    kept = tuple(file for file in files if file.kind is not FileKind.WEIGHTS and file.name != INDEX)
    return _Plan(kept=kept, conversion=conversion, checksums=checksums)


def _convert(plan: _Plan, target: Path, job: Job, progress: Progress) -> StoredFile:
    if plan.conversion is None:
        raise ValueError("there is nothing to convert")
    checksums = job.convert(plan.conversion.weights, target, progress, plan.checksums)
    size, modified_ns = identity(target)
    return StoredFile(
        name=target.name,
        kind=FileKind.WEIGHTS,
        size_bytes=size,
        modified_ns=modified_ns,
        checksums=checksums,
    )


def _staged(staging: Path, file: StoredFile) -> ModelFile:
    path = staging / file.name
    return ModelFile(
        name=file.name,
        kind=file.kind,
        path=path,
        size_bytes=file.size_bytes,
        device=path.lstat().st_dev,
    )


def _manifest(
    order: ImportOrder,
    facts: ModelFacts,
    stored: tuple[StoredFile, ...],
    *,
    is_stored_form: bool,
) -> Manifest:
    now = wall_clock()
    if order.after is not None and now <= order.after:  # the clock was set back
        now = order.after + _TICK
    return Manifest(
        name=order.source.name,
        revision=revision_of(stored),
        imported_at=now,
        facts=facts,
        files=stored,
        is_stored_form=is_stored_form,
    )
