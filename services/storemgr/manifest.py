"""brisk.json: what the store knows about a model, beside its files.

Files, sizes and checksums are brisk_native's (ADR 0006); the store adds members of its own.
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

import brisk_native

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
    is_object,
    list_in,
    parse_object,
    text_in,
)

MANIFEST: Final = "brisk.json"
VERSION: Final = 2
CHUNK_BYTES: Final = brisk_native.CHUNK_BYTES  # how checksums are cut; part of the revision
MANIFEST_BYTES_MAX: Final = 64 << 20
REVISION_CHARS: Final = 16

_RULES: Final = JsonRules(
    size_bytes_max=MANIFEST_BYTES_MAX, containers_max=10_000, values_max=8_000_000
)
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
    is_stored_form: bool  # of the weights; False: they are as they came

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
        "form": int(manifest.is_stored_form),
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
    try:
        core = brisk_native.parse_manifest_bytes(raw)
    except brisk_native.InvalidCheckpointError as error:
        raise MalformedError(error.reason) from None
    document = parse_object(raw, _RULES)
    items = zip(core.files, list_in(document, "files"), strict=True)
    files = tuple(_file(file, item) for file, item in items)
    names = [file.name for file in files]
    if names != sorted(set(names)):
        raise MalformedError("has files that are not in order")
    manifest = Manifest(
        name=_name(document),
        revision=text_in(document, "revision"),
        imported_at=_time(document),
        facts=_facts(document.get("model")),
        files=files,
        is_stored_form=core.form == 1,
    )
    if manifest.revision != revision_of(files):
        raise MalformedError("has a revision that is not that of its files")
    return manifest


def _name(document: dict[str, object]) -> ModelName:
    try:
        return parse_model_name(text_in(document, "name"))
    except InvalidArgumentError as error:
        raise MalformedError(error.message) from error


def _time(document: dict[str, object]) -> datetime:
    text = text_in(document, "imported_at")
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
        architecture=text_in(value, "architecture"),
        dtype=text_in(value, "dtype"),
        weight_bytes=_integer(value, "weight_bytes"),
        parameters=_integer(value, "parameters"),
        tensors=_integer(value, "tensors"),
        context_tokens_max=_integer(value, "context_tokens_max"),
        kv_bytes_per_token=_integer(value, "kv_bytes_per_token"),
    )


def _file(file: brisk_native.ManifestFile, value: object) -> StoredFile:
    if not is_object(value):
        raise MalformedError(f"has {described(value)} among its files")
    if not is_file_name(file.name):
        raise MalformedError(f"has a file called {shorten(file.name)}")
    kind = text_in(value, "kind")
    if kind not in FileKind.__members__.values():
        raise MalformedError(f"has a file of kind {shorten(kind)}")
    return StoredFile(
        name=file.name,
        kind=FileKind(kind),
        size_bytes=file.size_bytes,
        modified_ns=_integer(value, "modified_ns"),
        checksums=file.crc32c,
    )


def _integer(members: dict[str, object], key: str) -> int:
    value = members.get(key)
    if not is_integer(value) or not 0 <= value <= _INTEGER_MAX:
        given = str(value) if is_integer(value) else described(value)
        raise MalformedError(f"has {given} as {key}")
    return value
