"""Tiny random models of many architectures, in memory, and what `generate` makes of them.

The configs are those of the families cut down: what is special about each is kept, such as windows
shorter than the prompts, caps, sinks, experts, or heads that share keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tests.models import randomise

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VOCABULARY = 512
CONTEXT = 320
WINDOW = 8

_SMALL: Mapping[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_OPT: Mapping[str, object] = {
    **_SMALL,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "dropout": 0.0,
}
_EXPERTS: Mapping[str, object] = {
    **_SMALL,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_intermediate_size": 48,
}
_ROPE_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

# Kind -> the config's model type and its fields.
PACKED: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("llama", _SMALL),
    "llama-all-heads": ("llama", {**_SMALL, "num_key_value_heads": 4}),
    "opt": ("opt", _OPT),
    "opt-350m": ("opt", {**_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "gpt2": ("gpt2", {**_SMALL, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": ("gpt_neox", {**_SMALL, "hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "qwen2": ("qwen2", _SMALL),
    "qwen2-window": (
        "qwen2",
        {**_SMALL, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", _SMALL),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "norm_topk_prob": True}),
    "mistral": ("mistral", {**_SMALL, "sliding_window": WINDOW}),
    "mixtral": ("mixtral", _EXPERTS),
    "gemma": ("gemma", _SMALL),
    "gemma2": (
        "gemma2",
        {
            **_SMALL,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_SMALL,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 16,
        },
    ),
    "phi": ("phi", {**_SMALL, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {**_SMALL, "sliding_window": WINDOW}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_EXPERTS,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "starcoder2": ("starcoder2", {**_SMALL, "sliding_window": None, "residual_dropout": 0.0}),
}
# Kind -> likewise, and a word of the reason why it is not packed.
SERIAL: Mapping[str, tuple[str, Mapping[str, object], str]] = {
    "bloom": ("bloom", {**_SMALL, "n_layer": 3, "n_head": 4}, "attention|logits|raise"),
    "mamba": (
        "mamba",
        {**_SMALL, "state_size": 4, "conv_kernel": 4, "expand": 2, "use_cache": True},
        "attention|logits|raise",
    ),
    "llama-dynamic": ("llama", {**_SMALL, "rope_parameters": _ROPE_DYNAMIC}, "dynamic"),
}


def tiny(kind: str, *, seed: int = 0, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a model of a kind of PACKED or SERIAL, fp32 or `dtype`, the same for the same seed."""
    import torch  # noqa: PLC0415 - torch and transformers take seconds
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    model_type, fields = PACKED[kind] if kind in PACKED else SERIAL[kind][:2]
    config = AutoConfig.for_model(model_type, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
        randomise(model)
    model.train(mode=False)
    if dtype is not None:
        torch.nn.Module.to(model, dtype)
    model.generation_config.eos_token_id = None  # every answer has its full length
    model.generation_config.pad_token_id = 2
    return model


def greedy_alone(model: PreTrainedModel, prompt: Sequence[int], tokens: int) -> list[int]:
    """Return what `generate` continues `prompt` with, nothing else in the batch."""
    import torch  # noqa: PLC0415

    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return [int(token) for token in output[0, ids.shape[1] :]]
