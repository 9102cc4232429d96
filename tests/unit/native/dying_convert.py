"""Kills a conversion at each of its calls into the file system and looks at what it leaves.

`python -m tests.unit.native.dying_convert FOLDER`, with dying.c preloaded. Prints how many
conversions died before and after the new model was there, by SIGKILL, each in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

import brisk_native

_STEPS_MAX: Final = 400
_DYING: Final = ctypes.CDLL(None)


def main(folder: Path) -> None:
    """Kill the conversion before and after every step of it."""
    old, new, made = folder / "old", folder / "new", folder / "made"
    expected = {}
    for source in (old, new):
        brisk_native.convert(source, made)
        expected[source] = _contents(made)
        shutil.rmtree(made)
    died = {old: 0, new: 0}
    for after in (0, 1):
        for step in range(1, _STEPS_MAX):
            brisk_native.convert(old, made)
            if not _dies(new, made, step, after):
                break
            left = _contents(made)
            found = [source for source in died if expected[source] == left]
            assert found, f"neither the old nor the new model is there after step {step}"
            died[found[0]] += 1
            brisk_native.convert(new, made)
            assert _contents(made) == expected[new], f"another model after step {step}"
            names = sorted(path.name for path in folder.iterdir())
            assert names == ["made", "new", "old"], f"{names} after step {step}"
        else:
            raise AssertionError("it never ends")
    print(died[old], died[new])  # noqa: T201 - the answer


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _dies(source: Path, made: Path, step: int, after: int) -> bool:
    """Convert in a child that is killed at `step`; return whether it got that far."""
    child = os.fork()
    if child == 0:
        _DYING.arm(ctypes.c_long(step), ctypes.c_int(after))
        brisk_native.convert(source, made, threads=2)
        _DYING.arm(ctypes.c_long(-1), ctypes.c_int(0))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
