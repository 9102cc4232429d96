"""Model folders that must be refused, one per kind of bad input, made without torch.

Each starts as a good tiny Llama folder and has exactly one thing wrong with it. `BROKEN` lists
them with the words that a refusal has to contain, so that its reader knows where to look.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.models import copy_tokenizer

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_HIDDEN, _MLP, _LAYERS, _VOCABULARY = 32, 48, 2, 1024
A_MATRIX = "model.layers.1.mlp.up_proj.weight"  # the tensor that the broken folders break


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One kind of bad input: how to make it, and what its refusal must name."""

    make: Callable[[Path], None]
    names: tuple[str, ...]
    reason: str = "INVALID_MODEL"


def good_folder(folder: Path) -> Path:
    """Write a tiny untied fp32 Llama that loads, and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, _llama_tensors())
    _write_json(folder / CONFIG, _llama_config())
    copy_tokenizer(folder)
    return folder


def broken_folder(folder: Path, kind: str) -> Path:
    """Write the folder of `kind`, a key of BROKEN, and return it."""
    BROKEN[kind].make(good_folder(folder))
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write fp32 tensors as a safetensors file, in the order given."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        entries[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
    write_raw(path, entries, b"".join(array.tobytes() for array in tensors.values()))


def write_raw(path: Path, entries: Mapping[str, object], data: bytes) -> None:
    """Write a safetensors file with exactly this header and data, right or wrong."""
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def read_raw(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """Return a safetensors file's header and data."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _llama_config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "vocab_size": _VOCABULARY, "hidden_size": _HIDDEN, "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": _HIDDEN // 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }  # fmt: skip


