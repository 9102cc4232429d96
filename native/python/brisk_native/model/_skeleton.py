"""A model without weights, built from its config alone and compared with what is stored.

Names, prefixes, ties and exceptions are those of `transformers.from_pretrained`: its own functions
decide them here too. Nothing in a model's folder is executed: no remote code, no pickle.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights, no_tie_weights

from brisk_native._types import InvalidModelError
from brisk_native._views import torch_type
from brisk_native._weights import Weights
from brisk_native.model._comparison import compare, compare_converted
from brisk_native.model._config import CONFIG_FILE, library_words, model_class, read_config
from brisk_native.model._dtypes import DefaultDtype

_COMPUTE_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Building a model patches transformers and torch for a moment, process-wide: one at a time.
building: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A model on the meta device and where each stored tensor belongs in it."""

    model: PreTrainedModel
    dtype: torch.dtype
    """What the model computes in."""
    targets: Mapping[str, str]
    """Stored tensor -> parameter or buffer."""
    is_converted: bool
    """Stored tensors must be merged or split, so cannot be used in place."""
    uninitialized: frozenset[str]
    """Missing by right: transformers initializes them."""


def build_skeleton(folder: Path, weights: Weights, *, dtype: torch.dtype | None = None) -> Skeleton:
    """Return the skeleton of the model in `folder` that its `weights` fit. Blocks.

    It allocates no weights. `dtype` is what to compute in; None is what most bytes are stored in.

    Raises InvalidModelError naming file, tensor, expected and found, and UnsupportedTypeError.
    """
    stored = weights.tensors
    for _, tensor in stored.values():
        torch_type(tensor)
    config = read_config(folder)
    chosen = model_class(config)
    dtype = dtype or _stored_dtype(weights)
    with building:
        model = _build(chosen, config, dtype, folder)
    renamings, converters = _conversions(model)
    expected = model.state_dict()
    prefix = model.base_model_prefix
    targets: dict[str, str] = {}
    is_converted = False
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected:  # as transformers: it may be right but for the prefix
            direct, _ = rename_source_key(name, [], [], prefix, expected)
            target, pattern = (direct, None) if direct in expected else (target, pattern)
        targets[name] = target
        is_converted = is_converted or pattern is not None
    if is_converted:
        uninitialized = compare_converted(model, dtype, weights)
    else:
        uninitialized = compare(model, expected, targets, weights)
    return Skeleton(
        model=model,
        dtype=dtype,
        targets={name: target for name, target in targets.items() if target in expected},
        is_converted=is_converted,
        uninitialized=uninitialized,
    )


def _conversions(
    model: PreTrainedModel,
) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    found = get_model_conversion_mapping(model)
    renamings = [c for c in found if isinstance(c, WeightRenaming)]
    return renamings, [c for c in found if isinstance(c, WeightConverter)]


def _stored_dtype(weights: Weights) -> torch.dtype:
    """Return the stored type of most bytes: weights are used in place, as they are stored."""
    totals = dict.fromkeys(_COMPUTE_DTYPES, 0)
    for _, tensor in weights.tensors.values():
        if tensor.dtype in totals:
            totals[tensor.dtype] += tensor.size_bytes
    most = max(totals, key=lambda dtype: totals[dtype])
    if totals[most] == 0:
        reason = f"has no tensor of type {', '.join(_COMPUTE_DTYPES)}"
        raise InvalidModelError(weights.files[0].name, None, reason)
    return _COMPUTE_DTYPES[most]


def _build(
    chosen: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, folder: Path
) -> PreTrainedModel:
    config.dtype = dtype
    for name in config.sub_configs:
        if (sub_config := getattr(config, name, None)) is not None:
            sub_config.dtype = dtype
    try:
        with no_init_weights(), no_tie_weights(), torch.device("meta"), DefaultDtype(dtype):
            model = chosen(config)
    except Exception as error:  # a config's values go through any model's code
        raise InvalidModelError(CONFIG_FILE, None, library_words(error, folder)) from error
    model.train(mode=False)
    return model
