"""Promise: the loaders are compared on equal bytes, and the key figure is what the runs took."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.loaders import LOADERS, checksum_of
from bench.loading import Bench, Figures, report
from bench.processes import ROOT


def bench_of(tmp_path: Path, **seconds: float) -> Bench:
    figures = {
        (label, "cold"): Figures(seconds=[value] * 3, cpu_s=[1.0] * 3, peak_bytes=[1.0] * 3)
        for label, value in seconds.items()
    }
    return Bench(
        ways=[],
        file=tmp_path,
        log=tmp_path,
        checksum=0,
        file_bytes=2_000_000_000,
        figures=figures,
        limits=[2.0, 2.0],
    )


def test_the_mark_is_brisks_time_over_the_fastest_peers(tmp_path: Path) -> None:
    found = report(bench_of(tmp_path, brisk=0.8, slow=3.0, fast=1.0))
    assert found.mark.value == pytest.approx(0.8)
    assert found.mark.passed
    assert any("fastest peer is fast" in note for note in found.notes)
    assert "brisk, cold: 2.50 GB/s, 1.25 of the disk's limit." in found.notes
    assert not report(bench_of(tmp_path, brisk=0.9, fast=1.0)).mark.passed


def test_without_brisk_or_a_peer_the_mark_is_missed(tmp_path: Path) -> None:
    assert math.isnan(report(bench_of(tmp_path, fast=1.0)).mark.value)
    assert not report(bench_of(tmp_path, brisk=1.0)).mark.passed


def test_a_missing_fio_is_said(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, brisk=1.0, fast=1.0)
    bench.limits.clear()
    assert "fio is not on the PATH: the disk's limit was not measured." in report(bench).notes


@pytest.mark.parametrize("loader", ["brisk", "safetensors", "torch.load", "torch.load mmap"])
def test_a_loader_waits_for_the_word_and_says_what_it_loaded(tmp_path: Path, loader: str) -> None:
    tensors = {"a": torch.arange(5000.0), "b": torch.ones(3, dtype=torch.float16)}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert loader in LOADERS
    command = [sys.executable, "-m", "bench.loaders", loader, str(tmp_path)]
    ran = subprocess.run(
        command, input="go\n", capture_output=True, text=True, check=True, cwd=ROOT
    )
    ready, line = ran.stdout.splitlines()
    found = json.loads(line)
    assert ready == "ready"
    assert found["checksum"] == checksum_of(tensors.values())
    assert found["tensor_bytes"] == 20_006
    assert 0 < found["call_s"] <= found["seconds"]
