"""The store's folder: what lies where, and how a model enters and leaves it whole.

    store/
      lock                            held by the one store manager that uses the folder
      staging/<random>/               being put together or taken apart; emptied at start
      models/<name>/<revision>/       published: the model's files and brisk.json
      quarantine/<name>--<random>/    what lay in `models` at a start and was no whole model
      arena.json                      what lies in the node's memory: see arena_index

A model is put together in `staging`, made durable, and published by one rename, so a crash at any
point leaves either all of it or something that the next start sweeps away. Everything here blocks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.log import get_logger
from services.common.model import ModelRef
from services.common.names import ModelName
from services.storemgr.folder import read_whole
from services.storemgr.manifest import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    Manifest,
    StoredFile,
    decode_manifest,
    encode_manifest,
    is_revision,
)
from services.storemgr.refusal import MalformedError

log = get_logger(__name__)

_STORE: Final = "store"
_BLOCK_BYTES: Final = 512  # what st_blocks counts, whatever the file system
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class StoreTakenError(Exception):
    """Another store manager uses the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What is published."""

    manifests: tuple[Manifest, ...]
    unusable: int  # folders that are no whole model


class Store:
    """The folder, locked for us alone. Its methods may be called from any thread."""

    def __init__(self, data_dir: Path) -> None:
        """Create and lock the folder. Raises StoreTakenError, and OSError if it cannot be used."""
        self.root = data_dir / _STORE
        self._models = self.root / "models"
        self._staging = self.root / "staging"
        self._quarantine = self.root / "quarantine"
        for folder in (self.root, self._models, self._staging, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.root / "lock")

    def close(self) -> None:
        """Let others use the folder."""
        os.close(self._lock)

    # --- At start ---

    def sweep(self) -> int:
        """Remove what a crash left half-way and return how many things that were."""
        leftovers = list(self._staging.iterdir())
        for leftover in leftovers:
            self.discard(leftover)
        for shelf in _folders(self._models):
            with suppress(OSError):  # in use
                shelf.rmdir()
        return len(leftovers)

    def scan(self) -> Scan:
        """Return what is published; what is no whole model goes into quarantine, for people.

        What cannot be read at all stays where it is: that may be the disk's fault.
        """
        found: list[Manifest] = []
        unusable = 0
        for shelf in _folders(self._models):
            for folder in _folders(shelf):
                try:
                    found.append(self._read(folder))
                except (MalformedError, FileNotFoundError, NotADirectoryError) as error:
                    unusable += 1
                    self._put_aside(folder, str(error))
                except OSError as error:
                    unusable += 1
                    log.warning("stored model is unreadable", folder=str(folder), error=str(error))
        return Scan(manifests=tuple(found), unusable=unusable)

    def empty_quarantine(self) -> tuple[int, int]:
        """Delete what was put aside; return how many models that were, and their bytes.

        Raises OSError if it cannot be listed; what cannot be deleted is logged and stays.
        """
        models, freed = 0, 0
        for aside in list(self._quarantine.iterdir()):
            size = used_bytes(aside)
            self.discard(aside)
            if not aside.exists():
                models, freed = models + 1, freed + size
        return models, freed

    # --- Where things are ---

    def folder_of(self, ref: ModelRef) -> Path:
        """Return the folder of a model, stored or not."""
        if not is_revision(ref.revision):
            raise ValueError(f"no revision: {ref.revision!r}")
        return self._shelf(ref.name) / ref.revision

    def whole(self, ref: ModelRef) -> Manifest | None:
        """Return the manifest of a stored model, or None unless all of it is as it was stored."""
        try:
            manifest = self._read(self.folder_of(ref))
            return None if self.changed_files(manifest) else manifest
        except (MalformedError, OSError):
            return None

    def changed_files(self, manifest: Manifest) -> tuple[StoredFile, ...]:
        """Return the files that were touched since they were verified, or are gone."""
        folder = self.folder_of(manifest.ref)
        return tuple(file for file in manifest.files if _is_changed(folder / file.name, file))

    # --- In and out ---

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a new empty folder to put a model together in; what is left of it goes away."""
        folder = self._new_name()
        folder.mkdir()
        try:
            yield folder
        finally:
            self.discard(folder)

    def publish(self, staging: Path, manifest: Manifest) -> None:
        """Make what `staging` holds the model that `manifest` describes, at once and for good.

        Whatever was stored at this revision before makes room: it was not whole. The files in
        `staging` must be durable already. Raises OSError; nothing is published then.
        """
        _write_durably(staging / MANIFEST, encode_manifest(manifest))
        _sync_folder(staging)
        target = self.folder_of(manifest.ref)
        target.parent.mkdir(exist_ok=True)
        _sync_folder(self._models)
        replaced = self._move_away(target)
        staging.rename(target)
        _sync_folder(target.parent)
        if replaced is not None:
            self.discard(replaced)

    def restate(self, manifest: Manifest) -> None:
        """Replace the manifest of a stored model, whose content must be the same."""
        target = self.folder_of(manifest.ref)
        with self.staging() as staging:
            _write_durably(staging / MANIFEST, encode_manifest(manifest))
            (staging / MANIFEST).rename(target / MANIFEST)
        _sync_folder(target)

    def remove(self, ref: ModelRef) -> None:
        """Take a model out of the store; fine if it is not there. Raises OSError."""
        target = self.folder_of(ref)
        moved = self._move_away(target)
        if moved is None:
            return
        _sync_folder(target.parent)
        with suppress(OSError):  # other revisions are there
            target.parent.rmdir()
        self.discard(moved)

    def discard(self, leftover: Path) -> None:
        """Delete something under staging; fine if it is not there. The next start tries again."""
        try:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        except OSError as error:
            log.warning("leftover not removed", leftover=str(leftover), error=str(error))

    # --- Inside ---

    def _shelf(self, name: ModelName) -> Path:
        return self._models / name.replace("/", "--")  # names cannot contain "--" themselves

    def _put_aside(self, folder: Path, problem: str) -> None:
        place = self._quarantine / f"{folder.parent.name}--{secrets.token_hex(4)}"
        log.warning("stored model is damaged", folder=str(folder), error=problem, now=str(place))
        try:
            folder.rename(place)
            with suppress(OSError):  # other revisions are there
                folder.parent.rmdir()
        except OSError as error:
            log.warning("damaged model stays", folder=str(folder), error=str(error))

    def _new_name(self) -> Path:
        return self._staging / secrets.token_hex(8)

    def _move_away(self, folder: Path) -> Path | None:
        moved = self._new_name()
        try:
            folder.rename(moved)
        except FileNotFoundError:
            return None
        return moved

    def _read(self, folder: Path) -> Manifest:
        manifest = decode_manifest(read_whole(folder / MANIFEST, bytes_max=MANIFEST_BYTES_MAX))
        if folder != self._shelf(manifest.name) / manifest.revision:
            raise MalformedError("belongs to another model")
        for file in manifest.files:
            if identity(folder / file.name)[0] != file.size_bytes:
                raise MalformedError(f"has {file.name} with another size than it had")
        return manifest


