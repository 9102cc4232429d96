"""The services' logs: bounded files, and one JSON line as a readable one."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_FILE_BYTES_MAX: Final = 16 * 1024 * 1024  # then the file is kept once as ".1"


class LogFile:
    """An appended file that never grows beyond twice its limit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, part: bytes) -> None:
        """Append `part` at once; a full file makes room first."""
        if self._file.tell() + len(part) > _FILE_BYTES_MAX:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab")
        self._file.write(part)
        self._file.flush()


def parse_line(line: str) -> dict[str, Any] | None:
    """Return the fields of a JSON log line, or None if it is plain text."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def plain_line(line: str) -> str:
    """Return a log line as people read it, without colour."""
    fields = parse_line(line)
    if fields is None:
        return line.rstrip()
    level = str(fields.pop("level", "info"))
    message = str(fields.pop("message", ""))
    for name in ("timestamp", "service", "logger"):
        fields.pop(name, None)
    trouble = str(fields.pop("exception", ""))
    rest = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"{level}: {message} {rest}".rstrip() + (f"\n{trouble}" if trouble else "")
