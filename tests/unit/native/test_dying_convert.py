"""A conversion that is killed, wherever it is, leaves the old model or the new one, and no debris.

The calls into the file system are counted by a preloaded library, those of the compiled writer's
threads included; the process dies by SIGKILL before, and in another run after, each of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.native import loaders
from tests.unit.native.test_convert import model

SOURCE = Path(__file__).with_name("dying.c")
ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built on this machine")
@pytest.mark.timeout(240)
def test_a_killed_conversion_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    library = tmp_path / "dying.so"
    options = ("-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl")
    subprocess.run([compiler, *options], check=True)
    folder = tmp_path / "models"
    folder.mkdir()
    model(folder / "old", mebibytes=5)  # larger than the new one
    model(folder / "new", mebibytes=4)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.unit.native.dying_convert", folder],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    kept, replaced = map(int, ran.stdout.split())
    assert kept >= 30
    assert replaced >= 8