def _llama_tensors() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCABULARY, _HIDDEN)}
    for number in range(_LAYERS):
        layer = f"model.layers.{number}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (_HIDDEN,),
            f"{layer}.self_attn.q_proj.weight": (_HIDDEN, _HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (_HIDDEN // 2, _HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (_HIDDEN // 2, _HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (_HIDDEN, _HIDDEN),
            f"{layer}.post_attention_layernorm.weight": (_HIDDEN,),
            f"{layer}.mlp.gate_proj.weight": (_MLP, _HIDDEN),
            f"{layer}.mlp.up_proj.weight": (_MLP, _HIDDEN),
            f"{layer}.mlp.down_proj.weight": (_HIDDEN, _MLP),
        }
    shapes |= {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (_VOCABULARY, _HIDDEN)}
    noise = np.random.default_rng(0)
    return {
        name: noise.standard_normal(shape, dtype=np.float32) * 0.2 for name, shape in shapes.items()
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _config_says(folder: Path, **fields: object) -> None:
    _write_json(folder / CONFIG, {**_llama_config(), **fields})


def _header_says(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    entries, data = read_raw(folder / WEIGHTS)
    change(entries)
    write_raw(folder / WEIGHTS, entries, data)


def without_config(folder: Path) -> None:
    """Remove config.json."""
    (folder / CONFIG).unlink()


def config_not_json(folder: Path) -> None:
    """Cut config.json in the middle of an object."""
    (folder / CONFIG).write_text('{"architectures": ["LlamaForCausalLM"', encoding="utf-8")


def config_not_an_object(folder: Path) -> None:
    """Make config.json a JSON list."""
    _write_json(folder / CONFIG, ["LlamaForCausalLM"])


def unknown_architecture(folder: Path) -> None:
    """Name an architecture and a model type that transformers does not know."""
    _config_says(folder, architectures=["FrobnicatorForCausalLM"], model_type="frobnicator")


def only_pickle(folder: Path) -> None:
    """Leave only weights that would have to be unpickled."""
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")


def without_weights(folder: Path) -> None:
    """Leave no weights at all."""
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    """Cut the last tensor in two."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1000])


def empty(folder: Path) -> None:
    """Make the weights a file of no bytes."""
    (folder / WEIGHTS).write_bytes(b"")


def trailing(folder: Path) -> None:
    """Append bytes that belong to no tensor."""
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 1000)


def overlapping(folder: Path) -> None:
    """Let a matrix begin inside the tensor before it."""

    def shift(entries: dict[str, dict[str, object]]) -> None:
        before = entries["model.layers.1.mlp.gate_proj.weight"]
        entries[A_MATRIX]["data_offsets"] = before["data_offsets"]

    _header_says(folder, shift)


def wrong_shape(folder: Path) -> None:
    """Swap a matrix's sides: the bytes fit, the model does not."""
    _header_says(folder, lambda entries: entries[A_MATRIX].update(shape=[_HIDDEN, _MLP]))


def shape_unlike_bytes(folder: Path) -> None:
    """Claim a shape whose bytes differ from the offsets."""
    _header_says(folder, lambda entries: entries[A_MATRIX].update(shape=[_MLP + 1, _HIDDEN]))


def unknown_dtype(folder: Path) -> None:
    """Claim a type that safetensors does not have."""
    _header_says(folder, lambda entries: entries[A_MATRIX].update(dtype="F31"))


def missing_tensor(folder: Path) -> None:
    """Leave a matrix out of an otherwise valid file."""
    tensors = _llama_tensors()
    del tensors[A_MATRIX]
    write_safetensors(folder / WEIGHTS, tensors)


def huge_header(folder: Path) -> None:
    """Claim a header of eight exbibytes."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**63).to_bytes(8, "little") + content[8:])


def header_not_json(folder: Path) -> None:
    """Fill the header with bytes that are no JSON."""
    (folder / WEIGHTS).write_bytes((64).to_bytes(8, "little") + b"\xff" * 128)


def _shard(folder: Path, second: str) -> None:
    """Split the weights into two shards; the index calls the second one `second`."""
    tensors = _llama_tensors()
    names = list(tensors)
    first, rest = names[: len(names) // 2], names[len(names) // 2 :]
    (folder / WEIGHTS).unlink()
    write_safetensors(
        folder / "model-00001-of-00002.safetensors", {name: tensors[name] for name in first}
    )
    write_safetensors(
        folder / "model-00002-of-00002.safetensors", {name: tensors[name] for name in rest}
    )
    places = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    places |= dict.fromkeys(rest, second)
    total = sum(array.nbytes for array in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def missing_shard(folder: Path) -> None:
    """Let the index name a shard that is not there."""
    _shard(folder, "model-00002-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()


def escaping_shard(folder: Path) -> None:
    """Let the index name a shard outside the folder, though it exists."""
    _shard(folder, "../outside.safetensors")
    (folder / "model-00002-of-00002.safetensors").rename(folder.parent / "outside.safetensors")


def index_not_json(folder: Path) -> None:
    """Cut the index in two."""
    _shard(folder, "model-00002-of-00002.safetensors")
    text = (folder / INDEX).read_text(encoding="utf-8")
    (folder / INDEX).write_text(text[: len(text) // 2], encoding="utf-8")


BROKEN: Mapping[str, Broken] = {
    "without_config": Broken(make=without_config, names=(CONFIG,)),
    "config_not_json": Broken(make=config_not_json, names=(CONFIG,)),
    "config_not_an_object": Broken(make=config_not_an_object, names=(CONFIG,)),
    "unknown_architecture": Broken(make=unknown_architecture, names=("FrobnicatorForCausalLM",)),
    "only_pickle": Broken(make=only_pickle, names=("pytorch_model.bin",)),
    "without_weights": Broken(make=without_weights, names=("safetensors",)),
    "truncated": Broken(make=truncated, names=(WEIGHTS,)),
    "empty": Broken(make=empty, names=(WEIGHTS,)),
    "trailing": Broken(make=trailing, names=(WEIGHTS,)),
    "overlapping": Broken(make=overlapping, names=(WEIGHTS,)),
    "wrong_shape": Broken(make=wrong_shape, names=(A_MATRIX,)),
    "shape_unlike_bytes": Broken(make=shape_unlike_bytes, names=(WEIGHTS,)),
    "unknown_dtype": Broken(make=unknown_dtype, names=(WEIGHTS,)),
    "missing_tensor": Broken(make=missing_tensor, names=(A_MATRIX,)),
    "huge_header": Broken(make=huge_header, names=(WEIGHTS,)),
    "header_not_json": Broken(make=header_not_json, names=(WEIGHTS,)),
    "missing_shard": Broken(make=missing_shard, names=("model-00002-of-00002.safetensors",)),
    "escaping_shard": Broken(make=escaping_shard, names=(INDEX,)),
    "index_not_json": Broken(make=index_not_json, names=(INDEX,)),
}
# What only building the model shows: the store takes these, the worker's Check refuses them.
SHAPE_KINDS = ("unknown_architecture", "wrong_shape", "missing_tensor")
