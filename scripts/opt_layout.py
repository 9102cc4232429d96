"""What an OPT checkpoint looks like: its tensors, their place in the file, and its config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

BYTES_PER_VALUE = 2  # fp16 or bf16
Fill = Literal["tokens", "positions", "noise", "zeros", "ones"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of an OPT model; the defaults are OPT-1.3B's."""

    hidden: int = 2048
    layers: int = 24
    heads: int = 32
    ffn: int = 8192
    vocabulary: int = 50272
    positions: int = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the file: its name, its sizes and what to fill it with."""

    name: str
    sizes: tuple[int, ...]
    fill: Fill

    def size_bytes(self) -> int:
        """Return how many bytes it takes in the file."""
        size = BYTES_PER_VALUE
        for extent in self.sizes:
            size *= extent
        return size


def tensors(shape: Shape) -> list[Tensor]:
    """Return what OPTForCausalLM expects, in the order the model uses it; lm_head is tied."""
    decoder, hidden = "model.decoder", shape.hidden
    words, places = (shape.vocabulary, hidden), (shape.positions + 2, hidden)  # OPT skips two
    found = [
        Tensor(name=f"{decoder}.embed_tokens.weight", sizes=words, fill="tokens"),
        Tensor(name=f"{decoder}.embed_positions.weight", sizes=places, fill="positions"),
    ]
    for number in range(shape.layers):
        layer = f"{decoder}.layers.{number}"
        found += _norm(f"{layer}.self_attn_layer_norm", hidden)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found += _linear(f"{layer}.self_attn.{projection}", hidden, hidden)
        found += _norm(f"{layer}.final_layer_norm", hidden)
        found += _linear(f"{layer}.fc1", shape.ffn, hidden)
        found += _linear(f"{layer}.fc2", hidden, shape.ffn)
    return found + _norm(f"{decoder}.final_layer_norm", hidden)


def _linear(name: str, rows: int, columns: int) -> list[Tensor]:
    return [
        Tensor(name=f"{name}.weight", sizes=(rows, columns), fill="noise"),
        Tensor(name=f"{name}.bias", sizes=(rows,), fill="zeros"),
    ]


def _norm(name: str, size: int) -> list[Tensor]:
    return [
        Tensor(name=f"{name}.weight", sizes=(size,), fill="ones"),
        Tensor(name=f"{name}.bias", sizes=(size,), fill="zeros"),
    ]


def header(layout: list[Tensor], seed: int, dtype: str = "F16") -> bytes:
    """Return the safetensors header; equal headers mean equal files, for they name the seed."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "brisk_seed": str(seed)}}
    end = 0
    for tensor in layout:
        start, end = end, end + tensor.size_bytes()
        sizes = list(tensor.sizes)
        entries[tensor.name] = {"dtype": dtype, "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def config(shape: Shape) -> dict[str, object]:
    """Return the config.json of such a model."""
    return {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "dtype": "float16",
        "hidden_size": shape.hidden, "word_embed_proj_dim": shape.hidden, "ffn_dim": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions,
        "activation_function": "relu", "do_layer_norm_before": True, "enable_bias": True,
        "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False,
        "tie_word_embeddings": True, "use_cache": True, "dropout": 0.0, "attention_dropout": 0.0,
        "layerdrop": 0.0, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
