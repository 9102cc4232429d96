"""Bring a checkpoint into the store: look, stage, verify, publish.

Weights are written in the stored form unless the order says to keep the files as they are.

The source may be anything and may change while it is read, so nothing that was seen there counts:
the files are brought into a staging folder first, and what lies there is checked and described.
Weights that are kept become hard links where the file system allows, which costs no room; a file
that is edited by hand (a config, a template) is always copied. Everything here blocks, on one
thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
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
from services.storemgr.refusal import MalformedError, blaming
from services.storemgr.source import Source
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """How far an import has come."""

    bytes_done: int
    bytes_total: int
    file: str  # being worked on; empty before the first and after the last


Report = Callable[[ImportProgress], None]


class Importer:
    """Imports one checkpoint at a time per call; calls for different names may run side by side."""

    def __init__(self, store: Store, disk: Disk, *, hard_links: bool) -> None:
        self._store = store
        self._disk = disk
        self._hard_links = hard_links

    def run(self, order: ImportOrder, job: Job, report: Report) -> Manifest:
        """Carry out `order` and return what the store then holds.

        Equal content that is stored already is kept and becomes the latest import. Raises
        InvalidArgumentError (INVALID_MODEL), NotFoundError (SOURCE_NOT_FOUND),
        ResourceExhaustedError (DISK_FULL), OSError, and JobStoppedError once `job` is stopped;
        whatever it raises, the store is as it was.
        """
        files = survey(order.source.folder)
        inspect(files)  # refuse what is plainly wrong before any of it is moved
        plan = _plan(order, files)
        self._check_room(plan)
        try:
            with self._store.staging() as staging:
                return self._stage_and_publish(staging, plan, order, job, report)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise self._disk_full(plan.file_bytes) from error

    def _stage_and_publish(
        self, staging: Path, plan: _Plan, order: ImportOrder, job: Job, report: Report
    ) -> Manifest:
        stored = self._stage(staging, plan, job, report)
        facts = inspect([_staged(staging, file) for file in stored])
        manifest = _manifest(order, facts, stored, is_stored_form=plan.conversion is not None)
        present = self._store.whole(manifest.ref)
        if job.is_stopped:  # the last chance: from here on it happens
            raise JobStoppedError
        if present is not None:
            manifest = replace(present, imported_at=manifest.imported_at)
            self._store.restate(manifest)
        else:
            self._store.publish(staging, manifest)
        return manifest

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


def _plan(order: ImportOrder, files: tuple[ModelFile, ...]) -> _Plan:
    conversion = None if order.source.as_is else plan_conversion(order.source.folder, files)
    if conversion is None:
        return _Plan(kept=files, conversion=None)
    # The index of shards goes with them.
    kept = tuple(file for file in files if file.kind is not FileKind.WEIGHTS and file.name != INDEX)
    return _Plan(kept=kept, conversion=conversion)


def _convert(plan: _Plan, target: Path, job: Job, progress: Progress) -> StoredFile:
    if plan.conversion is None:
        raise ValueError("there is nothing to convert")
    checksums = job.convert(plan.conversion.weights, target, progress)
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
