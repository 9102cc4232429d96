"""Promise: the GPU's figures are true, and without a GPU there are none and the reason is plain."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.device import Figures, measure, report
from bench.processes import ROOT
from tests.fakes import cuda_driver
from tests.unit.native import loaders


def test_without_a_gpu_it_says_why_and_measures_nothing() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench.device", "--quick"],
        cwd=ROOT,
        env={"BRISK_CUDA_DRIVER": "/nowhere/libcuda.so.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("device: could not measure: no CUDA device 0 here: ")
    if loaders.is_built():
        assert "/nowhere/libcuda.so.1: cannot open shared object file" in ran.stderr


def test_every_run_brings_the_bytes_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = cuda_driver.load()
    if driver is None or not loaders.is_built():
        pytest.skip("there is no compiler here")
    monkeypatch.setenv("BRISK_CUDA_DRIVER", str(driver.path))
    monkeypatch.setattr("bench.device.drop_page_cache", bool)
    monkeypatch.setattr("bench.device.is_fio_there", lambda: False)
    figures = measure(tmp_path, 1, 9_000_001, 2)
    assert len(figures.from_disk) == len(figures.from_memory) == 2
    assert min(figures.from_disk + figures.from_memory) > 0


def test_the_marks_are_shares_of_the_disk_and_of_the_link() -> None:
    figures = Figures(
        from_disk=[8.0] * 3, disk_limit=[10.0] * 3, from_memory=[48.0], link_limit=[50.0]
    )
    found = report(figures, "GPU")
    assert [mark.value for mark in found.marks] == pytest.approx([0.8, 0.96])
    assert found.passed
    figures.from_disk[:] = [6.9] * 3
    assert [mark.passed for mark in report(figures, "GPU").marks] == [False, True]
    unmeasured = report(Figures(from_disk=[6.9], from_memory=[1.0]), "GPU")
    assert all(math.isnan(mark.value) for mark in unmeasured.marks)
    assert not unmeasured.passed
