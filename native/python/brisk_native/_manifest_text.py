"""The manifest in plain Python: the mirror of src/manifest.cpp, fault by fault."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Final, NoReturn

from brisk_native._scanner import JsonFault, JsonScanner
from brisk_native._types import (
    CHUNK_BYTES,
    FILE_NAME_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    MANIFEST_FILES_MAX,
    InvalidCheckpointError,
    Manifest,
    ManifestFile,
)

_INTEGER_MAX: Final = 2**63 - 1
_VERSION_MAX: Final = 2
_FORM_MAX: Final = 1
_SPECIAL: Final = frozenset("/\\\0")
_CHECKSUM: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)
_CORE: Final = frozenset({"version", "chunk_bytes", "files"})
_FILE_CORE: Final = frozenset({"name", "size_bytes", "crc32c"})


def check_bytes(path: str, size_bytes: int) -> None:
    """Raise InvalidCheckpointError if no manifest may have that many bytes."""
    if size_bytes > MANIFEST_BYTES_MAX:
        reason = f"has {size_bytes} bytes, the limit is {MANIFEST_BYTES_MAX}"
        raise InvalidCheckpointError(path, reason)


def parse_text(path: str, text: bytes) -> Manifest:
    """Return the manifest that `text` holds. Raises InvalidCheckpointError."""
    check_bytes(path, len(text))
    return _Parser(path=path, scanner=JsonScanner(text)).parse()


@dataclass(slots=True, kw_only=True)
class _Parser:
    """Fills the parts of a manifest from its text."""

    path: str
    scanner: JsonScanner
    numbers: dict[str, int] = field(default_factory=dict)
    files: list[ManifestFile] = field(default_factory=list)

    def parse(self) -> Manifest:
        seen: set[str] = set()
        try:
            for name in self.scanner.members():
                seen.add(name)
                self._member(name)
            self.scanner.expect_end()
        except JsonFault as fault:
            self._refuse(str(fault))
        if not seen >= _CORE:
            self._refuse("lacks version, chunk_bytes or files")
        version, form = self.numbers["version"], self.numbers.get("form", 0)
        if not 1 <= version <= _VERSION_MAX:
            self._refuse(f"has version {version}, known are 1 to {_VERSION_MAX}")
        if form > _FORM_MAX:
            self._refuse(f"has form {form}, known are 0 to {_FORM_MAX}")
        if (chunk_bytes := self.numbers["chunk_bytes"]) != CHUNK_BYTES:
            self._refuse(f"has chunks of {chunk_bytes} bytes, not {CHUNK_BYTES}")
        names = sorted(file.name for file in self.files)
        for one, following in itertools.pairwise(names):
            if one == following:
                self._refuse(f"lists {one} twice")
        return Manifest(version=version, form=form, files=tuple(self.files))

    def _member(self, name: str) -> None:
        if name in {"version", "chunk_bytes", "form"}:
            self.numbers[name] = self.scanner.integer(_INTEGER_MAX)
        elif name == "files":
            self._files()
        else:
            self.scanner.skip(1)

    def _files(self) -> None:
        self.scanner.expect(b"[")
        if self.scanner.take(b"]"):
            return
        more = True
        while more:
            if len(self.files) == MANIFEST_FILES_MAX:
                self._refuse(f"has more than {MANIFEST_FILES_MAX} files")
            self._file()
            more = self.scanner.take(b",")
        self.scanner.expect(b"]")

    def _file(self) -> None:
        seen: set[str] = set()
        file_name, size_bytes = "", 0
        checksums: tuple[int, ...] = ()
        for name in self.scanner.members():
            seen.add(name)
            if name == "name":
                file_name = self._name()
            elif name == "size_bytes":
                size_bytes = self.scanner.integer(_INTEGER_MAX)
            elif name == "crc32c":
                checksums = self._checksums()
            else:
                self.scanner.skip(3)
        if not seen >= _FILE_CORE:
            self._refuse("has a file without name, size_bytes or crc32c")
        if len(checksums) != -(-size_bytes // CHUNK_BYTES):
            self._refuse(f"has {len(checksums)} checksums for {file_name}, {size_bytes} bytes")
        self.files.append(ManifestFile(name=file_name, size_bytes=size_bytes, crc32c=checksums))

    def _name(self) -> str:
        name = self.scanner.string()
        is_short = 1 <= len(name.encode()) <= FILE_NAME_BYTES_MAX
        if not is_short or name in {".", ".."} or _SPECIAL & set(name):
            self._refuse("has a file whose name is none of a file in its folder")
        return name

    def _checksums(self) -> tuple[int, ...]:
        self.scanner.expect(b"[")
        if self.scanner.take(b"]"):
            return ()
        checksums: list[int] = []
        more = True
        while more:
            text = self.scanner.string()
            if not _CHECKSUM.fullmatch(text):
                self._refuse("has a checksum that is not 8 hexadecimal digits")
            checksums.append(int(text, 16))
            more = self.scanner.take(b",")
        self.scanner.expect(b"]")
        return tuple(checksums)

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidCheckpointError(self.path, reason)
