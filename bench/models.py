"""The checkpoints that loaders are measured on: published shapes, random weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from scripts import opt_layout
from scripts.opt_layout import Shape, Tensor

NOISE_VALUES = 1 << 25  # made once; every tensor is a piece of it from a place of its own
STEP = 2_654_435_761  # the places lie scattered


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a checkpoint looks like."""

    label: str
    dtype: Literal["F16", "BF16"]
    tensors: tuple[Tensor, ...]
    config: dict[str, object]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes() for tensor in self.tensors)


def opt(shape: Shape, label: str) -> Model:
    """Return an OPT model, by default OPT-1.3B: 2.63 GB."""
    tensors, config = tuple(opt_layout.tensors(shape)), opt_layout.config(shape)
    return Model(label=label, dtype="F16", tensors=tensors, config=config)


def llama_2_7b(layers: int = 32) -> Model:
    """Return Llama-2-7B: 13.5 GB."""
    hidden, ffn, vocabulary = 4096, 11008, 32000
    found = [_noise("model.embed_tokens", vocabulary, hidden)]
    for number in range(layers):
        layer = f"model.layers.{number}"
        found.append(_ones(f"{layer}.input_layernorm", hidden))
        found += [_noise(f"{layer}.self_attn.{one}_proj", hidden, hidden) for one in "qkvo"]
        found.append(_ones(f"{layer}.post_attention_layernorm", hidden))
        found += [_noise(f"{layer}.mlp.{one}_proj", ffn, hidden) for one in ("gate", "up")]
        found.append(_noise(f"{layer}.mlp.down_proj", hidden, ffn))
    found += [_ones("model.norm", hidden), _noise("lm_head", vocabulary, hidden)]
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": vocabulary,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return Model(label="Llama-2-7B", dtype="BF16", tensors=tuple(found), config=config)


def write(folder: Path, model: Model) -> None:
    """Write config and weights of `model`, in one file, into the new `folder`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
    noise = memoryview(_noise_bytes(model.dtype))
    with (folder / "model.safetensors").open("wb", buffering=0) as file:
        file.write(opt_layout.header(list(model.tensors), seed=1, dtype=model.dtype))
        for number, tensor in enumerate(model.tensors):
            for piece in _pieces(noise, tensor, number):
                file.write(piece)
        os.fsync(file.fileno())


def _noise(module: str, rows: int, columns: int) -> Tensor:
    return Tensor(name=f"{module}.weight", sizes=(rows, columns), fill="noise")


def _ones(module: str, size: int) -> Tensor:
    return Tensor(name=f"{module}.weight", sizes=(size,), fill="ones")


def _noise_bytes(dtype: str) -> bytes:
    values = np.random.default_rng(1).standard_normal(NOISE_VALUES, dtype=np.float32) * 0.01
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _pieces(noise: memoryview, tensor: Tensor, number: int) -> Iterator[memoryview]:
    """Yield bytes for `tensor`. What it should be filled with does not matter here."""
    left, at = tensor.size_bytes(), number * STEP % NOISE_VALUES * opt_layout.BYTES_PER_VALUE
    while left > 0:
        piece = noise[at : at + left]
        yield piece
        left -= len(piece)
        at = (at + len(piece)) % len(noise)
