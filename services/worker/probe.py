"""Whether a model's sequences can be packed: tried on the model itself, when it is loaded.

No list of architectures could be complete, and a model that is packed wrongly gives wrong tokens
without a word. So two short sequences are shown to the model packed, in parts and with scattered
blocks, and then each alone with the model's own attention; the logits must agree. As many layers
take part as there are kinds of layers. What is found holds for all models of the same config.

For an exact decoder the bits must agree, too, among different ways to pack the same sequence.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from services.worker.attention import NAME, LayerShape
from services.worker.blocks import BlockPool
from services.worker.packed import PackedModel, PackedStrand, Packing
from services.worker.ports import Share
from services.worker.sampler import Logits
from services.worker.serial import SerialDecoder, input_weight

EXACT_ROWS: Final = 16  # more cost more when there are few sequences, fewer when there are many
_KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_BATCH_DEPENDENT_ROPES: Final = ("dynamic", "longrope")  # look at the longest sequence of a batch
_INDEX_NAMES: Final = frozenset({"layer_idx", "layer_id", "layer_index", "idx", "training"})
_TOLERANCE: Final = {torch.float32: 2e-3, torch.float64: 2e-3}  # of the largest logit
_TOLERANCE_HALF: Final = 0.1
_KNOWN_MAX: Final = 256
_OUTPUTS: Final = 256  # logits that are compared: a head may take longer than some layers

_FIRST: Final = 4  # tokens of the one sequence that is tried
_SECOND: Final = 6  # and of the other
# What is shown of them, step by step: (sequence, from, to).
_STEPS: Final = (((0, 0, 2), (1, 0, 3)), ((1, 3, 5), (0, 2, 3)), ((0, 3, 4), (1, 5, 6)))
_ALONE: Final = tuple(((0, token, token + 1),) for token in range(_FIRST))
_AT_ONCE: Final = (((1, 0, 5), (0, 0, _FIRST)),)
_Seen: TypeAlias = dict[tuple[int, int], Logits]  # (sequence, tokens seen) -> what follows


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a model is decoded."""

    packing: Packing | None  # None: one sequence per pass
    reason: str = ""  # why
    caches: bool = True  # transformers' cache is of use to it
    is_lasting: bool = True  # holds for others of the same config


class _UnpackableError(Exception):
    """Why not."""


class _NotNumbersError(_UnpackableError):
    """The weights are no good, which says nothing of others of the same config."""


class Prober:
    """Remembers what was found out. Safe to use from several threads."""

    def __init__(self, *, exact: bool) -> None:
        """Ask for packing that gives the same bits in any company if `exact`."""
        self._exact = exact
        self._known: OrderedDict[str, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def probe(self, model: PreTrainedModel) -> Verdict:
        """Say how to decode `model`; if packed, it attends by `attention` from now on.

        Blocks for a few passes of some tokens through some layers, unless one like it was seen.
        """
        name = _fingerprint(model)
        with self._lock:
            known = self._known.get(name)
        if known is None:
            known = self._try(model)
            self._remember(name, known)
        elif known.packing is not None:
            model.set_attn_implementation(NAME)
        return known

    def _remember(self, name: str, verdict: Verdict) -> None:
        with self._lock:
            if verdict.is_lasting:
                self._known[name] = verdict
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)

    def _try(self, model: PreTrainedModel) -> Verdict:
        own = _attention_of(model)
        is_lasting = True
        try:
            _refuse_by_config(model)
            return Verdict(packing=_tried(model, exact=self._exact))
        except _UnpackableError as problem:
            reason = str(problem)
            is_lasting = not isinstance(problem, _NotNumbersError)
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything
            reason = f"packed sequences make it raise {type(error).__name__}"
        if _attention_of(model) != own:
            model.set_attn_implementation(own)
        caches = not is_lasting or _is_cached(model)
        return Verdict(packing=None, reason=reason, caches=caches, is_lasting=is_lasting)


def _fingerprint(model: PreTrainedModel) -> str:
    facts = model.config.to_dict()
    facts.pop("_name_or_path", None)
    return json.dumps([type(model).__name__, str(model.dtype), facts], default=str, sort_keys=True)


def _text_config(model: PreTrainedModel) -> PretrainedConfig:
    return model.config.get_text_config()


def _attention_of(model: PreTrainedModel) -> str:
    return str(_text_config(model)._attn_implementation)  # noqa: SLF001 - there is no other way