def used_bytes(folder: Path) -> int:
    """Return what all files under `folder` take, each once; what vanishes meanwhile is skipped.

    Files that are hard-linked elsewhere count: they stay when the other name goes. Raises OSError.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                facts = Path(parent, name).lstat()
            except FileNotFoundError:
                continue
            if (facts.st_dev, facts.st_ino) not in seen:
                seen.add((facts.st_dev, facts.st_ino))
                total += facts.st_blocks * _BLOCK_BYTES
    return total


def identity(path: Path) -> tuple[int, int]:
    """Return what changes whenever a file is written: size and time of the last write.

    Raises OSError, and MalformedError if `path` is no regular file.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise MalformedError("is not a regular file")
    return status.st_size, max(status.st_mtime_ns, 0)


def make_durable(path: Path) -> None:
    """Wait until the content of `path` is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_changed(path: Path, file: StoredFile) -> bool:
    try:
        return identity(path) != (file.size_bytes, file.modified_ns)
    except (MalformedError, OSError):
        return True


def _take_lock(path: Path) -> int:
    """Return a descriptor that holds the lock; it goes with the process, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreTakenError from error
    return descriptor


def _folders(parent: Path) -> Iterator[Path]:
    """Yield the folders in `parent`, never through a link."""
    with os.scandir(parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return (parent / name for name in names)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, _OPEN_FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
