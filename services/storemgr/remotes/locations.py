"""Where a remote model is, parsed from the URL that a caller gave.

A URL becomes a path, a log line and part of brisk.json, so it must not carry a secret, and nothing
in it may lead out of the folder that it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, quote, unquote, urlsplit

from services.common.model import ModelRef
from services.common.names import shorten
from services.common.source_names import SCHEMES, scheme_of
from services.storemgr.file_names import is_file_name
from services.storemgr.refusal import invalid_source

_URL: Final = re.compile(r"[!-~]+", re.ASCII)
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)
_REPOSITORY: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII
)
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}", re.ASCII)
_WEIGHTS: Final = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """A folder in a bucket."""

    bucket: str
    prefix: str  # empty, or ends with "/"
    weights: str | None  # the one file to take as weights, where the URL named it

    @property
    def text(self) -> str:
        """Return the URL."""
        return f"s3://{self.bucket}/{self.prefix}{self.weights or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLocation:
    """A folder on a web server."""

    scheme: str  # "http" or "https"
    host: str
    port: int
    path: str  # begins and ends with "/", percent-encoded
    weights: str | None

    @property
    def text(self) -> str:
        """Return the URL."""
        return f"{self.folder}{quote(self.weights or '')}"

    @property
    def folder(self) -> str:
        """Return the URL of the folder, which ends with "/"."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        port = "" if self.port == usual else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLocation:
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str | None  # None: the hub's main branch

    @property
    def text(self) -> str:
        """Return the URL."""
        return f"hf://{self.repository}{'' if self.revision is None else '@' + self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersLocation:
    """A model at its revision on the cluster's other nodes."""

    ref: ModelRef

    @property
    def text(self) -> str:
        """Return what names it; no caller can ask for it in this way."""
        return f"peers:{self.ref.name}@{self.ref.revision}"


Location: TypeAlias = S3Location | HttpLocation | HubLocation | PeersLocation


def parse_place(source: str) -> Path | Location:
    """Return the folder or the remote place that `source` names.

    Raises InvalidArgumentError (INVALID_SOURCE).
    """
    scheme = scheme_of(source)
    if scheme is None:
        return _folder(source)
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise invalid_source(f"source_path is of no kind that we know ({known}): {shorten(source)}")
    if not _URL.fullmatch(source):
        raise invalid_source(f"source_path must be a plain, percent-encoded URL: {shorten(source)}")
    try:
        parts = urlsplit(source)
        port = parts.port
    except ValueError:
        raise invalid_source(f"source_path is no URL: {shorten(source)}") from None
    if "@" in parts.netloc and scheme != "hf":
        raise invalid_source("source_path must not carry a user or password")
    if parts.query or parts.fragment or "?" in source or "#" in source:
        raise invalid_source("source_path must not have a query or fragment, which may be secret")
    match scheme:
        case "file":
            return _file_url(parts)
        case "hf":
            return _hub(source.partition("://")[2])
        case "s3":
            return _s3(parts)
        case _:
            return _http(scheme, parts, port)


def _folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_absolute():
        raise invalid_source(f"source_path must be absolute: {shorten(text)}")
    return folder


def _file_url(parts: SplitResult) -> Path:
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or "\0" in path:
        raise invalid_source("a file:// source_path must name a folder of this host: file:///…")
    return _folder(path)


def _hub(rest: str) -> HubLocation:
    repository, at, revision = rest.strip("/").partition("@")
    sound = _REPOSITORY.fullmatch(repository) and ".." not in repository
    if not sound or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise invalid_source(
            f"source_path must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION: {shorten(rest)}"
        )
    return HubLocation(repository=repository, revision=revision if at else None)


def _s3(parts: SplitResult) -> S3Location:
    if not _BUCKET.fullmatch(parts.netloc) or ".." in parts.netloc:
        raise invalid_source(f"source_path has no sound bucket name: {shorten(parts.netloc)}")
    folders, weights = _segments(parts.path)
    return S3Location(
        bucket=parts.netloc,
        prefix="".join(f"{folder}/" for folder in folders),
        weights=weights,
    )


def _http(scheme: str, parts: SplitResult, port: int | None) -> HttpLocation:
    host = (parts.hostname or "").rstrip(".")
    if not _HOST.fullmatch(host) or port == 0:
        raise invalid_source(f"source_path has no sound host: {shorten(parts.netloc)}")
    folders, weights = _segments(parts.path)
    return HttpLocation(
        scheme=scheme,
        host=host,
        port=port or {"http": 80, "https": 443}[scheme],
        path="/" + "".join(f"{quote(folder)}/" for folder in folders),
        weights=weights,
    )


def _segments(path: str) -> tuple[tuple[str, ...], str | None]:
    """Return the folders of a URL's path and the weight file at its end, if it names one."""
    parts = [unquote(part) for part in path.split("/") if part]
    for part in parts:
        if part in (".", "..") or "/" in part or not part.isprintable():
            raise invalid_source(f"source_path must not contain {shorten(part)}")
    if parts and parts[-1].endswith(_WEIGHTS):
        if not is_file_name(parts[-1]):
            raise invalid_source(f"source_path names no sound file: {shorten(parts[-1])}")
        return tuple(parts[:-1]), parts[-1]
    return tuple(parts), None
