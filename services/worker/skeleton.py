"""A model without weights, built from its config alone and compared with what is stored.

Names, prefixes, ties and exceptions are those of `transformers.from_pretrained`: its own functions
decide them here too. Nothing in a model's folder is executed: no remote code, no pickle.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights, no_tie_weights

from services.common.errors import BriskError
from services.common.names import shorten
from services.worker.checkpoint import Checkpoint, invalid_model, library_words
from services.worker.comparison import compare, compare_converted
from services.worker.dtypes import TORCH_DTYPES, DefaultDtype

CONFIG_FILE: Final = "config.json"

_COMPUTE_DTYPES: Final = ("F32", "F16", "BF16")

# Building a model patches transformers and torch for a moment, process-wide: one at a time.
building: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A model on the meta device and where each stored tensor belongs in it."""

    model: PreTrainedModel
    dtype: torch.dtype
    targets: Mapping[str, str]  # stored tensor -> parameter or buffer
    is_converted: bool  # stored tensors must be merged or split, so cannot be used in place
    uninitialized: frozenset[str]  # missing by right: transformers initializes them


def build_skeleton(checkpoint: Checkpoint) -> Skeleton:
    """Return the skeleton that the checkpoint's tensors fit. Blocks; allocates no weights.

    Raises InvalidArgumentError (INVALID_MODEL) naming file, tensor, expected and found.
    """
    config = read_config(checkpoint.folder)
    model_class = _model_class(config)
    dtype = _compute_dtype(checkpoint)
    with building:
        model = _build(model_class, config, dtype, checkpoint.folder)
    renamings, converters = _conversions(model)
    expected = model.state_dict()
    prefix = model.base_model_prefix
    targets: dict[str, str] = {}
    is_converted = False
    for name in checkpoint.tensors:
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected:  # as transformers: it may be right but for the prefix
            direct, _ = rename_source_key(name, [], [], prefix, expected)
            target, pattern = (direct, None) if direct in expected else (target, pattern)
        targets[name] = target
        is_converted = is_converted or pattern is not None
    if is_converted:
        uninitialized = compare_converted(model, dtype, checkpoint)
    else:
        uninitialized = compare(model, expected, targets, checkpoint)
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


def read_config(folder: Path) -> PretrainedConfig:
    """Return a folder's config. Raises InvalidArgumentError (INVALID_MODEL)."""
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder, local_files_only=True)
        _check_known(raw)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BriskError:
        raise
    except Exception as error:  # a config's values go through any model's code
        raise invalid_model(CONFIG_FILE, library_words(error, folder)) from error
    if not isinstance(config, PretrainedConfig):
        raise invalid_model(CONFIG_FILE, "is not a model's config")
    if getattr(config, "quantization_config", None) is not None:
        raise invalid_model(CONFIG_FILE, "the weights are quantized, which is not supported")
    return config


def _check_known(raw: Mapping[str, object]) -> None:
    """Refuse a model type that transformers lacks; its own words suggest to upgrade instead."""
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if model_type in CONFIG_MAPPING:
        return
    name = architectures[0] if isinstance(architectures, list) and architectures else model_type
    raise invalid_model(
        CONFIG_FILE,
        f"architecture {shorten(str(name))} (model type {shorten(str(model_type))}) is not known "
        f"to transformers {transformers.__version__}",
    )


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    architectures = config.architectures or []
    for architecture in architectures[:1]:
        if not hasattr(transformers, architecture):
            raise invalid_model(
                CONFIG_FILE, f"architecture {shorten(architecture)} is not known to transformers"
            )
    found = AutoModelForCausalLM._model_mapping.get(type(config), None)  # noqa: SLF001 - no public way
    candidates = found if isinstance(found, tuple | list) else (found,)
    by_name = {c.__name__: c for c in candidates if c is not None}
    if not by_name:
        raise invalid_model(
            CONFIG_FILE, f"model type {shorten(config.model_type)} is no causal language model"
        )
    model_class: type[PreTrainedModel] = next(
        (by_name[name] for name in architectures if name in by_name), next(iter(by_name.values()))
    )
    if "past_key_values" not in inspect.signature(model_class.forward).parameters:
        raise invalid_model(
            CONFIG_FILE, f"{model_class.__name__} keeps no key/value cache, which is needed"
        )
    return model_class


def _compute_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the stored type of most bytes: weights are used in place, as they are stored."""
    totals = dict.fromkeys(_COMPUTE_DTYPES, 0)
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in totals:
            totals[tensor.dtype] += tensor.size_bytes
    most = max(totals, key=lambda dtype: totals[dtype])
    if totals[most] == 0:
        file = checkpoint.files[0].name
        raise invalid_model(file, f"has no tensor of type {', '.join(_COMPUTE_DTYPES)}")
    return TORCH_DTYPES[most]


def _build(
    model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, folder: Path
) -> PreTrainedModel:
    config.dtype = dtype
    for name in config.sub_configs:
        if (sub_config := getattr(config, name, None)) is not None:
            sub_config.dtype = dtype
    try:
        with no_init_weights(), no_tie_weights(), torch.device("meta"), DefaultDtype(dtype):
            model = model_class(config)
    except Exception as error:  # a config's values go through any model's code
        raise invalid_model(CONFIG_FILE, library_words(error, folder)) from error
    model.train(mode=False)
    return model
