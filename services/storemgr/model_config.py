"""A checkpoint's config.json: what it says about shape, context and key/value cache.

Every family of models spells the same number differently, so each fact has a list of names. Absent
facts are None; present ones that cannot be true are refused. Models with a vision part keep the
facts of the language part in `text_config`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from services.common.names import shorten
from services.storemgr.refusal import MalformedError
from services.storemgr.strict_json import (
    JsonRules,
    described,
    is_integer,
    is_list,
    is_object,
    parse_object,
)

_RULES: Final = JsonRules(
    size_bytes_max=4 << 20, containers_max=50_000, values_max=200_000, infinities=True
)
_COUNT_MAX: Final = 2**31 - 1
_CONTEXT_MAX: Final = 2**32 - 1  # uint32 on the wire
_CLASS_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)

_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN: Final = ("hidden_size", "n_embd", "d_model", "n_embed")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HEAD_DIM: Final = ("head_dim", "kv_channels", "attention_head_dim")
# Families whose head width has a default of its own where the config leaves it out.
_OWN_HEAD_DIM: Final = (
    "gemma",
    "vaultgemma",
    "qwen3",
    "qwen4",
    "gpt_oss",
    "glm4",
    "helium",
    "llama4",
)
_CONTEXT: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What config.json states; None where it does not."""

    architecture: str  # the class, or the family where no class is named
    context_tokens_max: int | None
    dtype: str | None  # as torch spells it, for example "bfloat16"
    tied: bool  # the output layer is the embedding again
    layers: int | None
    kv_heads: int | None
    head_dim: int | None

    @property
    def kv_elements_per_token(self) -> int:
        """Return the numbers that the key/value cache keeps for a token; 0 if not derivable."""
        return 2 * (self.layers or 0) * (self.kv_heads or 0) * (self.head_dim or 0)


def parse_config(raw: bytes) -> ModelConfig:
    """Return what the config.json in `raw` states.

    Raises MalformedError. Whether a worker can build the architecture, only a worker knows.
    """
    top = parse_object(raw, _RULES)
    text = top.get("text_config")
    facts = {**top, **text} if is_object(text) else top
    heads = _count(facts, _HEADS)
    hidden = _count(facts, _HIDDEN)
    latent = facts.get("kv_lora_rank") is not None  # caches something other than keys and values
    family = _text(facts, ("model_type",)) or ""
    return ModelConfig(
        architecture=_architecture(top),
        context_tokens_max=_context(facts),
        dtype=_text(facts, ("dtype", "torch_dtype")),
        tied=facts.get("tie_word_embeddings") is True,
        layers=_count(facts, _LAYERS),
        kv_heads=None if latent else _kv_heads(facts, family, heads),
        head_dim=_head_dim(facts, family, hidden, heads),
    )


def _architecture(top: dict[str, object]) -> str:
    named = top.get("architectures")
    if named is not None and not is_list(named):
        raise MalformedError(f"has {described(named)} as architectures, not a list")
    given = named[0] if named else top.get("model_type")
    if given is None:
        raise MalformedError("names neither architectures nor a model_type")
    if not isinstance(given, str) or not _CLASS_NAME.fullmatch(given):
        shown = shorten(given) if isinstance(given, str) else described(given)
        raise MalformedError(f"has {shown} as architecture, which is no class name")
    return given


def _count(facts: dict[str, object], names: tuple[str, ...]) -> int | None:
    """Return the first of `names` that is set. A list (one value per layer) counts as unknown."""
    for name in names:
        value = facts.get(name)
        if value is None:
            continue
        if is_list(value):
            return None
        if not is_integer(value) or not 1 <= value <= _COUNT_MAX:
            given = str(value) if is_integer(value) else described(value)
            raise MalformedError(f"must have 1 to {_COUNT_MAX} as {name}. Given: {given}")
        return value
    return None


def _context(facts: dict[str, object]) -> int | None:
    for name in _CONTEXT:
        value = facts.get(name)
        if value is None or value == -1:  # -1 says "without bound"
            continue
        if not is_integer(value) or not 1 <= value <= _CONTEXT_MAX:
            given = str(value) if is_integer(value) else described(value)
            raise MalformedError(f"must have 1 to {_CONTEXT_MAX} as {name}. Given: {given}")
        return value
    return None


def _kv_heads(facts: dict[str, object], family: str, heads: int | None) -> int | None:
    # Falcon's first architecture and StarCoder share one key/value head and may still state others.
    if facts.get("multi_query") is True and facts.get("new_decoder_architecture") is not True:
        return 1
    if family == "falcon" and facts.get("new_decoder_architecture") is not True:
        return heads
    stated = any(facts.get(name) is not None for name in _KV_HEADS)
    return _count(facts, _KV_HEADS) if stated else heads


def _head_dim(
    facts: dict[str, object], family: str, hidden: int | None, heads: int | None
) -> int | None:
    stated = _count(facts, _HEAD_DIM)
    if stated is not None or hidden is None or heads is None:
        return stated
    return None if family.startswith(_OWN_HEAD_DIM) else hidden // heads


def _text(facts: dict[str, object], names: tuple[str, ...]) -> str | None:
    values = (facts.get(name) for name in names)
    return next((value for value in values if isinstance(value, str)), None)
