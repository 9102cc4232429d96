"""How far an import has come, as all who wait for it hear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """How far an import has come."""

    bytes_done: int
    bytes_total: int
    file: str  # being worked on; empty before the first and after the last
    bytes_per_s: int = 0  # at present; 0 if unknown
    origin: str = ""  # where the bytes come from: "s3", "http", "hub", "peer"; empty for this host


Report = Callable[[ImportProgress], None]
