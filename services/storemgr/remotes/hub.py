"""A repository of the Hugging Face hub, told by huggingface_hub: endpoint, token, cache, offline.

Files that its cache has are taken from there; the others come by ranges of the commit's own URLs,
whose content never changes. The cache is read, never written: the store keeps the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils._headers import build_hf_headers

from services.common.errors import NotFoundError, Reason
from services.storemgr.file_names import is_file_name
from services.storemgr.folder import ENTRIES_MAX, INDEX, SUPPORT_NAMES, SUPPORT_SUFFIXES
from services.storemgr.refusal import MalformedError, invalid_model
from services.storemgr.remotes.listing import Listing, RemoteFile
from services.storemgr.remotes.locations import HubLocation
from services.storemgr.remotes.ranges import RangeReader, Target
from services.storemgr.remotes.refusals import not_found, unusable
from services.storemgr.strict_json import JsonRules, is_integer, is_list, is_object, parse_object

_INFO_BYTES_MAX: Final = 32 << 20
_INFO_VALUES_MAX: Final = 500_000
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_MAIN: Final = "main"
_ADVICE: Final = "accept the model's licence, and give the store manager a token (HF_TOKEN)"
_PATTERNS: Final = [
    *SUPPORT_NAMES,
    *(f"*{suffix}" for suffix in SUPPORT_SUFFIXES),
    INDEX,
    "*.safetensors",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A state of a repository."""

    sha: str
    files: Mapping[str, int]  # name -> size in bytes, of those at the top


class HubRemote:
    """Implements listing.Remote for what the cache does not have."""

    def __init__(self, location: HubLocation, reader: RangeReader) -> None:
        self._repository = location.repository
        self._revision = location.revision or _MAIN
        self._reader = reader
        self._headers = build_hf_headers(library_name="brisk")
        self._sha = ""

    def list(self) -> Listing:
        """Return what is there; see listing.Remote."""
        place = f"{quote(self._repository)}/revision/{quote(self._revision, safe='')}"
        raw = self._reader.read_small(
            f"repository {self._repository} at {self._revision}",
            f"{constants.ENDPOINT}/api/models/{place}?blobs=true",
            self._headers,
            _ADVICE,
            bytes_max=_INFO_BYTES_MAX,
        )
        commit = parse_commit(raw)
        self._sha = commit.sha
        files = {
            name: RemoteFile(name=name, size_bytes=size, version=commit.sha)
            for name, size in commit.files.items()
        }
        return Listing(files=files)

    def target(self, file: RemoteFile) -> Target:
        """Return where to read a file; see listing.Remote."""
        return Target(
            what=file.name,
            url=huggingface_hub.hf_hub_url(self._repository, file.name, revision=self._sha),
            headers=self._headers,
            size_bytes=file.size_bytes,
            etag=None,  # the commit says which version it is
            advice=_ADVICE,
        )


def hub_endpoint() -> str:
    """Return the hub's URL, which HF_ENDPOINT may set."""
    return constants.ENDPOINT


def cached_folder(location: HubLocation) -> Path | None:
    """Return the repository's folder in huggingface_hub's cache when that is where it has to be.

    That is so offline (HF_HUB_OFFLINE). Raises NotFoundError (SOURCE_NOT_FOUND) if it is not there.
    """
    if not constants.is_offline_mode():
        return None
    try:
        folder = huggingface_hub.snapshot_download(
            location.repository,
            revision=location.revision,
            allow_patterns=_PATTERNS,
            local_files_only=True,
        )
    except LocalEntryNotFoundError as error:
        raise NotFoundError(
            "huggingface_hub is offline (HF_HUB_OFFLINE) and its cache lacks this repository",
            reason=Reason.SOURCE_NOT_FOUND,
        ) from error
    return Path(folder)


def cached_file(location: HubLocation, file: RemoteFile) -> Path | None:
    """Return where huggingface_hub's cache has a file of a listing, or None."""
    found = huggingface_hub.try_to_load_from_cache(
        location.repository, file.name, revision=file.version
    )
    return Path(found) if isinstance(found, str) else None


def parse_commit(raw: bytes) -> Commit:
    """Return what the hub says of a repository. Raises InvalidArgumentError."""
    rules = JsonRules(
        size_bytes_max=_INFO_BYTES_MAX,
        containers_max=_INFO_VALUES_MAX,
        values_max=_INFO_VALUES_MAX,
    )
    try:
        document = parse_object(raw, rules)
    except MalformedError as error:
        raise unusable(f"the hub's answer {error}") from error
    sha, siblings = document.get("sha"), document.get("siblings")
    if not isinstance(sha, str) or not _COMMIT.fullmatch(sha) or not is_list(siblings):
        raise unusable("the hub's answer names no commit or no files")
    if len(siblings) > ENTRIES_MAX:
        raise invalid_model("", f"has more than {ENTRIES_MAX} entries")
    files: dict[str, int] = {}
    for entry in siblings:
        name = entry.get("rfilename") if is_object(entry) else None
        size = entry.get("size") if is_object(entry) else None
        if isinstance(name, str) and is_file_name(name) and "/" not in name:
            if not is_integer(size) or not 0 <= size < 2**62:
                raise unusable("the hub's answer does not tell the files' sizes")
            files[name] = size
    if not files:
        raise not_found("files")
    return Commit(sha=sha, files=files)
