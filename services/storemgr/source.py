"""What an Import asks for: a folder of this host or a place elsewhere, and its model's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.names import ModelName, parse_model_name, shorten
from services.common.source_names import own_name
from services.storemgr.refusal import invalid_source
from services.storemgr.remotes.locations import Location, parse_place

PATH_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A place to import from, under a name."""

    place: Path | Location  # a path is absolute
    name: ModelName
    as_is: bool  # the weights keep their files; else they are written in the stored form


def parse_source(source_path: str, name: str, *, as_is: bool = False) -> Source:
    """Return the source that a request names; an empty `name` stands for the source's own.

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
    place = parse_place(source_path)
    return Source(place=place, name=parse_model_name(name or own_name(source_path)), as_is=as_is)
