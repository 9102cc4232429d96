"""A crash at any step of an operation leaves a store that the next start makes whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.storemgr.crash_points import OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_step_leaves_all_or_nothing(operation: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.storemgr.crash_points", tmp_path, operation],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8  # that many crashes did happen
