"""Let the parts of a model that is spread over devices get their inputs where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel


def bring_inputs(model: PreTrainedModel, paths: Iterable[str]) -> None:
    """From now on each module of `paths` moves what it is called with to its own device.

    Tensors in tuples, lists and dicts are moved too; modules without tensors pass them on.
    """
    for path in paths:
        if path:
            module = model.get_submodule(path)
            module.register_forward_pre_hook(_bring, with_kwargs=True, prepend=True)


def _bring(
    module: torch.nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = next(chain(module.parameters(), module.buffers()), None)
    if first is None or first.is_meta:
        return inputs, dict(named)
    return _moved(inputs, first.device), _moved(dict(named), first.device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    if type(value) is dict:
        return {key: _moved(item, device) for key, item in value.items()}
    return value
