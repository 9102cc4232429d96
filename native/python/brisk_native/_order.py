"""In which order a model uses its tensors, told by their names alone.

The stored form lays tensors out in this order and loading tells by these groups when a layer is
complete. The names are those that Hugging Face's models have in common: a list of numbered layers
(`model.layers.3.`, `transformer.h.3.`, `model.decoder.layers.3.`, ...), what is used before it,
and what is used after it. Vision and audio towers, and the encoder of an encoder-decoder model,
are such models of their own, used between the embedding and the layers. A name that says nothing
is taken for something small that is needed early: it goes to the end of the first group, in the
order given, what belongs to one module together. A wrong guess costs speed, never correctness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_LISTS: Final = frozenset({"layers", "layer", "h", "blocks", "block", "resblocks"})
_TOWERS: Final = frozenset(
    {"vision_tower", "vision_model", "vision_encoder", "visual", "audio_tower", "audio_encoder"}
)
_PROJECTORS: Final = frozenset(
    {"multi_modal_projector", "mm_projector", "vision_projection", "connector", "embed_vision"}
)
_ENCODER: Final = "encoder"
_DECODER: Final = "decoder"


def _ranks(*places: str) -> dict[str, int]:
    """Return the rank of each word; those of one place share it."""
    return {word: rank for rank, place in enumerate(places) for word in place.split()}


_EMBEDDINGS: Final = _ranks(
    "embed_tokens wte word_embeddings embed_in shared tok_embeddings",
    "wpe embed_positions position_embeddings wpe_embeddings token_type_embeddings",
)
_HEADS: Final = _ranks(
    "norm ln_f final_layer_norm final_layernorm norm_f final_norm ln_out post_layernorm ln_post",
    "project_out merger pooler",
    "lm_head embed_out output_layer score classifier cls qa_outputs",
)
# The parts of a layer, in the order of use: norm, attention, norm, feed-forward, norm.
_PARTS: Final = _ranks(
    "input_layernorm ln_1 ln1 norm_1 norm1 norm layer_norm1 layernorm_before self_attn_layer_norm "
    "attention_norm ln_attn ln_mlp operator_norm",
    "self_attn attn attention self_attention att SelfAttention mixer linear_attn mamba conv",
    "encoder_attn_layer_norm ln_cross_attn",
    "encoder_attn crossattention cross_attn EncDecAttention",
    "post_attention_layernorm post_attention_norm",
    "pre_feedforward_layernorm ln_2 ln2 norm_2 norm2 layer_norm2 layernorm_after final_layer_norm "
    "ffn_norm",
    "mlp fc1 fc2 ffn feed_forward block_sparse_moe moe intermediate output DenseReluDense",
    "post_feedforward_layernorm",
)
_WORDS: Final = _ranks(
    "gate router",
    "q_a_proj kv_a_proj_with_mqa q_a_layernorm kv_a_layernorm q_b_proj kv_b_proj qkv_proj "
    "c_attn query_key_value qkv Wqkv q_proj q query gate_proj w1 gate_up_proj fc1 c_fc wi "
    "dense_h_to_4h in_proj",
    "k_proj k key up_proj w3",
    "v_proj v value",
    "q_norm",
    "k_norm",
    "o_proj o out_proj c_proj dense down_proj w2 fc2 wo dense_4h_to_h",
)
_ENDINGS: Final = _ranks("qweight weight", "qzeros scales weight_scale weight_scale_inv", "bias")
_UNKNOWN: Final = 100
_DIGITS_MAX: Final = 18

_Key: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Tensors that a model needs together."""

    name: str
    """`embed`, `layers.0` and so on by number, `head`; of towers with the tower's name in front,
    as in `vision_tower.layers.0`."""
    tensors: tuple[str, ...]
    """Their names, in the order of use; never empty."""


@dataclass(slots=True)
class _Stack:
    """One numbered list of layers with what comes before and after it; names with sort keys."""

    before: list[tuple[_Key, str]] = field(default_factory=list)
    after: list[tuple[_Key, str]] = field(default_factory=list)
    lists: dict[str, dict[int, list[tuple[_Key, str]]]] = field(default_factory=dict)


