"""Bring a model into the stored form: one file, laid out for loading, with a manifest beside it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from brisk_native._implementation import CancelToken, copy_file, gather_file
from brisk_native._layout import plan_layout
from brisk_native._manifest import MANIFEST, manifest_text, read_checksums
from brisk_native._publish import replacement_of, write_durably
from brisk_native._reading import checksums_of
from brisk_native._types import (
    FileChangedError,
    InvalidCheckpointError,
    ManifestFile,
    ReadCancelledError,
)
from brisk_native._verify import compare
from brisk_native._weights import INDEX, SINGLE, Weights, read_weights, stamp_of

SUPPORT_SUFFIXES: Final = (".json", ".txt", ".model", ".tiktoken", ".spm", ".jinja")
"""Of the files beside the weights that are taken along: configuration, tokenizer, templates."""
SUPPORT_FILES_MAX: Final = 64
SUPPORT_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenWeights:
    """A weight file of the stored form."""

    file_bytes: int
    """Its size, in bytes."""
    crc32c: tuple[int, ...]
    """The checksum of each chunk of CHUNK_BYTES, of the bytes that were written."""
    direct: bool
    """True if all of it was read and written past the page cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What `convert` made, and how fast."""

    folder: Path
    """Where it is, absolute."""
    tensors: int
    tensor_bytes: int
    """Of all tensors, in bytes."""
    written_bytes: int
    """Of all files, in bytes."""
    verified: bool
    """True if the source had a manifest, which every chunk of its weights was checked against."""
    direct: bool
    """True if the weights were read and written past the page cache."""
    seconds: float
    """Wall time until all of it was on the disk."""

    @property
    def gb_per_s(self) -> float:
        """Bytes written by the time it took, in 1e9 bytes a second."""
        return self.written_bytes / 1e9 / max(1e-9, self.seconds)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Conversion:
    """Write the model in `src`, a folder or one safetensors file, to `dst` in the stored form.

    `dst` becomes a folder with one safetensors file, which any tool opens, brisk.json, and what
    lies beside the weights of `src`: configuration, tokenizer and chat templates, at most
    SUPPORT_FILES_MAX files of SUPPORT_BYTES_MAX bytes. A model that was converted to `dst` before
    is replaced at once; until then, and whatever is raised or wherever this process dies, `dst` is
    as it was. Equal sources give equal files. Where `src` has a manifest, all that is taken is
    verified against it.

    `threads` (1 to 64) each read and write one chunk at a time, in 8 MiB of memory. `progress`
    gets the bytes written and those there are, on the calling thread, about every 20 ms; if it
    raises, so does this call. The wait for the disk at the end cannot be cancelled.

    Raises InvalidHeaderError, InvalidCheckpointError (the files do not fit together, a damaged
    manifest, more tensors than the stored form holds), ChecksumError naming file, chunk and offset
    of the source, FileChangedError and ShortReadError if it changes meanwhile, FileExistsError if
    `dst` holds something that was not converted, ReadCancelledError, and OSError such as ENOSPC.
    """
    begin_s = time.perf_counter()
    weights = read_weights(src)
    place = Path(os.path.realpath(src))
    support = _support_files(place) if place.is_dir() else ()
    checksums = _checksums(place, weights)
    target = Path(os.path.realpath(dst))
    name = SINGLE[1] if weights.files[0].name == SINGLE[1] else SINGLE[0]
    support_bytes = sum(path.stat().st_size for path in support)

    def report(done: int, total: int, before: int = 0) -> None:
        if progress is not None:
            progress(before + done, total + support_bytes)

    _refuse_strangers(target)
    with replacement_of(target) as folder:
        written = write_weights(
            weights,
            folder / name,
            checksums=checksums,
            threads=threads,
            progress=report,
            cancel=cancel,
        )
        files = [ManifestFile(name=name, size_bytes=written.file_bytes, crc32c=written.crc32c)]
        files += [_copy(path, folder, checksums.get(path.name), cancel) for path in support]
        files.sort(key=lambda file: file.name)
        report(written.file_bytes, written.file_bytes, support_bytes)
        text = manifest_text(files, _source_facts(weights))
        write_durably(folder / MANIFEST, text)
        if cancel is not None and cancel.cancelled:  # the last chance: from here on it happens
            raise ReadCancelledError(written.file_bytes)
    return Conversion(
        folder=target,
        tensors=len(weights.tensors),
        tensor_bytes=weights.tensor_bytes,
        written_bytes=sum(file.size_bytes for file in files) + len(text),
        verified=all(file.name in checksums for file in weights.files),
        direct=written.direct,
        seconds=time.perf_counter() - begin_s,
    )


def write_weights(
    weights: Weights,
    target: Path,
    *,
    checksums: Mapping[str, tuple[int, ...]] | None = None,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> WrittenWeights:
    """Write `weights`, as `inspect` returns them, to the new file `target` in the stored form.

    The contents are on the disk when this returns; the folder's entry is the caller's to make
    durable. `checksums` holds those of each chunk by the names of the weights' files, which are
    verified against them. Raises what `convert` raises, FileExistsError if there is anything named
    `target`, and then leaves no `target` of this call.
    """
    layout = plan_layout(weights)
    known = checksums or {}
    crc32c, direct = gather_file(
        target,
        prefix=layout.header,
        pieces=layout.pieces,
        sources=[(file.path, known.get(file.name)) for file in weights.files],
        size_bytes=layout.file_bytes,
        threads=threads,
        progress=None if progress is None else lambda done: progress(done, layout.file_bytes),
        cancel=cancel,
    )
    try:
        _check_unchanged(weights)
    except BaseException:
        target.unlink()
        raise
    return WrittenWeights(file_bytes=layout.file_bytes, crc32c=tuple(crc32c), direct=direct)


def stored_bytes(weights: Weights) -> int:
    """Return the size of the file that `write_weights` makes of `weights`, in bytes.

    Raises InvalidCheckpointError if they cannot have the stored form.
    """
    return plan_layout(weights).file_bytes


def _check_unchanged(weights: Weights) -> None:
    """Refuse files that were written or replaced since their headers were read."""
    for file in weights.files:
        try:
            found = stamp_of(file.path.stat())
        except FileNotFoundError:
            found = None
        if found != file.stamp:
            raise FileChangedError(os.fspath(file.path), None, "changed while it was converted")


def _checksums(place: Path, weights: Weights) -> Mapping[str, tuple[int, ...]]:
    """Return what the source's manifest says of all files; empty if it has none."""
    folder = place if place.is_dir() else place.parent
    checksums_of(folder, weights)  # refuses one that does not list the weights
    return read_checksums(folder) or {}


