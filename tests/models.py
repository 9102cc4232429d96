"""Tiny models with random weights for tests, and what transformers itself makes of them.

`make_model` writes a Hugging Face folder of one architecture, the same for the same seed;
`reference_greedy` is the answer that Brisk has to match. Every parameter is random, biases and
norms too, so that a loader that forgets one gives other tokens. Folders that must be refused are
in tests/broken_models.py, which does without torch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEMO_MODEL = Path(__file__).resolve().parents[1] / "models" / "brisk-licence-1.5m"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARD_SIZE = "150KB"  # cuts the tiny models into several shards
_SIZES: Mapping[str, object] = {
    "vocab_size": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "max_position_embeddings": 256,
}
_LLAMA: Mapping[str, object] = {
    **_SIZES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_OPT: Mapping[str, object] = {
    **_SIZES,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "dropout": 0.0,
}
_GPT2: Mapping[str, object] = {
    **_SIZES,
    "n_positions": 256,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
}
# Kind -> the config's model type, its fields, and whether it is written in several shards.
_KINDS: Mapping[str, tuple[str, Mapping[str, object], bool]] = {
    "opt": ("opt", _OPT, False),
    "llama": ("llama", {**_LLAMA, "tie_word_embeddings": True}, False),
    "llama-untied": ("llama", {**_LLAMA, "tie_word_embeddings": False}, False),
    "qwen2": ("qwen2", {**_LLAMA, "tie_word_embeddings": False}, False),
    "qwen2-tied": ("qwen2", {**_LLAMA, "tie_word_embeddings": True}, False),
    "gpt2": ("gpt2", _GPT2, False),
    "sharded-llama": ("llama", {**_LLAMA, "tie_word_embeddings": False}, True),
    "opt-sharded": ("opt", _OPT, True),
}
KINDS = tuple(_KINDS)


def make_model(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a tiny fp32 model of `kind` (one of KINDS) with a real tokenizer; return `folder`.

    Equal seeds give equal files. It has 1,024 tokens, 256 positions and two layers.
    """
    import torch  # noqa: PLC0415 - torch and transformers take seconds; most tests need neither
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    model_type, fields, sharded = _KINDS[kind]
    config = AutoConfig.for_model(model_type, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
        randomise(model)
    folder.mkdir(parents=True, exist_ok=True)
    if sharded:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    else:
        model.save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def copy_tokenizer(folder: Path) -> None:
    """Give the model in `folder` the demo model's tokenizer."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / name, folder / name)


def randomise(model: PreTrainedModel) -> None:
    """Draw all parameters so that tokens differ and depend on everything before them."""
    import torch  # noqa: PLC0415

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                embeds = "embed" in name or "wte" in name or "wpe" in name
                weight.normal_(std=0.3 if embeds else 2.0 / math.sqrt(min(weight.shape)))
            elif name.endswith("bias"):
                weight.normal_(std=0.2)
            else:
                weight.normal_(mean=1.0, std=0.1)


def reference_greedy(
    folder: Path, prompt_ids: Sequence[int], tokens: int, *, ignore_eos: bool = False
) -> list[int]:
    """Return the greedy continuation of `prompt_ids` by transformers in fp32, prompt left out.

    At most `tokens` ids; fewer if the end token comes, which is then the last one.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.pad_token_id = model.generation_config.eos_token_id
    if ignore_eos:
        model.generation_config.eos_token_id = None
    ids = torch.tensor([list(prompt_ids)])
    with torch.no_grad():
        output = model.generate(  # type: ignore[misc]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return [int(token) for token in output[0, ids.shape[1] :]]
