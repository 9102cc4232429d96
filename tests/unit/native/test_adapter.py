"""LoRA adapters go to and fro in PEFT's layout, whole or not at all, and nothing odd comes in.

`PEFT_CONFIG` and `PEFT_SHAPES` are what peft 0.21.2 writes; where peft is installed, it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import brisk_native
import pytest
import torch
from brisk_native import AdapterConfig, InvalidAdapterError, _publish, load_adapter, save_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.unit.native.test_tensors import check_same, flip, write_manifest

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_CONFIG: Mapping[str, object] = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "/models/base",
    "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_dropout": 0.0,
    "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.21.2", "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "embed_tokens"],
    "task_type": "CAUSAL_LM", "use_dora": True, "use_rslora": False,
}  # fmt: skip
BASE = "base_model.model.model"
PEFT_SHAPES = {
    f"{BASE}.embed_tokens.base_layer.weight": (32, 16),
    f"{BASE}.embed_tokens.lora_embedding_A": (4, 32),
    f"{BASE}.embed_tokens.lora_embedding_B": (16, 4),
    f"{BASE}.embed_tokens.lora_magnitude_vector": (16,),
    f"{BASE}.layers.0.self_attn.q_proj.lora_A.weight": (4, 16),
    f"{BASE}.layers.0.self_attn.q_proj.lora_B.weight": (16, 4),
    f"{BASE}.layers.0.self_attn.q_proj.lora_magnitude_vector": (16,),
}
A = f"{BASE}.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def peft_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in PEFT_SHAPES.items()}


def write_as_peft(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    tensors = peft_tensors()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({**PEFT_CONFIG, **changes}))
    (folder / "README.md").write_text("An adapter.")
    return tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def a_config(**fields: object) -> AdapterConfig:
    given: dict[str, object] = {"rank": 4, "alpha": 8, "target_modules": ("q_proj",), **fields}
    return AdapterConfig(**given)  # type: ignore[arg-type]  # the tests give wrong ones, too


def test_what_peft_wrote_is_loaded(tmp_path: Path) -> None:
    tensors = write_as_peft(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    check_same(adapter.tensors, tensors)
    assert adapter.config.rank == 4
    assert adapter.config.alpha == 8
    assert adapter.config.target_modules == ("q_proj", "embed_tokens")
    assert adapter.config.base_model == "/models/base"
    assert adapter.config.other["use_dora"] is True


def test_what_is_loaded_is_saved_as_peft_wrote_it(tmp_path: Path) -> None:
    tensors = write_as_peft(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    save_adapter(tmp_path / "b", adapter.tensors, adapter.config)
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "b") == [CONFIG, WEIGHTS]
    assert json.loads((tmp_path / "b" / CONFIG).read_text()) == PEFT_CONFIG
    check_same(load_file(tmp_path / "b" / WEIGHTS), tensors)
    with safe_open(tmp_path / "b" / WEIGHTS, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert (tmp_path / "b").stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_types_shapes_and_views_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        A: torch.randn(16, 4).to(dtype).T,
        B: torch.randn(16, 4).to(dtype),
        f"{BASE}.scale": torch.tensor(2.5),
        f"{BASE}.none": torch.empty(0, 3),
    }
    save_adapter(tmp_path / "a", tensors, a_config())
    check_same(load_adapter(tmp_path / "a").tensors, tensors)
    check_same(load_file(tmp_path / "a" / WEIGHTS), tensors)


def test_checksums_are_verified(tmp_path: Path) -> None:
    write_as_peft(tmp_path / "a")
    write_manifest(tmp_path / "a")
    load_adapter(tmp_path / "a")
    flip(tmp_path / "a" / WEIGHTS, (tmp_path / "a" / WEIGHTS).stat().st_size - 1)
    with pytest.raises(brisk_native.ChecksumError):
        load_adapter(tmp_path / "a")
    load_adapter(tmp_path / "a", verify=False)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_as_peft(tmp_path / "a")
    save_adapter(tmp_path / "a", {A: torch.ones(2, 16), B: torch.ones(16, 2)}, a_config(rank=2))
    assert names(tmp_path) == ["a"]
    assert load_adapter(tmp_path / "a").config.rank == 2
    (tmp_path / "a" / "precious").touch()
    with pytest.raises(FileExistsError, match="precious"):
        save_adapter(tmp_path / "a", peft_tensors(), a_config())
    assert load_adapter(tmp_path / "a").config.rank == 2


@pytest.mark.parametrize("step", ["write_durably", "_exchange", "_sync_folder"])
def test_a_failure_leaves_the_old_adapter_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tensors = write_as_peft(tmp_path / "a")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner = brisk_native._adapter if step == "write_durably" else _publish  # noqa: SLF001
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(tmp_path / "a", {A: torch.ones(2, 16), B: torch.ones(16, 2)}, a_config(rank=2))
    monkeypatch.undo()
    check_same(load_adapter(tmp_path / "a").tensors, tensors)
    assert names(tmp_path) == ["a"]


HOSTILE: Mapping[str, tuple[object, str]] = {
    "no object": ([], "holds no JSON object"),
    "another kind": ({**PEFT_CONFIG, "peft_type": "VERA"}, "peft_type must be LORA. Given: 'VERA'"),
    "no rank": ({**PEFT_CONFIG, "r": None}, "lacks the number r"),
    "a rank that is a bool": ({**PEFT_CONFIG, "r": True}, "r must be between"),
    "no matrix": ({**PEFT_CONFIG, "r": 0}, "r must be between 1 and 65536. Given: 0"),
    "a huge rank": ({**PEFT_CONFIG, "r": 10**300}, "r must be between"),
    "an infinite alpha": ({**PEFT_CONFIG, "lora_alpha": float("inf")}, "lora_alpha must be"),
    "an alpha beyond floats": ({**PEFT_CONFIG, "lora_alpha": 10**400}, "too large"),
    "an alpha of nothing": ({**PEFT_CONFIG, "lora_alpha": 0}, "lora_alpha must be"),
    "modules of numbers": ({**PEFT_CONFIG, "target_modules": [1]}, "neither a text nor a list"),
    "many modules": ({**PEFT_CONFIG, "target_modules": ["q"] * 10_001}, "has 10001 names"),
    "a long module": ({**PEFT_CONFIG, "target_modules": "q" * 5000}, "a name of 5000 characters"),
    "a base of numbers": ({**PEFT_CONFIG, "base_model_name_or_path": 7}, "is no text"),
    "a huge file": ({**PEFT_CONFIG, "x": "x" * (1 << 20)}, "has more than 1048576 bytes"),
    "another rank": ({**PEFT_CONFIG, "r": 8}, "has rank 4, adapter_config.json says 8"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    document, reason = HOSTILE[kind]
    write_as_peft(tmp_path / "a")
    (tmp_path / "a" / CONFIG).write_text(json.dumps(document))
    with pytest.raises(InvalidAdapterError) as refused:
        load_adapter(tmp_path / "a")
    assert reason in refused.value.reason


def test_a_rank_pattern_lets_modules_differ(tmp_path: Path) -> None:
    write_as_peft(tmp_path / "a", r=8, rank_pattern={"q_proj": 4, "embed_tokens": 4})
    assert load_adapter(tmp_path / "a").config.rank == 8


def test_code_named_by_a_config_is_never_imported(tmp_path: Path) -> None:
    mapping = {"base_model_class": "Evil", "parent_library": "evil_library"}
    write_as_peft(tmp_path / "a", auto_mapping=mapping)
    assert load_adapter(tmp_path / "a").config.other["auto_mapping"] == mapping


Tensors = dict[str, torch.Tensor]


def without_b(tensors: Tensors) -> None:
    del tensors[B]


def without_a(tensors: Tensors) -> None:
    del tensors[A]


def other_rank(tensors: Tensors) -> None:
    tensors[B] = torch.ones(16, 5)


def flat(tensors: Tensors) -> None:
    tensors[A] = torch.ones(4)


def strange(tensors: Tensors) -> None:
    tensors["model.weight"] = torch.ones(1)


def named(tensors: Tensors) -> None:
    tensors[A.replace("lora_A", "lora_A.default")] = tensors.pop(A)
    tensors[B.replace("lora_B", "lora_B.default")] = tensors.pop(B)


def none(tensors: Tensors) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_b, "lora_B.weight beside it"),
        (without_a, "has no lora_A.weight beside it"),
        (other_rank, "no common rank"),
        (flat, "no common rank"),
        (strange, "does not begin with base_model.model."),
        (named, "not named as PEFT stores it"),
        (none, "has no pair"),
    ],
)
def test_tensors_that_are_no_adapter_are_neither_saved_nor_loaded(
    tmp_path: Path, change: Callable[[Tensors], None], reason: str
) -> None:
    tensors = write_as_peft(tmp_path / "a")
    change(tensors)
    with pytest.raises(InvalidAdapterError) as refused:
        save_adapter(tmp_path / "b", tensors, a_config())
    assert reason in str(refused.value)
    assert names(tmp_path) == ["a"]
    save_file(tensors, tmp_path / "a" / WEIGHTS)
    with pytest.raises(InvalidAdapterError) as refused:
        load_adapter(tmp_path / "a")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [{"rank": 0}, {"alpha": float("nan")}, {"target_modules": ("",)}, {"other": {"r": 3}}],
)
def test_a_config_is_checked_when_it_is_made(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"r |lora_alpha|target_modules"):
        a_config(**fields)


def test_a_config_that_json_cannot_say_is_refused(tmp_path: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises(ValueError, match="JSON"):
            save_adapter(tmp_path / "a", peft_tensors(), a_config(other={"x": value}))
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("default::FutureWarning")
def test_peft_itself_reads_what_we_write_and_writes_what_we_read(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = brisk_native.load_model(tiny_model("llama-untied"))
        config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        )
        model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "theirs")
    ids = torch.arange(3, 20)[None]
    expected = model(ids).logits
    adapter = load_adapter(tmp_path / "theirs")
    check_same(adapter.tensors, load_file(tmp_path / "theirs" / WEIGHTS))
    save_adapter(tmp_path / "ours", adapter.tensors, adapter.config)
    again = peft.PeftModel.from_pretrained(
        brisk_native.load_model(tiny_model("llama-untied")), tmp_path / "ours"
    )
    assert torch.equal(again(ids).logits, expected)
