"""Promise: make_large_model writes exactly what OPTForCausalLM expects, whole or not at all."""

from __future__ import annotations

import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from scripts import make_large_model
from scripts.make_large_model import Progress, RefusedError, main, make
from scripts.opt_layout import Shape, tensors
from tests.models import DEMO_MODEL, reference_greedy

SMALL = Shape(hidden=64, layers=2, heads=2, ffn=256, vocabulary=2000, positions=128)


@pytest.mark.parametrize("shape", [SMALL, Shape(layers=2, hidden=128, ffn=512), Shape()])
def test_names_and_shapes_are_those_of_the_transformers_skeleton(
    tmp_path: Path, shape: Shape
) -> None:
    (tmp_path / "config.json").write_bytes(
        make_large_model.small_files(shape, DEMO_MODEL)["config.json"]
    )
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(tmp_path)
        skeleton = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    expected = {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()}
    assert {tensor.name: tensor.sizes for tensor in tensors(shape)} == expected


def test_the_default_is_opt_1_3b_in_fp16() -> None:
    assert sum(tensor.size_bytes() for tensor in tensors(Shape())) == 2 * 1_315_758_080


def test_the_file_is_valid_and_the_model_loads_with_nothing_missing(tmp_path: Path) -> None:
    make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    with safe_open(tmp_path / "opt" / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - the reader is no mapping
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16
            assert bool(torch.isfinite(tensor).all())
            flat = name.endswith("bias") or "norm" in name
            assert (tensor.float().std() < 1e-9) == flat, name
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "opt", output_loading_info=True)
    assert not loaded[1]["missing_keys"]
    assert not loaded[1]["unexpected_keys"]


def test_it_writes_words_and_decodes_ids_beyond_its_tokenizer_to_nothing(tmp_path: Path) -> None:
    make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "opt")
    tokens = reference_greedy(tmp_path / "opt", tokenizer.encode("You may copy"), 12)
    assert len(tokens) == 12
    assert all(258 <= token < 1024 for token in tokens)
    assert tokenizer.decode([5, 1500, 1999, 6]) == tokenizer.decode([5, 6])


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        make(tmp_path / name, SMALL, seed, DEMO_MODEL)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_a_second_run_finds_the_model_and_leaves_it_alone(tmp_path: Path) -> None:
    assert make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    before = (tmp_path / "opt" / "model.safetensors").stat()
    assert not make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    after = (tmp_path / "opt" / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("other", [Shape(hidden=64, layers=1, ffn=256), SMALL])
def test_a_folder_that_holds_something_else_is_refused_and_kept(
    tmp_path: Path, other: Shape
) -> None:
    make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    before = (tmp_path / "opt" / "model.safetensors").read_bytes()
    with pytest.raises(RefusedError, match="holds something else"):
        make(tmp_path / "opt", other, 8, DEMO_MODEL)
    assert (tmp_path / "opt" / "model.safetensors").read_bytes() == before


def test_too_little_room_is_refused_with_needed_and_available_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 12345))
    with pytest.raises(RefusedError, match=r"needed \d{6,} bytes, available 12345 bytes"):
        make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    assert not list(tmp_path.iterdir())


def test_without_a_tokenizer_it_says_which_program_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"make_demo_model\.py"):
        make(tmp_path / "opt", SMALL, 7, tmp_path / "nowhere")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_writing_leaves_nothing_behind(
    tmp_path: Path, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / ".opt.partial" / "model.safetensors"
    was_there = []

    def interrupt(_progress: Progress, _done_bytes: int) -> None:
        was_there.append(partial.exists())
        signal.raise_signal(signum)

    monkeypatch.setattr(Progress, "show", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = main(["--out", str(tmp_path / "opt"), "--hidden", "64", "--layers", "2"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert was_there == [True]
    assert status == 128 + signum
    assert not list(tmp_path.iterdir())


def test_the_program_refuses_a_shape_that_opt_cannot_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--hidden", "100"])
    assert refused.value.code == 2
    assert "--hidden" in capsys.readouterr().err


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    partial = tmp_path / ".opt.partial"
    partial.mkdir()
    (partial / "junk").write_bytes(b"half")
    assert make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["opt"]
    assert not (tmp_path / "opt" / "junk").exists()


def test_a_run_beside_another_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    with make_large_model._folder_or_nothing(tmp_path / "opt") as fresh:  # noqa: SLF001
        (fresh / "half").write_bytes(b"half")
        with pytest.raises(RefusedError, match="another run"):
            make(tmp_path / "opt", SMALL, 7, DEMO_MODEL)
        assert (fresh / "half").exists()