def execution_order(names: Iterable[str]) -> tuple[LayerGroup, ...]:
    """Return `names`, each once, as groups in the order in which a model uses them.

    The first group is `embed`, the last `head`, as far as there are such tensors; a tied head is
    not stored and so not there. Between them come the layers by number, towers before them.
    Within a layer: norm, attention, norm, feed-forward. The result depends on the names and, for
    those it does not know, on their order.
    """
    given = tuple(dict.fromkeys(names))
    stacks: dict[str, _Stack] = {}
    decoders = _paths_of_decoders(given)
    modules: dict[str, int] = {}  # in the order given, so that weight and bias stay together
    for name in given:
        parts = name.split(".")
        module = modules.setdefault(name[: name.rfind(".") + 1] or name, len(modules))
        stack = stacks.setdefault(_tower(parts, decoders), _Stack())
        _place(stack, name, parts, (module, _ENDINGS.get(parts[-1], _UNKNOWN)))
    main = stacks.pop("", _Stack())
    towers = sorted(stacks.items(), key=lambda item: _is_projector(item[0]))
    groups = [_group("embed", main.before)]
    for tower, stack in towers:
        groups += _tower_groups(tower, stack)
    groups += _layer_groups("", main)
    groups.append(_group("head", main.after))
    return tuple(group for group in groups if group.tensors)


def _paths_of_decoders(names: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """Return where there is something called decoder: an encoder beside it is a tower."""
    found = set()
    for name in names:
        parts = name.split(".")
        if _DECODER in parts:
            found.add(tuple(parts[: parts.index(_DECODER)]))
    return frozenset(found)


def _tower(parts: Sequence[str], decoders: frozenset[tuple[str, ...]]) -> str:
    """Return the path of the tower that a tensor belongs to; "" for the model proper."""
    for place, part in enumerate(parts):
        is_encoder = part == _ENCODER and tuple(parts[:place]) in decoders
        if part in _TOWERS or part in _PROJECTORS or is_encoder:
            return ".".join(parts[: place + 1])
        if part in _LISTS:
            return ""
    return ""


def _is_projector(tower: str) -> bool:
    return tower.rpartition(".")[2] in _PROJECTORS


def _place(stack: _Stack, name: str, parts: Sequence[str], last: _Key) -> None:
    """Put a tensor where it belongs; `last` tells it from others that are used alike."""
    for place, part in enumerate(parts[:-2]):
        if part in _LISTS and _is_number(parts[place + 1]):
            layers = stack.lists.setdefault(".".join(parts[: place + 1]), {})
            key = (*_use_key(parts[place + 2 :]), *last)
            layers.setdefault(_number(parts[place + 1]), []).append((key, name))
            return
    rank = _head_rank(parts)
    if rank < _UNKNOWN:
        stack.after.append(((rank, *last), name))
    else:
        stack.before.append(((_first_rank(parts, _EMBEDDINGS), *last), name))


def _head_rank(parts: Sequence[str]) -> int:
    """Return when in the head a tensor is used; a norm inside of an embedding is not."""
    for place, part in enumerate(parts):
        if part in _HEADS:
            return _HEADS[part]
        if place + 1 < len(parts) and "embed" in part:
            return _UNKNOWN
    return _UNKNOWN


def _first_rank(parts: Iterable[str], ranks: Mapping[str, int]) -> int:
    return next((ranks[part] for part in parts if part in ranks), _UNKNOWN)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _number(part: str) -> int:
    return int(part[:_DIGITS_MAX])


def _tower_groups(tower: str, stack: _Stack) -> list[LayerGroup]:
    if not stack.lists:
        return [_group(tower, stack.before), _group(tower, stack.after)]
    return [
        _group(f"{tower}.embed", stack.before),
        *_layer_groups(f"{tower}.", stack),
        _group(f"{tower}.head", stack.after),
    ]


def _layer_groups(prefix: str, stack: _Stack) -> list[LayerGroup]:
    """Return the layers of a stack: those of its longest list, then those of any other."""
    groups = []
    by_length = sorted(stack.lists.items(), key=lambda item: -len(item[1]))
    for place, (path, layers) in enumerate(by_length):
        name = path if place else f"{prefix}layers"
        groups += [_group(f"{name}.{number}", keyed) for number, keyed in sorted(layers.items())]
    return groups


def _group(name: str, keyed: Sequence[tuple[_Key, str]]) -> LayerGroup:
    tensors = tuple(tensor for _, tensor in sorted(keyed, key=lambda item: item[0]))
    return LayerGroup(name=name, tensors=tensors)


def _use_key(parts: Sequence[str]) -> _Key:
    """Return what sorts the tensors of one layer: part, expert, matrix."""
    inner = -1
    if len(parts) > 1 and parts[0] == "layer" and _is_number(parts[1]):
        inner, parts = _number(parts[1]), parts[2:]  # T5 numbers the parts of a layer, too
    expert = next((_number(part) for part in parts if _is_number(part)), -1)
    part, word = _first_rank(parts, _PARTS), _first_rank(reversed(parts), _WORDS)
    return inner, part, expert, word
