"""arena.json: what lies where in the arena, for whoever takes it up after a crash.

The memory of a store manager that died lives on for as long as a worker has some of it mapped, or
its file has a name. The index says which file that is and what is in it; it is written before
chunks get another content and after they have got it, so it never says of one model what is
another's. It is worth nothing after a reboot, so it need not survive one.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.errors import InvalidArgumentError
from services.common.model import ModelRef
from services.common.names import parse_model_name
from services.storemgr.chunks import Piece
from services.storemgr.folder import read_whole
from services.storemgr.manifest import is_revision
from services.storemgr.refusal import MalformedError
from services.storemgr.residents import ArenaFile
from services.storemgr.strict_json import (
    JsonRules,
    is_integer,
    is_list,
    is_object,
    list_in,
    parse_object,
    text_in,
)

INDEX: Final = "arena.json"
VERSION: Final = 1

_BYTES_MAX: Final = 16 << 20
_RULES: Final = JsonRules(size_bytes_max=_BYTES_MAX, containers_max=400_000, values_max=2_000_000)
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """A model in the arena."""

    ref: ModelRef
    files: tuple[ArenaFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaIndex:
    """One arena and what is in it."""

    boot_id: str
    path: str  # as others open it
    device: int  # of the file
    inode: int
    size_bytes: int
    kind: str
    models: tuple[Indexed, ...] = ()


def boot_id() -> str:
    """Return what tells this run of the machine from others; empty if there is no telling."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def write_index(folder: Path, index: ArenaIndex) -> None:
    """Replace the index in `folder`. Raises OSError."""
    document = {
        "version": VERSION,
        "boot_id": index.boot_id,
        "path": index.path,
        "device": index.device,
        "inode": index.inode,
        "size_bytes": index.size_bytes,
        "kind": index.kind,
        "models": [
            {
                "name": model.ref.name,
                "revision": model.ref.revision,
                "files": [
                    {
                        "name": file.name,
                        "size_bytes": file.size_bytes,
                        "pieces": [[piece.offset, piece.size_bytes] for piece in file.pieces],
                    }
                    for file in model.files
                ],
            }
            for model in index.models
        ],
    }
    fresh = folder / f"{INDEX}.new"
    fresh.write_text(json.dumps(document))
    fresh.replace(folder / INDEX)


def read_index(folder: Path) -> ArenaIndex | None:
    """Return the index in `folder`; None if there is none of this boot that can be believed."""
    try:
        document = parse_object(read_whole(folder / INDEX, bytes_max=_BYTES_MAX), _RULES)
        if document.get("version") != VERSION or document.get("boot_id") != boot_id():
            return None
        return ArenaIndex(
            boot_id=text_in(document, "boot_id"),
            path=text_in(document, "path"),
            device=_integer(document, "device"),
            inode=_integer(document, "inode"),
            size_bytes=_integer(document, "size_bytes"),
            kind=text_in(document, "kind"),
            models=tuple(_model(each) for each in list_in(document, "models")),
        )
    except (OSError, MalformedError, InvalidArgumentError):
        return None


def find_memory(index: ArenaIndex) -> Path | None:
    """Return where the memory that `index` speaks of can be opened; None if it is gone.

    A file without a name is found through the processes that still have it open.
    """
    if _is_it(Path(index.path), index):
        return Path(index.path)
    for process in _PROCESSES.iterdir():
        if not process.name.isdigit():
            continue
        try:
            descriptors = list((process / "fd").iterdir())
        except OSError:  # another user's, or gone
            continue
        for descriptor in descriptors:
            if _is_it(descriptor, index):
                return descriptor
    return None


def _is_it(path: Path, index: ArenaIndex) -> bool:
    try:
        facts = path.stat()
    except OSError:
        return False
    return (
        stat.S_ISREG(facts.st_mode)
        and (facts.st_dev, facts.st_ino) == (index.device, index.inode)
        and facts.st_size == index.size_bytes
    )


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the device and the inode of a file. Raises OSError."""
    facts = Path(path).stat()
    return facts.st_dev, facts.st_ino


def _model(value: object) -> Indexed:
    if not is_object(value):
        raise MalformedError("has a model that is none")
    revision = text_in(value, "revision")
    if not is_revision(revision):
        raise MalformedError("has a revision that is none")
    ref = ModelRef(name=parse_model_name(text_in(value, "name")), revision=revision)
    return Indexed(ref=ref, files=tuple(_files(list_in(value, "files"))))


def _files(values: Iterable[object]) -> Iterable[ArenaFile]:
    for value in values:
        if not is_object(value):
            raise MalformedError("has a file that is none")
        pieces = []
        for piece in list_in(value, "pieces"):
            if not is_list(piece) or len(piece) != 2:  # noqa: PLR2004 - a pair
                raise MalformedError("has a piece that is none")
            offset, size = piece
            if not is_integer(offset) or not is_integer(size):
                raise MalformedError("has a piece that is none")
            pieces.append(Piece(offset=offset, size_bytes=size))
        yield ArenaFile(
            name=text_in(value, "name"),
            size_bytes=_integer(value, "size_bytes"),
            pieces=tuple(pieces),
        )


def _integer(members: dict[str, object], key: str) -> int:
    value = members.get(key)
    if not is_integer(value) or value < 0:
        raise MalformedError(f"has no number as {key}")
    return value
