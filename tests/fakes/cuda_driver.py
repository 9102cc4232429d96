"""The stand-in for NVIDIA's driver library: built once, steered and audited by tests."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "native" / "build" / "standin"


class Audit(ctypes.Structure):
    """What is there now, and what was done since the last reset; see standin_driver.hpp."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "contexts",
            "allocations",
            "streams",
            "events",
            "registrations",
            "allocated_bytes",
            "registered_bytes",
            "registered_bytes_max",
            "copies",
            "copied_bytes",
            "pageable_copies",
            "running_copies_max",
            "devices_copying_max",
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The library as the tests of this process steer it."""

    path: Path
    library: ctypes.CDLL

    def audit(self) -> Audit:
        """Return what is there and was done."""
        found = Audit()
        self.library.standin_audit(ctypes.byref(found))
        return found

    def is_clean(self) -> bool:
        """Whether everything that was ever taken was given back."""
        now = self.audit()
        return not any((now.contexts, now.allocations, now.streams, now.events, now.registrations))

    def fail(self, call: str, *, calls_before: int = 0, code: int) -> None:
        """Let a call fail once; "copy" is a copy that fails while it runs."""
        self.library.standin_fail(call.encode(), ctypes.c_uint64(calls_before), code)

    def reset(self) -> None:
        """Forget faults, holds and counts."""
        self.library.standin_reset()


@functools.cache
def build() -> Path | None:
    """Return the library, built if it has to be; None where there is no compiler."""
    beside = Path(sys.executable).with_name("cmake")
    cmake = str(beside) if beside.exists() else shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        return None
    source = ROOT / "tests" / "standin_driver"
    subprocess.run([cmake, "-S", source, "-B", BUILD], check=True, capture_output=True)
    subprocess.run([cmake, "--build", BUILD], check=True, capture_output=True)
    return BUILD / "libstandin_driver.so"


@functools.cache
def load() -> Driver | None:
    """Return the library, steerable; None where there is no compiler."""
    path = build()
    return None if path is None else Driver(path=path, library=ctypes.CDLL(str(path)))
