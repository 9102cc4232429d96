"""What a folder's config.json says the model is: read without running anything from the folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from brisk_native._types import InvalidModelError, shown

CONFIG_FILE: Final = "config.json"
_WORDS_CHARS_MAX: Final = 300


def read_config(folder: Path) -> PretrainedConfig:
    """Return a folder's config. Raises InvalidModelError."""
    if not (folder / CONFIG_FILE).exists():
        raise InvalidModelError(CONFIG_FILE, None, "is missing from the folder")
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder, local_files_only=True)
        _check_known(raw)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except InvalidModelError:
        raise
    except Exception as error:  # a config's values go through any model's code
        raise InvalidModelError(CONFIG_FILE, None, library_words(error, folder)) from error
    if not isinstance(config, PretrainedConfig):
        raise InvalidModelError(CONFIG_FILE, None, "is not a model's config")
    if getattr(config, "quantization_config", None) is not None:
        reason = "the weights are quantized, which is not supported"
        raise InvalidModelError(CONFIG_FILE, None, reason)
    return config


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the causal language model that `config` names.

    Raises InvalidModelError if transformers has none, or one without a key/value cache.
    """
    architectures = config.architectures or []
    for architecture in architectures[:1]:
        if not hasattr(transformers, architecture):
            reason = f"architecture {shown(architecture)} is not known to transformers"
            raise InvalidModelError(CONFIG_FILE, None, reason)
    found = AutoModelForCausalLM._model_mapping.get(type(config), None)  # noqa: SLF001 - no public way
    candidates = found if isinstance(found, tuple | list) else (found,)
    by_name = {c.__name__: c for c in candidates if c is not None}
    if not by_name:
        reason = f"model type {shown(config.model_type)} is no causal language model"
        raise InvalidModelError(CONFIG_FILE, None, reason)
    chosen: type[PreTrainedModel] = next(
        (by_name[name] for name in architectures if name in by_name), next(iter(by_name.values()))
    )
    if "past_key_values" not in inspect.signature(chosen.forward).parameters:
        reason = f"{chosen.__name__} keeps no key/value cache, which is needed"
        raise InvalidModelError(CONFIG_FILE, None, reason)
    return chosen


def library_words(error: Exception, folder: Path) -> str:
    """Return the beginning of what a library says of a model in `folder`, without its path."""
    lines = str(error).replace(str(folder), "the model").strip().splitlines()
    return lines[0][:_WORDS_CHARS_MAX] if lines else type(error).__name__


def _check_known(raw: Mapping[str, object]) -> None:
    """Refuse a model type that transformers lacks; its own words suggest to upgrade instead."""
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if model_type in CONFIG_MAPPING:
        return
    name = architectures[0] if isinstance(architectures, list) and architectures else model_type
    reason = (
        f"architecture {shown(str(name))} (model type {shown(str(model_type))}) is not known "
        f"to transformers {transformers.__version__}"
    )
    raise InvalidModelError(CONFIG_FILE, None, reason)
