"""Promise: loaders are compared on equal bytes, and the marks are what the runs took."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.loaders import LOADERS, checksum_of
from bench.loading_report import Figures, Results, report
from bench.models import llama_2_7b, opt, write
from bench.processes import ROOT
from scripts.opt_layout import Shape


def results_of(**seconds: float) -> Results:
    figures = {
        (label.replace("_", " "), "cold"): Figures(
            seconds=[value] * 3,
            cpu_s=[0.2] * 3,
            system_s=[value / 2] * 3,
            faults=[7] * 3,
            peak_bytes=[1.0] * 3,
        )
        for label, value in seconds.items()
    }
    return Results(
        model="M",
        file_bytes=2_000_000_000,
        figures=figures,
        limits=[2.0] * 3,
        beside={label: [2.0] * 3 for label, _ in figures},
        in_huge_pages=True,
    )


def marks_of(results: Results) -> dict[str, float]:
    marks = report(results, with_plot=False).marks
    return {mark.name: mark.value for mark in marks}


def test_the_marks_compare_brisk_with_the_fastest_peer_and_the_disk() -> None:
    results = results_of(brisk=0.8, slow=3.0, fast=1.0, safetensors=1.2)
    marks = marks_of(results)
    assert marks["best peer's time over Brisk's"] == pytest.approx(1.25)
    assert marks["safetensors' time over Brisk's"] == pytest.approx(1.5)
    assert marks["brisk: of the disk's limit"] == pytest.approx(1.25)
    assert marks["CPU with checksums"] == pytest.approx(0.1)
    assert "The fastest peer is fast." in report(results, with_plot=False).notes


def test_what_was_not_measured_misses_its_mark() -> None:
    marks = marks_of(results_of(brisk=1.0))
    assert math.isnan(marks["best peer's time over Brisk's"])
    assert math.isnan(marks["brisk, 4 shards: of the disk's limit"])
    assert not report(results_of(brisk=1.0, fast=9.0), with_plot=False).passed


def test_a_run_is_held_against_the_disk_as_it_was_right_before() -> None:
    results = results_of(brisk=1.0)
    results.beside["brisk"] = [1.0, 2.0, 4.0]
    assert results.of_limit("brisk") == pytest.approx([2.0, 1.0, 0.5])


def test_in_place_is_held_against_milliseconds() -> None:
    results = results_of(brisk=1.0)
    results.figures["brisk, in place", "cold"] = Figures(
        seconds=[9.0] * 3, call_s=[0.004, 0.005, 0.006]
    )
    assert marks_of(results)["in place from the pool"] == pytest.approx(5.0)


def test_a_missing_fio_is_said() -> None:
    results = results_of(brisk=1.0, fast=1.0)
    results.limits.clear()
    notes = report(results, with_plot=False).notes
    assert "fio is not on the PATH: the disk's limit was not measured." in notes


def test_a_loader_that_failed_is_dropped_and_named() -> None:
    results = results_of(brisk=1.0, fast=0.1)
    results.forget("fast", "out of memory")
    assert results.best_peer() is None
    assert "fast was not measured: out of memory" in report(results, with_plot=False).notes


def test_fresh_memory_s_cost_is_explained_by_the_kernel_s_time() -> None:
    results = results_of(brisk=1.0)
    results.figures["brisk, fresh memory", "cold"] = Figures(
        seconds=[2.5], cpu_s=[2.0], system_s=[1.5], faults=[1234], peak_bytes=[1.0]
    )
    (note,) = [one for one in report(results, with_plot=False).notes if "Fresh" in one]
    assert "1.50 s more than the pool" in note
    assert "1234 page faults take 1.00 s more" in note


def test_the_shapes_are_those_that_were_published() -> None:
    assert opt(Shape(), "").tensor_bytes == 2_631_516_160
    assert llama_2_7b().tensor_bytes == 13_476_831_232
    assert len(llama_2_7b().tensors) == 291


def test_a_written_model_is_sound_and_not_all_zeros(tmp_path: Path) -> None:
    model = opt(Shape(hidden=32, layers=1, heads=2, ffn=64, vocabulary=99, positions=8), "tiny")
    write(tmp_path / "m", model)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert [one.name for one in model.tensors] == sorted(tensors, key=list(tensors).index)
    assert all(tensor.to(torch.float32).abs().sum() > 0 for tensor in tensors.values())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "opt"


@pytest.mark.parametrize(
    "loader", ["brisk", "brisk, fresh memory", "safetensors", "torch.load", "torch.load mmap"]
)
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
