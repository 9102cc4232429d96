"""What an Import asks for: a folder of this host and the name that its model gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.names import ModelName, parse_model_name, shorten
from services.storemgr.refusal import invalid_source

PATH_BYTES_MAX: Final = 4096
_CACHE_PREFIX: Final = "models--"
_CACHE_SNAPSHOTS: Final = "snapshots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder to import under a name."""

    folder: Path  # absolute
    name: ModelName
    as_is: bool  # the weights keep their files; else they are written in the stored form


def parse_source(source_path: str, name: str, *, as_is: bool = False) -> Source:
    """Return the source that a request names; an empty `name` stands for the folder's own.

    Raises InvalidArgumentError (INVALID_SOURCE, INVALID_NAME).
    """
    if not source_path:
        raise invalid_source("source_path must be set")
    if "\0" in source_path:
        raise invalid_source(f"source_path must not contain NUL: {shorten(source_path)}")
    if len(source_path.encode()) > PATH_BYTES_MAX:
        raise invalid_source(
            f"source_path must have at most {PATH_BYTES_MAX} bytes. "
            f"Given: {len(source_path.encode())}"
        )
    folder = Path(source_path)
    if not folder.is_absolute():
        raise invalid_source(f"source_path must be absolute: {shorten(source_path)}")
    return Source(folder=folder, name=parse_model_name(name or _own_name(folder)), as_is=as_is)


def _own_name(folder: Path) -> str:
    """Return the folder's name. In the Hugging Face cache that is a commit; the model is above."""
    repository = folder.parent.parent.name
    if folder.parent.name == _CACHE_SNAPSHOTS and repository.startswith(_CACHE_PREFIX):
        return repository.removeprefix(_CACHE_PREFIX).replace("--", "/", 1)
    return folder.name
