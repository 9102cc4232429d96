"""Which files of a Hugging Face folder make up the model, and where they really are.

A folder may hold anything: other formats of the same weights, training state, notebooks, sockets.
Only names on the list below are taken, and only if a regular file stands behind them. In the
Hugging Face cache every file is a symbolic link to a blob, so links are followed, once, here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Final

from services.storemgr.file_names import is_file_name
from services.storemgr.refusal import MalformedError, blaming, blaming_source, invalid_model
from services.storemgr.weight_index import INDEX_BYTES_MAX, WeightIndex, parse_index

CONFIG: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

ENTRIES_MAX: Final = 10_000
SUPPORT_FILES_MAX: Final = 64
SUPPORT_BYTES_MAX: Final = 64 << 20

_WEIGHTS: Final = ".safetensors"
SUPPORT_NAMES: Final = frozenset(
    {
        CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tekken.json",
        "chat_template.json",
    }
)
SUPPORT_SUFFIXES: Final = (".model", ".tiktoken", ".spm", ".jinja")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class FileKind(StrEnum):
    """What a file is for."""

    WEIGHTS = "weights"
    SUPPORT = "support"  # configuration, tokenizer, chat template, index


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file of a model: its name in the folder and the regular file behind it."""

    name: str
    kind: FileKind
    path: Path
    size_bytes: int
    device: int  # the file system that it lies on


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The names of a model's files."""

    weights: frozenset[str]
    support: frozenset[str]


def survey(folder: Path) -> tuple[ModelFile, ...]:
    """Return the files of `folder` that make up its model, sorted by name.

    Raises InvalidArgumentError (INVALID_MODEL), and what `blaming_source` raises if `folder` cannot
    be listed.
    """
    choice = choose(_names(folder), lambda: _read_index(folder))
    files = [_resolve(folder, name, FileKind.WEIGHTS) for name in choice.weights]
    files += [_resolve(folder, name, FileKind.SUPPORT) for name in choice.support]
    return tuple(sorted(files, key=lambda file: file.name))


def choose(names: frozenset[str], read_index: Callable[[], WeightIndex]) -> Choice:
    """Return which of a folder's `names` make up its model.

    `read_index` is called if the weights are shards. Raises InvalidArgumentError (INVALID_MODEL).
    """
    if CONFIG not in names:
        raise invalid_model(CONFIG, "is missing")
    weights, index = _choose_weights(names, read_index)
    support = frozenset(name for name in names if _is_support(name)) | index
    if len(support) > SUPPORT_FILES_MAX:
        raise invalid_model(
            "", f"has {len(support)} files beside the weights, the limit is {SUPPORT_FILES_MAX}"
        )
    return Choice(weights=weights, support=support)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open the regular file `path` for reading, never a link, a device or a pipe.

    Raises OSError, and MalformedError if it is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not hold us up
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MalformedError("is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_whole(path: Path, *, bytes_max: int) -> bytes:
    """Return the content of `path`. Raises OSError, and MalformedError beyond `bytes_max`."""
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > bytes_max:
            raise MalformedError(f"has {size} bytes, the limit is {bytes_max}")
        return read_at(descriptor, 0, size)


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset`. Raises OSError, and MalformedError if the file ends."""
    parts: list[bytes] = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise MalformedError("shrank while it was read")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _names(folder: Path) -> frozenset[str]:
    names: set[str] = set()
    with blaming_source(), os.scandir(folder) as entries:
        for entry in entries:
            names.add(entry.name)
            if len(names) > ENTRIES_MAX:
                raise invalid_model("", f"has more than {ENTRIES_MAX} entries")
    return frozenset(names)


def _choose_weights(
    names: frozenset[str], read_index: Callable[[], WeightIndex]
) -> tuple[frozenset[str], frozenset[str]]:
    """Return the weight files, and the index if they are shards, in transformers' own order."""
    if SINGLE in names:
        return frozenset({SINGLE}), frozenset()
    if INDEX in names:
        return _shards(names, read_index()), frozenset({INDEX})
    found = sorted(name for name in names if name.endswith(_WEIGHTS) and is_file_name(name))
    if len(found) == 1:
        return frozenset(found), frozenset()
    if found:
        raise invalid_model(INDEX, f"is missing: {len(found)} weight files and nothing joins them")
    pickles = sorted(name for name in names if PurePath(name).suffix in _PICKLES)
    if pickles:
        raise invalid_model(
            pickles[0], "is pickled, which can run code when opened; convert it to safetensors"
        )
    raise invalid_model("", "has no safetensors file")


def _read_index(folder: Path) -> WeightIndex:
    file = _resolve(folder, INDEX, FileKind.SUPPORT)
    with blaming(INDEX):
        return parse_index(read_whole(file.path, bytes_max=INDEX_BYTES_MAX))


def _shards(names: frozenset[str], index: WeightIndex) -> frozenset[str]:
    missing = sorted(index.shards - names)
    if missing:
        raise invalid_model(missing[0], f"is missing though {INDEX} names it")
    return index.shards


def _is_support(name: str) -> bool:
    return name in SUPPORT_NAMES or (name.endswith(SUPPORT_SUFFIXES) and is_file_name(name))


def _resolve(folder: Path, name: str, kind: FileKind) -> ModelFile:
    with blaming(name):
        path = Path(os.path.realpath(folder / name, strict=True))
        status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise invalid_model(name, "is not a regular file")
    if kind is FileKind.SUPPORT and status.st_size > SUPPORT_BYTES_MAX:
        raise invalid_model(name, f"has {status.st_size} bytes, the limit is {SUPPORT_BYTES_MAX}")
    return ModelFile(
        name=name, kind=kind, path=path, size_bytes=status.st_size, device=status.st_dev
    )
