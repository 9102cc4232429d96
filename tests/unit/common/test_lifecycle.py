"""A service that cannot do what its settings ask says so at once, naming the setting."""

from pathlib import Path
from typing import ClassVar

import pytest

from services.common.config import ServiceConfig
from services.common.lifecycle import EXIT_CONFIG, run_service


class OwnConfig(ServiceConfig):
    """A service's settings."""

    service: ClassVar[str] = "own"


async def never(_config: OwnConfig) -> None:
    """Be the service that must not begin."""
    pytest.fail("the service began")


@pytest.mark.parametrize("name", ["nowhere/ready", "file/ready", "folder", ""])
def test_a_ready_file_that_cannot_be_written_is_refused_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    path = str(tmp_path / name)
    monkeypatch.setenv("BRISK_OWN_READY_FILE", path)
    assert run_service(OwnConfig, never) == EXIT_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert "refused to start: BRISK_OWN_READY_FILE: " in line
    assert path in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
