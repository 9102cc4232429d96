"""What a source's model is called when nobody says: one rule for scheduler and store manager."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

SCHEMES: Final = ("s3", "http", "https", "hf", "file")

_WEIGHTS: Final = ".safetensors"
_CACHE_PREFIX: Final = "models--"
_CACHE_SNAPSHOTS: Final = "snapshots"


def scheme_of(source: str) -> str | None:
    """Return the scheme of a source that is a URL, in lower case; None for a path."""
    scheme, separator, _ = source.partition("://")
    return scheme.lower() if separator and scheme.isalnum() else None


def own_name(source: str) -> str:
    """Return the name that `source`, a path or a URL, gives its model; it may be no valid one."""
    scheme = scheme_of(source)
    if scheme is None:
        return _folder_name(PurePosixPath(source))
    rest = source.partition("://")[2]
    if scheme == "hf":
        return rest.partition("@")[0].strip("/")
    if scheme == "file":
        return _folder_name(PurePosixPath(unquote(rest)))
    parts = [unquote(part) for part in rest.split("/") if part]
    if len(parts) > 1 and parts[-1].endswith(_WEIGHTS):
        parts.pop()
    return parts[-1] if parts else ""


def _folder_name(folder: PurePosixPath) -> str:
    """Return the folder's name. In the Hugging Face cache that is a commit; the model is above."""
    repository = folder.parent.parent.name
    if folder.parent.name == _CACHE_SNAPSHOTS and repository.startswith(_CACHE_PREFIX):
        return repository.removeprefix(_CACHE_PREFIX).replace("--", "/", 1)
    return folder.name
