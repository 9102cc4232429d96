"""brisk.json: what the store knows about a model, beside its files.

Written last into a folder that is not yet published, so that a folder with a manifest is whole.
The revision is a digest of the manifest's content facts: file names, sizes and chunk checksums.
Times and places are not part of it, so equal content has equal revisions wherever it came from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.common.errors import InvalidArgumentError
from services.common.model import ModelInfo, ModelRef
from services.common.names import ModelName, parse_model_name, shorten
from services.storemgr.facts import ModelFacts
from services.storemgr.file_names import is_file_name
from services.storemgr.folder import FileKind
from services.storemgr.refusal import MalformedError
from services.storemgr.strict_json import (
    JsonRules,
    described,
    is_integer,
    is_list,
    is_object,
    parse_object,
)

MANIFEST: Final = "brisk.json"
VERSION: Final = 1
CHUNK_BYTES: Final = 4 << 20  # how checksums are cut; part of the revision
MANIFEST_BYTES_MAX: Final = 64 << 20
REVISION_CHARS: Final = 16

_RULES: Final = JsonRules(
    size_bytes_max=MANIFEST_BYTES_MAX, containers_max=10_000, values_max=8_000_000
)
_CHECKSUM: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)
_REVISION: Final = re.compile(rf"[0-9a-f]{{{REVISION_CHARS}}}", re.ASCII)
_INTEGER_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a stored model."""

    name: str
    kind: FileKind
    size_bytes: int
    modified_ns: int  # as it was when verified: a hard-linked file can still be written elsewhere
    checksums: tuple[int, ...]  # CRC-32C of each chunk of CHUNK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A stored model."""

    name: ModelName
    revision: str
    imported_at: datetime  # UTC; the latest import of this revision
    facts: ModelFacts
    files: tuple[StoredFile, ...]  # sorted by name

    @property
    def ref(self) -> ModelRef:
        """Return the model's name and revision."""
        return ModelRef(name=self.name, revision=self.revision)

    @property
    def info(self) -> ModelInfo:
        """Return what others need to know about the model."""
        facts = self.facts
        return ModelInfo(
            ref=self.ref,
            architecture=facts.architecture,
            dtype=facts.dtype,
            weight_bytes=facts.weight_bytes,
            parameters=facts.parameters,
            context_tokens_max=facts.context_tokens_max,
            kv_bytes_per_token=facts.kv_bytes_per_token,
        )

    @property
    def file_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def weights(self) -> tuple[StoredFile, ...]:
        """Return the weight files in order."""
        return tuple(file for file in self.files if file.kind is FileKind.WEIGHTS)


def revision_of(files: Iterable[StoredFile]) -> str:
    """Return the revision that these files make up."""
    digest = hashlib.sha256(f"brisk revision 1, chunks of {CHUNK_BYTES}\n".encode())
    for file in sorted(files, key=lambda each: each.name):
        checksums = " ".join(f"{checksum:08x}" for checksum in file.checksums)
        digest.update(f"{file.name}\0{file.size_bytes}\0{checksums}\n".encode())
    return digest.hexdigest()[:REVISION_CHARS]


