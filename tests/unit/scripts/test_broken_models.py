"""Promise: each broken folder is a good folder with one fault, so a refusal proves that fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from tests.broken_models import BROKEN, SHAPE_KINDS, WEIGHTS, broken_folder, good_folder
from tests.models import reference_greedy

# What transformers quietly repairs or ignores; Brisk has to be stricter.
TOLERATED = {"missing_tensor", "trailing", "escaping_shard", "wrong_shape"}


def test_the_good_folder_loads_without_a_missing_tensor(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "good")
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loaded[1]["missing_keys"]
    assert not loaded[1]["unexpected_keys"]
    assert len(reference_greedy(folder, [300, 12, 700], 8)) == 8


@pytest.mark.parametrize("kind", sorted(set(BROKEN) - TOLERATED))
def test_transformers_too_refuses_each_broken_folder(tmp_path: Path, kind: str) -> None:
    folder = broken_folder(tmp_path / kind, kind)
    with pytest.raises((OSError, ValueError, KeyError, SafetensorError, RuntimeError)):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["wrong_shape", "missing_tensor", "unknown_architecture"])
def test_shape_kinds_are_valid_safetensors_files(tmp_path: Path, kind: str) -> None:
    assert kind in SHAPE_KINDS
    with safe_open(broken_folder(tmp_path / kind, kind) / WEIGHTS, "np") as file:
        assert len(file.keys()) >= 20


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_each_broken_folder_differs_from_the_good_one(tmp_path: Path, kind: str) -> None:
    good, bad = good_folder(tmp_path / "good"), broken_folder(tmp_path / "bad", kind)
    contents = [
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (good, bad)
    ]
    assert contents[0] != contents[1]
