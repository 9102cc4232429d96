"""Compare what a model needs with what is stored; the first difference becomes the refusal.

What transformers' own loading excuses (tied weights, buffers that older versions stored) is
excused here by its own rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.loading_report import LoadStateDictInfo

from services.common.names import shorten
from services.worker.checkpoint import Checkpoint, StoredTensor, invalid_model
from services.worker.dtypes import TORCH_DTYPES


def compare(
    model: PreTrainedModel,
    expected: Mapping[str, torch.Tensor],
    targets: Mapping[str, str],
    checkpoint: Checkpoint,
) -> frozenset[str]:
    """Return the tensors that are missing by right: the model initializes them itself.

    `targets` says which parameter each stored tensor is. Raises InvalidArgumentError
    (INVALID_MODEL) naming file, tensor, expected and found.
    """
    found: dict[str, StoredTensor] = {}
    for name, target in targets.items():
        tensor = checkpoint.tensors[name]
        if target in found:
            problem = f"stands for the same parameter as {shorten(found[target].name)}"
            raise invalid_model(tensor.file, problem, tensor=name)
        found[target] = tensor
    for target in sorted(expected.keys() & found.keys()):
        _refuse_misfit(found[target], expected[target])
    missing, unexpected = _not_excused(
        model, expected.keys() - found.keys(), found.keys() - expected.keys()
    )
    if unexpected:
        worst = found[min(unexpected)]
        raise invalid_model(worst.file, _unexpected(model, len(unexpected)), tensor=worst.name)
    _refuse_missing(model, missing, expected, checkpoint)
    return frozenset(expected.keys() - found.keys()) - _tied(model, found)


def compare_converted(
    model: PreTrainedModel, dtype: torch.dtype, checkpoint: Checkpoint
) -> frozenset[str]:
    """Do the same for an architecture whose stored tensors are merged or split.

    Lets transformers do it once on tensors without memory and takes its word.
    """
    stored = {
        tensor.name: torch.empty(tensor.shape, dtype=TORCH_DTYPES[tensor.dtype], device="meta")
        for tensor in checkpoint.tensors.values()
    }
    expected = dict(model.state_dict())
    info = convert(model, stored, dtype, device="meta")
    file = checkpoint.files[0].name
    for name, shape, wanted in sorted(info.mismatched_keys):
        problem = f"has shape {list(shape)}, expected {list(wanted)}"
        raise invalid_model(file, problem, tensor=name)
    for name, problem in sorted(info.conversion_errors.items()):
        raise invalid_model(file, f"cannot be converted: {problem[:200]}", tensor=name)
    found = expected.keys() - info.missing_keys
    missing, unexpected = _not_excused(model, info.missing_keys, info.unexpected_keys)
    if unexpected:
        raise invalid_model(file, _unexpected(model, len(unexpected)), tensor=min(unexpected))
    _refuse_missing(model, missing, expected, checkpoint)
    return frozenset(info.missing_keys) - _tied(model, found)


def convert(
    model: PreTrainedModel, stored: Mapping[str, torch.Tensor], dtype: torch.dtype, *, device: str
) -> LoadStateDictInfo:
    """Put stored tensors into the model by transformers' own conversion."""
    settings = LoadStateDictConfig(
        device_map={"": device},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),  # noqa: SLF001 - from_pretrained's own plan
        weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]
    )
    info: LoadStateDictInfo
    info, _ = convert_and_load_state_dict_in_model(model, dict(stored), settings)
    return info


def _refuse_misfit(tensor: StoredTensor, expected: torch.Tensor) -> None:
    if tensor.shape != tuple(expected.shape):
        problem = f"has shape {list(tensor.shape)}, expected {list(expected.shape)}"
        raise invalid_model(tensor.file, problem, tensor=tensor.name)
    if TORCH_DTYPES[tensor.dtype].is_floating_point != expected.is_floating_point():
        wanted = str(expected.dtype).removeprefix("torch.")
        problem = f"has type {tensor.dtype}, expected {wanted}"
        raise invalid_model(tensor.file, problem, tensor=tensor.name)


def _refuse_missing(
    model: PreTrainedModel,
    missing: Collection[str],
    expected: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint,
) -> None:
    if missing:
        worst = min(missing)
        files = ", ".join(file.name for file in checkpoint.files[:3])
        problem = (
            f"is missing, {type(model).__name__} expects it with shape "
            f"{list(expected[worst].shape)} ({len(missing)} such tensors)"
        )
        raise invalid_model(files, problem, tensor=worst)


def _unexpected(model: PreTrainedModel, count: int) -> str:
    return f"is stored, {type(model).__name__} has none of that name ({count} such tensors)"


def _not_excused(
    model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]
) -> tuple[set[str], set[str]]:
    """Return what is left of both after transformers' own exceptions."""
    info = LoadStateDictInfo(
        missing_keys=set(missing),
        unexpected_keys=set(unexpected),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(info)  # noqa: SLF001 - from_pretrained's own rules
    found = model.state_dict().keys() - set(missing)
    return info.missing_keys - _tied(model, found), info.unexpected_keys


def _tied(model: PreTrainedModel, found: Collection[str]) -> set[str]:
    """Return the parameters that become the same as a found one."""
    pairs = model.all_tied_weights_keys.items()  # target -> source
    sources = {source for target, source in pairs if target in found or source in found}
    return {target for target, source in pairs if source in sources} | sources
