"""The store's folder must be told, and every other setting has bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.config import load_config
from services.common.errors import ConfigError
from services.storemgr.config import StoremgrConfig


def test_the_data_folder_is_all_that_must_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISK_STOREMGR_DATA_DIR", "/srv/brisk")
    config = load_config(StoremgrConfig)
    assert config.data_dir == Path("/srv/brisk")
    assert config.hard_links


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DATA_DIR", "relative/folder"),
        ("DATA_DIR", ""),
        ("HARD_LINKS", "perhaps"),
        ("IMPORT_THREADS", "0"),
        ("IMPORTS_MAX", "1e9"),
        ("FILE_THREADS", "-1"),
        ("LEASES_MAX", "100000"),
        ("DATADIR", "/srv/brisk"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    monkeypatch.setenv("BRISK_STOREMGR_DATA_DIR", "/srv/brisk")
    monkeypatch.setenv(f"BRISK_STOREMGR_{setting}", value)
    with pytest.raises(ConfigError) as refusal:
        load_config(StoremgrConfig)
    assert refusal.value.setting == f"BRISK_STOREMGR_{setting}"


def test_a_missing_data_folder_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRISK_STOREMGR_DATA_DIR", raising=False)
    with pytest.raises(ConfigError) as refusal:
        load_config(StoremgrConfig)
    assert refusal.value.setting == "BRISK_STOREMGR_DATA_DIR"
