"""No service refuses a variable that another part of Brisk reads: `variables` knows them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.common.config import load_config
from services.scheduler.config import SchedulerConfig

ROOT = Path(__file__).parents[2]
READERS = ("sdk/python", "scripts", "native/src", "native/python", "bench", "examples")
LITERAL = re.compile(r"""["'](BRISK_[A-Z]+(?:_[A-Z]+)*)["']""")


def read_elsewhere() -> set[str]:
    """Return the variables named in programs that are not services."""
    files = (path for folder in READERS for path in (ROOT / folder).rglob("*") if path.is_file())
    texts = (path.read_text(encoding="utf-8", errors="ignore") for path in files)
    return {name for text in texts for name in LITERAL.findall(text)}


def test_what_the_sdk_the_loader_and_our_scripts_read_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = read_elsewhere()
    assert {"BRISK_ENDPOINT", "BRISK_DATA_DIR"} <= names
    for name in names - {"BRISK_DRAIN_S", "BRISK_REDIS_URL", "BRISK_ADVERTISE"}:
        monkeypatch.setenv(name, "1")
    load_config(SchedulerConfig)