def _support_files(folder: Path) -> tuple[Path, ...]:
    """Return the files beside the weights that belong to the model, without links, by name."""
    found = []
    for path in sorted(folder.iterdir()):
        is_ours = path.name in {INDEX, MANIFEST}
        if not path.name.endswith(SUPPORT_SUFFIXES) or is_ours or not path.is_file():
            continue
        if (size_bytes := path.stat().st_size) > SUPPORT_BYTES_MAX:
            reason = f"has {size_bytes} bytes, beside the weights {SUPPORT_BYTES_MAX} are allowed"
            raise InvalidCheckpointError(os.fspath(path), reason)
        found.append(path)
    if len(found) > SUPPORT_FILES_MAX:
        reason = f"has {len(found)} files beside the weights, the limit is {SUPPORT_FILES_MAX}"
        raise InvalidCheckpointError(os.fspath(folder), reason)
    return tuple(found)


def _copy(
    path: Path, folder: Path, expected: Sequence[int] | None, cancel: CancelToken | None
) -> ManifestFile:
    found = copy_file(Path(os.path.realpath(path)), folder / path.name, cancel=cancel)
    if expected is not None:
        compare(path, found, expected)
    size_bytes = (folder / path.name).stat().st_size
    return ManifestFile(name=path.name, size_bytes=size_bytes, crc32c=tuple(found))


def _source_facts(weights: Weights) -> Mapping[str, object]:
    """Return what the model was made of: nothing that depends on where or when."""
    return {
        "files": [
            {"name": file.name, "size_bytes": file.header.file_bytes} for file in weights.files
        ],
        "tensors": len(weights.tensors),
        "tensor_bytes": weights.tensor_bytes,
        "parameters": weights.parameters,
    }


def _refuse_strangers(target: Path) -> None:
    """Refuse to replace a folder that holds something else than a converted model."""
    names = {path.name for path in target.iterdir()} if target.exists() else set()
    if names and MANIFEST not in names:
        text = f"holds {min(names)} and no {MANIFEST}: it was not converted, and would be lost"
        raise FileExistsError(errno.EEXIST, text, os.fspath(target))
