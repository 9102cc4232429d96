"""The promises of devices on the stand-in driver, and those that only it can put to the test."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from brisk_native import (
    CHUNK_BYTES,
    DeviceBuffer,
    DeviceError,
    PinnedMemory,
    copy_to_devices,
    read_to_devices,
)

from tests.fakes import cuda_driver
from tests.gpu.promises import SETTINGS, DevicePromises, check, content, split
from tests.unit.native import loaders

__all__ = ["content"]


@pytest.mark.usefixtures("standin")
class TestOnStandin(DevicePromises):
    """All of them."""


def run(code: str, *arguments: str | Path, **environment: str) -> str:
    """Run `code` in a process of its own; return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_a_failed_copy_is_told_in_the_drivers_words_and_leaves_nothing(
    standin: cuda_driver.Driver, tmp_path: Path, content: bytes
) -> None:
    pieces, allocations, _ = split()
    loads: list[Callable[[], object]] = [
        lambda: read_to_devices([tmp_path / "f"], pieces, allocations, settings=SETTINGS),
        lambda: copy_to_devices([content], pieces, allocations),
    ]
    for load in loads:
        standin.fail("copy", calls_before=2, code=700)
        with pytest.raises(DeviceError, match="an illegal memory access was encountered") as caught:
            load()
        assert (caught.value.name, caught.value.code) == ("CUDA_ERROR_ILLEGAL_ADDRESS", 700)
        del caught
        gc.collect()
        assert standin.is_clean()
        standin.reset()


def test_without_pinning_the_bytes_come_all_the_same_and_the_result_says_so(
    standin: cuda_driver.Driver, tmp_path: Path, content: bytes
) -> None:
    pieces, allocations, _ = split()
    standin.fail("cuMemHostRegister_v2", code=800)
    buffers, result = read_to_devices([tmp_path / "f"], pieces, allocations, settings=SETTINGS)
    check(buffers, content)
    assert not result.pinned
    assert standin.audit().pageable_copies > 0
    standin.fail("cuMemHostRegister_v2", code=800)
    with pytest.raises(DeviceError, match="CUDA_ERROR_800"):
        PinnedMemory(content)


def test_a_buffer_goes_back_with_the_last_that_uses_it(standin: cuda_driver.Driver) -> None:
    buffer = DeviceBuffer(1, 100)
    capsule = buffer.__dlpack__()
    del buffer
    gc.collect()
    assert standin.audit().allocations == 1
    del capsule
    gc.collect()
    assert standin.is_clean()


def test_a_driver_that_fails_at_the_end_does_not_end_the_process(
    standin: cuda_driver.Driver,
) -> None:
    code = """
import ctypes, sys, brisk_native
held = brisk_native.DeviceBuffer(0, 100)
driver = ctypes.CDLL(sys.argv[1])
driver.standin_fail(b"cuMemFree_v2", ctypes.c_uint64(0), 4)
del held
late = brisk_native.DeviceBuffer(1, 100)  # goes back while the process ends
driver.standin_fail(b"cuMemFree_v2", ctypes.c_uint64(0), 4)
print("alive")
"""
    path = str(standin.path)
    assert run(code, path, BRISK_CUDA_DRIVER=path) == "alive\n"


def test_a_model_of_any_size_passes_through_the_memory_it_was_given(
    standin: cuda_driver.Driver, tmp_path: Path
) -> None:
    size, host = 100 * CHUNK_BYTES, 64 * 1024 * 1024
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    code = """
import ctypes, re, sys, brisk_native
from pathlib import Path
path, size, host = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
driver = ctypes.CDLL(sys.argv[1])
brisk_native.devices()
driver.standin_sink(1)  # the devices' memory is this process's: let it not count
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
_, result = brisk_native.read_to_devices(
    [path], [(0, 0, size, 0, 0)], [(0, size)], host_bytes=host, settings=brisk_native.ReadSettings()
)
assert result.bytes_copied == size and result.host_bytes == host, result
print(peak() - before)
"""
    path = str(standin.path)
    grown = int(run(code, path, tmp_path / "large", str(size), str(host), BRISK_CUDA_DRIVER=path))
    assert grown < host + 16 * 1024 * 1024


def test_without_a_driver_there_are_no_devices_and_a_wanted_one_is_refused_plainly() -> None:
    code = """
import brisk_native
print(brisk_native.devices())
try:
    brisk_native.DeviceBuffer(0, 1)
except brisk_native.DeviceError as error:
    print(error)
"""
    printed = run(code, BRISK_CUDA_DRIVER="/nowhere/libcuda.so.1")
    why = "/nowhere/libcuda.so.1: cannot open shared object file: No such file or directory"
    if not loaders.is_built():
        why = "devices need the compiled loader, which was not built"
        assert printed == f"()\nimport: {why}\n"
    else:
        hint = "BRISK_CUDA_DRIVER may name the driver's library"
        assert printed == f"()\ndlopen: {why} ({hint})\n"


def test_in_a_forked_process_the_driver_is_refused_and_nothing_crashes(
    standin: cuda_driver.Driver,
) -> None:
    code = """
import os, brisk_native
held = brisk_native.DeviceBuffer(0, 100)
child = os.fork()
if child == 0:
    try:
        brisk_native.DeviceBuffer(0, 1)
    except brisk_native.DeviceError as error:
        refused = "before this process was forked" in str(error)
    del held  # the parent's: must touch nothing here
    os._exit(0 if refused else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert held.read(0, 100) is not None
print("parent lives")
"""
    assert run(code, BRISK_CUDA_DRIVER=str(standin.path)) == "parent lives\n"


def test_the_python_implementation_has_no_devices_and_says_why(content: bytes) -> None:
    from brisk_native import _no_devices  # noqa: PLC0415

    assert _no_devices.devices() == ()
    calls: list[Callable[[], object]] = [
        lambda: _no_devices.device_memory(0),
        lambda: _no_devices.DeviceBuffer(0, 1),
        lambda: _no_devices.PinnedMemory(content),
        lambda: _no_devices.copy_to_devices([content], [], []),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match="the compiled loader, which was not built"):
            call()
