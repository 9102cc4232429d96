"""Promise: the tests' tiny models are ordinary Hugging Face models, repeatable and telling.

If their weights or tokens were degenerate, "Brisk's greedy tokens equal transformers'" would prove
little.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.models import DEMO_MODEL, KINDS, make_model, reference_greedy

PROMPT = [300, 12, 700, 45, 990]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_and_generates_tokens_that_vary(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / kind, kind)
    tokens = reference_greedy(folder, PROMPT, 32, ignore_eos=True)
    assert len(tokens) == 32
    assert len(set(tokens)) >= 12, tokens


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_tokens_depend_on_the_whole_prompt(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / kind, kind)
    other = [301, *PROMPT[1:]]
    assert reference_greedy(folder, PROMPT, 16) != reference_greedy(folder, other, 16)


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    first, second, third = (
        make_model(tmp_path / name, "llama", seed=seed).joinpath("model.safetensors").read_bytes()
        for name, seed in (("first", 3), ("second", 3), ("third", 4))
    )
    assert first == second
    assert first != third


@pytest.mark.parametrize("kind", ["sharded-llama", "opt-sharded"])
def test_sharded_kinds_have_several_shards_and_an_index(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / kind, kind)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) >= 3
    assert shards == {path.name for path in folder.glob("*.safetensors")}


def test_qwen2_carries_biases_that_are_not_zero(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "qwen2", "qwen2")
    with safe_open(folder / "model.safetensors", "np") as file:
        bias = file.get_tensor("model.layers.1.self_attn.k_proj.bias")
        names = set(file.keys())
    assert abs(bias).min() > 0
    assert "lm_head.weight" in names


@pytest.mark.parametrize("kind", ["llama", "qwen2-tied", "opt", "gpt2"])
def test_tied_kinds_store_the_embedding_once(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / kind, kind)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert "lm_head.weight" not in set(file.keys())


def test_the_tokenizer_is_real_and_survives_a_round_trip(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path / "llama", "llama"))
    text = "You may copy, naïve 模型 and 🚀 all.\n\n  Twice"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode(text)) < 1024


def test_the_demo_model_knows_its_licences() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompt = tokenizer.encode("You may copy and distribute the Program")
    text = tokenizer.decode(reference_greedy(DEMO_MODEL, prompt, 40))
    assert "in object code or executable form under the terms of Sections 1 and 2 above" in text


def test_the_demo_model_is_small_enough_for_the_repository() -> None:
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) <= 7_000_000
