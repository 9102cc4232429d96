"""The promise: a process's first load does not wait for its own code behind its own reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import brisk_native
import pytest

CODE_IN_MEMORY = """
import sys
from pathlib import Path
import brisk_native
from brisk_native import _native

def missing_bytes():
    missing, own = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ")[0]:
            own = line.endswith(_native.__file__)
        elif own and line.startswith(("Size:", "Rss:")):
            missing += int(line.split()[1]) * (1 if line.startswith("Size:") else -1)
    return missing

before = missing_bytes()
brisk_native.read_files([sys.argv[1]])
print(before > 0, missing_bytes())
"""


@pytest.mark.skipif(brisk_native.IMPLEMENTATION != "native", reason="has no code of its own")
def test_all_of_the_modules_code_is_in_memory_when_the_first_read_begins(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    command = [sys.executable, "-c", CODE_IN_MEMORY, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["True", "0"]
