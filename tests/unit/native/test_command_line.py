"""The command line's promise: what the library finds, as text or JSON; an honest exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from brisk_native import IMPLEMENTATION
from safetensors.torch import save_file

from tests.unit.native.test_tensors import flip, make_model, save_raw


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brisk_native", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def found(ran: subprocess.CompletedProcess[str]) -> object:
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


def test_inspect_lists_every_tensor_and_adds_them_up(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.ones(2, 3), "b": torch.ones((), dtype=torch.bool)}, path)
    ran = run("inspect", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    rows = [re.split(r" {2,}", line) for line in ran.stdout.splitlines()]
    assert rows[1] == ["a.weight", "F32", "[2, 3]", "24", path.name]
    assert rows[-1] == ["2 tensors, 7 parameters, 0.00 GB in 1 files"]
    document = found(run("inspect", path, "--json"))
    assert isinstance(document, dict)
    assert document["totals"] == {
        "tensors": 2, "parameters": 7, "tensor_bytes": 25, "file_bytes": path.stat().st_size,
    }  # fmt: skip
    first = document["files"][0]["tensors"][0]
    assert (first["name"], first["dtype"], first["shape"]) == ("a.weight", "F32", [2, 3])


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    save_raw(tmp_path / "f", {"\x1b[2Jgone\n\u202e": ("U8", [1], b"x")})
    ran = run("inspect", tmp_path / "f")
    assert "\\x1b[2Jgone\\n\\u202e  U8" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_verify_says_what_was_checked_and_finds_damage(tmp_path: Path) -> None:
    make_model(tmp_path)
    ran = run("verify", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "sound: headers, and the checksums of 2 files" in ran.stdout
    document = found(run("verify", "--json", tmp_path))
    assert isinstance(document, dict)
    assert (document["sound"], document["files_checked"]) == (True, 2)
    flip(tmp_path / "model.safetensors", 5000)
    ran = run("verify", tmp_path, "--json")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"{tmp_path}/model.safetensors: chunk 0 at offset 0: crc32c")
    (tmp_path / "brisk.json").unlink()
    assert "there is no brisk.json to check the bytes by" in run("verify", tmp_path).stdout
    os.truncate(tmp_path / "model.safetensors", 1000)
    ran = run("verify", tmp_path)
    assert ran.returncode == 1
    assert "truncated: its tensors take" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_convert_says_what_it_wrote_and_how_fast(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_model(tmp_path / "source")
    ran = run("convert", tmp_path / "source", tmp_path / "made")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(r"tensors, [0-9.]+ GB written in [0-9.]+ s: [0-9.]+ GB/s", ran.stdout)
    assert "source verified by its brisk.json" in ran.stdout
    document = found(run("convert", tmp_path / "source", tmp_path / "made", "--json"))
    assert isinstance(document, dict)
    assert document["folder"] == str(tmp_path / "made")
    assert document["gb_per_s"] > 0
    assert "in the stored form" in run("verify", tmp_path / "made").stdout
    assert "__brisk_padding__" not in run("inspect", tmp_path / "made").stdout
    ran = run("convert", tmp_path / "source", tmp_path / "source" / "brisk.json")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith(str(tmp_path))


def test_bench_measures_every_run(tmp_path: Path) -> None:
    make_model(tmp_path)
    document = found(run("bench", tmp_path, "--runs", "2", "--json"))
    assert isinstance(document, dict)
    assert len(document["seconds"]) == 2
    assert document["gb_per_s"] > 0
    assert (document["verified"], document["implementation"]) == (True, IMPLEMENTATION)
    assert "GB/s" in run("bench", tmp_path, "--runs", "1").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("melt", "."),
        ("inspect",),
        ("bench", ".", "--runs", "0"),
        ("verify", ".", "--threads", "65"),
    ],
)
def test_a_wrong_call_is_told_so(arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.returncode == 2
    assert "usage: python -m brisk_native" in ran.stderr


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    ran = run("inspect", tmp_path / "nowhere")
    assert ran.returncode == 1
    assert ran.stderr == f"{tmp_path}/nowhere: No such file or directory\n"


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    save_raw(tmp_path / "f", {f"t{n}": ("U8", [1], b"x") for n in range(20_000)})
    pipe = '"$0" -m brisk_native inspect "$1" | head -n 1; exit ${PIPESTATUS[0]}'
    command = ["bash", "-c", pipe, sys.executable, str(tmp_path / "f")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def on_terminal(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a program whose stderr is a terminal; give the other end of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    return process, ours


def test_progress_is_drawn_on_a_terminal_and_ctrl_c_leaves_without_a_traceback(
    tmp_path: Path, long_file: Path
) -> None:
    size = long_file.stat().st_size
    head = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "big.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + size)
    command = [sys.executable, "-m", "brisk_native", "bench", str(path), "--runs", "1000"]
    process, terminal = on_terminal(command)
    with process:
        seen = b""
        while b"GB/s" not in seen:
            seen += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert b"] 0." in seen
    rest = os.read(terminal, 65536)
    assert b"Traceback" not in rest
    os.close(terminal)