def _refuse_by_config(model: PreTrainedModel) -> None:
    """Raise _UnpackableError for what a short trial could not find."""
    config = _text_config(model)
    if model.config.is_encoder_decoder:
        raise _UnpackableError("it has an encoder")
    if odd := set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS:
        raise _UnpackableError(f"it has layers of type {', '.join(sorted(odd))}")
    for rope in _rope_types(getattr(config, "rope_parameters", None)):
        if any(each in rope for each in _BATCH_DEPENDENT_ROPES):
            raise _UnpackableError(f"its {rope} positions depend on other sequences")


def _rope_types(parameters: object) -> Iterator[str]:
    if isinstance(parameters, Mapping):
        for name, value in parameters.items():
            if name in ("rope_type", "type"):
                yield str(value)
            else:
                yield from _rope_types(value)


def _tried(model: PreTrainedModel, *, exact: bool) -> Packing:
    """Return how to pack. Raises _UnpackableError, and what the model raises."""
    sequences = _sequences(model)
    with _some_layers(model) as kinds:
        with _some_outputs(model):
            expected = [_alone(model, tokens) for tokens in sequences]
            model.set_attn_implementation(NAME)
            if _attention_of(model) != NAME:
                raise _UnpackableError("its attention cannot be replaced")
            seen, found = _shown(model, sequences, _STEPS, rows=None)
        _compare(seen, expected, model.dtype)
        layers = _all_layers(kinds, found, _text_config(model))
        rows = _exact_rows(model, sequences) if exact else None
    return Packing(layers=layers, rows=rows)


def _sequences(model: PreTrainedModel) -> list[list[int]]:
    vocabulary = input_weight(model).shape[0]
    return [
        [(5 + 7 * number + 3 * token * token) % vocabulary for token in range(size)]
        for number, size in enumerate((_FIRST, _SECOND))
    ]


def _is_cached(model: PreTrainedModel) -> bool:
    """Return whether transformers' cache lets the model go on from what it has seen."""
    tokens = _sequences(model)[1]
    decoder = SerialDecoder(model)
    seen: _Seen = {}
    try:
        with _some_layers(model), _some_outputs(model):
            expected = _alone(model, tokens)
            strand = decoder.open((), len(tokens))
            for part in (tokens[:3], tokens[3:4], tokens[4:]):
                share = Share(strand=strand, token_ids=part, wants_logits=True)
                (logits,) = decoder.step((share,))
                if logits is not None:
                    seen[0, strand.seen] = logits
        _compare(seen, [expected], model.dtype)
    except Exception:  # noqa: BLE001 - a model's code may raise anything
        return False
    return True


def _alone(model: PreTrainedModel, tokens: Sequence[int]) -> Logits:
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([tokens], device=input_weight(model).device), use_cache=False
        )
        logits: Logits = output.logits[0].float().cpu().numpy()
    if not np.isfinite(logits).all():
        raise _NotNumbersError("its logits are not numbers")
    return logits


def _shown(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    steps: Sequence[Sequence[tuple[int, int, int]]],
    *,
    rows: int | None,
) -> tuple[_Seen, dict[int, LayerShape]]:
    """Show the sequences packed, and return the logits and what the layers were like."""
    pool = BlockPool(_FIRST + _SECOND, 2, shares_prefixes=False)
    tables = [pool.open((), 0) for _ in sequences]
    strands = [PackedStrand(pool, table, []) for table in tables if table is not None]
    packed = PackedModel(model, pool, rows=rows)
    seen: _Seen = {}
    for step in steps:
        shares = []
        for number, start, stop in step:
            pool.extend(strands[number].table, stop)  # in turns, so that blocks are scattered
            shown = sequences[number][start:stop]
            shares.append(Share(strand=strands[number], token_ids=shown, wants_logits=True))
        for (number, _, stop), share, logits in zip(step, shares, packed.see(shares), strict=True):
            strands[number].tokens.extend(share.token_ids)
            if logits is not None:
                seen[number, stop] = logits
    return seen, packed.stored.shapes


def _compare(seen: _Seen, expected: Sequence[Logits], dtype: torch.dtype) -> None:
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_HALF)
    for (number, tokens), logits in seen.items():
        right = expected[number][tokens - 1]
        largest = float(np.abs(right).max())
        if not np.abs(logits - right).max() <= tolerance * largest:  # not a number: not equal
            raise _UnpackableError("packed sequences give other logits")