def is_revision(text: str) -> bool:
    """Return whether `text` has the form of a revision."""
    return _REVISION.fullmatch(text) is not None


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the text of brisk.json."""
    facts = manifest.facts
    document = {
        "version": VERSION,
        "name": manifest.name,
        "revision": manifest.revision,
        "imported_at": manifest.imported_at.isoformat(),
        "chunk_bytes": CHUNK_BYTES,
        "model": {
            "architecture": facts.architecture,
            "dtype": facts.dtype,
            "weight_bytes": facts.weight_bytes,
            "parameters": facts.parameters,
            "tensors": facts.tensors,
            "context_tokens_max": facts.context_tokens_max,
            "kv_bytes_per_token": facts.kv_bytes_per_token,
        },
        "files": [
            {
                "name": file.name,
                "kind": file.kind.value,
                "size_bytes": file.size_bytes,
                "modified_ns": file.modified_ns,
                "crc32c": [f"{checksum:08x}" for checksum in file.checksums],
            }
            for file in manifest.files
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def decode_manifest(raw: bytes) -> Manifest:
    """Return the manifest that `raw` holds. Raises MalformedError, also for unknown versions."""
    document = parse_object(raw, _RULES)
    version = document.get("version")
    if version != VERSION or not is_integer(version):
        given = str(version) if is_integer(version) else described(version)
        raise MalformedError(f"has version {given}, this store manager knows {VERSION}")
    if _integer(document, "chunk_bytes") != CHUNK_BYTES:
        raise MalformedError(f"has chunks of other than {CHUNK_BYTES} bytes")
    files = tuple(_file(item) for item in _list(document, "files"))
    names = [file.name for file in files]
    if names != sorted(set(names)):
        raise MalformedError("has files that are not in order")
    manifest = Manifest(
        name=_name(document),
        revision=_text(document, "revision"),
        imported_at=_time(document),
        facts=_facts(document.get("model")),
        files=files,
    )
    if manifest.revision != revision_of(files):
        raise MalformedError("has a revision that is not that of its files")
    return manifest


def _name(document: dict[str, object]) -> ModelName:
    try:
        return parse_model_name(_text(document, "name"))
    except InvalidArgumentError as error:
        raise MalformedError(error.message) from error


def _time(document: dict[str, object]) -> datetime:
    text = _text(document, "imported_at")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise MalformedError(f"has no time in imported_at: {shorten(text)}") from None
    if moment.tzinfo is None:
        raise MalformedError("has a time without zone in imported_at")
    return moment


def _facts(value: object) -> ModelFacts:
    if not is_object(value):
        raise MalformedError(f"has {described(value)} as model")
    return ModelFacts(
        architecture=_text(value, "architecture"),
        dtype=_text(value, "dtype"),
        weight_bytes=_integer(value, "weight_bytes"),
        parameters=_integer(value, "parameters"),
        tensors=_integer(value, "tensors"),
        context_tokens_max=_integer(value, "context_tokens_max"),
        kv_bytes_per_token=_integer(value, "kv_bytes_per_token"),
    )


def _file(value: object) -> StoredFile:
    if not is_object(value):
        raise MalformedError(f"has {described(value)} among its files")
    name, kind = _text(value, "name"), _text(value, "kind")
    if not is_file_name(name):
        raise MalformedError(f"has a file called {shorten(name)}")
    if kind not in FileKind.__members__.values():
        raise MalformedError(f"has a file of kind {shorten(kind)}")
    size = _integer(value, "size_bytes")
    checksums = tuple(_checksum(item) for item in _list(value, "crc32c"))
    if len(checksums) != -(-size // CHUNK_BYTES):
        raise MalformedError(f"has {len(checksums)} checksums for {shorten(name)} of {size} bytes")
    return StoredFile(
        name=name,
        kind=FileKind(kind),
        size_bytes=size,
        modified_ns=_integer(value, "modified_ns"),
        checksums=checksums,
    )


def _checksum(value: object) -> int:
    if not isinstance(value, str) or not _CHECKSUM.fullmatch(value):
        raise MalformedError("has a checksum that is not 8 hexadecimal digits")
    return int(value, 16)


def _text(members: dict[str, object], key: str) -> str:
    value = members.get(key)
    if not isinstance(value, str):
        raise MalformedError(f"has {described(value)} as {key}")
    return value


def _integer(members: dict[str, object], key: str) -> int:
    value = members.get(key)
    if not is_integer(value) or not 0 <= value <= _INTEGER_MAX:
        given = str(value) if is_integer(value) else described(value)
        raise MalformedError(f"has {given} as {key}")
    return value


def _list(members: dict[str, object], key: str) -> list[object]:
    value = members.get(key)
    if not is_list(value):
        raise MalformedError(f"has {described(value)} as {key}")
    return value