def _exact_rows(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> int:
    """Return the number of rows at which the bits do not depend on the company."""
    choices = (1,) if _has_experts(_text_config(model)) else (EXACT_ROWS, 1)
    for rows in choices:
        mixed, alone, at_once = (
            _shown(model, sequences, steps, rows=rows)[0] for steps in (_STEPS, _ALONE, _AT_ONCE)
        )
        same = [np.array_equal(mixed[at], alone[at]) for at in mixed if at[0] == 0]
        if all(same) and np.array_equal(at_once[0, _FIRST], alone[0, _FIRST]):
            return rows
    raise _UnpackableError("a sequence's bits depend on its company")


def _has_experts(config: PretrainedConfig) -> bool:
    """Return whether rows are sorted by expert: then the company decides the size of products."""
    facts = config.to_dict().items()
    return any("expert" in name and isinstance(count, int) and count > 1 for name, count in facts)


def _all_layers(
    kinds: Sequence[object], found: Mapping[int, LayerShape], config: PretrainedConfig
) -> tuple[LayerShape, ...]:
    """Return the shape of every layer: of those not tried, that of the first of the same kind."""
    shapes: dict[object, LayerShape] = {}
    tried = len(set(found))
    if sorted(found) != list(range(tried)) or tried == 0:
        raise _UnpackableError("its layers cannot be told apart")
    if not kinds:
        kinds = list(range(tried))
    for index, kind in enumerate(kinds[:tried]):
        shapes.setdefault(kind, found[index])
    if any(kind not in shapes for kind in kinds):
        raise _UnpackableError("not every kind of layer attends")
    layers = tuple(shapes[kind] for kind in kinds)
    _refuse_forgotten(layers, config)
    return layers


def _refuse_forgotten(layers: Sequence[LayerShape], config: PretrainedConfig) -> None:
    """Raise _UnpackableError if the config speaks of something that the layers did not ask for."""
    types = getattr(config, "layer_types", None)
    windowed = [layer.kind.window is not None for layer in layers]
    if types is not None:
        if any(
            kind == "sliding_attention" and not is_windowed
            for kind, is_windowed in zip(types, windowed, strict=False)
        ):
            raise _UnpackableError("a layer does not tell its window")
    elif getattr(config, "sliding_window", None) is not None and not any(windowed):
        raise _UnpackableError("no layer tells its window")
    caps = [layer.kind.softcap is not None for layer in layers]
    if getattr(config, "attn_logit_softcapping", None) is not None and not all(caps):
        raise _UnpackableError("a layer does not tell its cap")


@contextmanager
def _some_layers(model: PreTrainedModel) -> Iterator[list[object]]:
    """Cut the model for the block to the first layers that have one of every kind.

    Yields the kind of every layer, or nothing if the layers could not be found: then all are there.
    """
    count = getattr(_text_config(model), "num_hidden_layers", 0)
    stacks = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(stacks) != 1:
        yield []
        return
    owner, name, stack = stacks[0]
    types = getattr(_text_config(model), "layer_types", None) or [""] * count
    kinds: list[object] = [(types[i], _kind(layer)) for i, layer in enumerate(stack)]
    first = [kinds.index(kind) for kind in set(kinds)]
    setattr(owner, name, nn.ModuleList(stack[: max(2, max(first) + 1)]))
    try:
        yield kinds
    finally:
        setattr(owner, name, stack)


@contextmanager
def _some_outputs(model: PreTrainedModel) -> Iterator[None]:
    """Have the model tell for the block the logits of its first tokens only, if it can."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear) or head.out_features <= _OUTPUTS:
        yield
        return
    weight, bias = head.weight, head.bias
    head.weight = nn.Parameter(weight[:_OUTPUTS], requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias[:_OUTPUTS], requires_grad=False)
    try:
        yield
    finally:
        head.weight, head.bias = weight, bias


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Return what tells layers apart that do different things: their parts and their settings."""
    return tuple(
        (
            path,
            type(module).__name__,
            tuple(
                (name, value)
                for name, value in sorted(vars(module).items())
                if isinstance(value, bool | int | float | str) and name not in _INDEX_NAMES
            ),
        )
        for path, module in layer.named_modules()
    )
