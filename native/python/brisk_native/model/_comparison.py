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

from brisk_native._types import InvalidModelError, TensorInfo, shown
from brisk_native._views import torch_shape, torch_type
from brisk_native._weights import WeightFile, Weights

_FILES_SHOWN_MAX = 3


def compare(
    model: PreTrainedModel,
    expected: Mapping[str, torch.Tensor],
    targets: Mapping[str, str],
    weights: Weights,
) -> frozenset[str]:
    """Return the tensors that are missing by right: the model initializes them itself.

    `targets` says which parameter each stored tensor is. Raises InvalidModelError naming file,
    tensor, expected and found.
    """
    stored = weights.tensors
    found: dict[str, tuple[WeightFile, TensorInfo]] = {}
    for name, target in targets.items():
        file, _ = stored[name]
        if target in found:
            reason = f"stands for the same parameter as {shown(found[target][1].name)}"
            raise InvalidModelError(file.name, name, reason)
        found[target] = stored[name]
    for target in sorted(expected.keys() & found.keys()):
        _refuse_misfit(*found[target], expected[target])
    missing, unexpected = _not_excused(
        model, expected.keys() - found.keys(), found.keys() - expected.keys()
    )
    if unexpected:
        file, worst = found[min(unexpected)]
        raise InvalidModelError(file.name, worst.name, _unexpected(model, len(unexpected)))
    _refuse_missing(model, missing, expected, weights)
    return frozenset(expected.keys() - found.keys()) - _tied(model, found)


def compare_converted(
    model: PreTrainedModel, dtype: torch.dtype, weights: Weights
) -> frozenset[str]:
    """Do the same for an architecture whose stored tensors are merged or split.

    Lets transformers do it once on tensors without memory and takes its word.
    """
    stored = {
        name: torch.empty(torch_shape(tensor), dtype=torch_type(tensor), device="meta")
        for name, (_, tensor) in weights.tensors.items()
    }
    expected = dict(model.state_dict())
    info = convert(model, stored, dtype, device="meta")
    file = weights.files[0].name
    for name, shape, wanted in sorted(info.mismatched_keys):
        raise _misfit(file, name, "shape", str(list(wanted)), str(list(shape)))
    for name, problem in sorted(info.conversion_errors.items()):
        raise InvalidModelError(file, name, f"cannot be converted: {problem[:200]}")
    found = expected.keys() - info.missing_keys
    missing, unexpected = _not_excused(model, info.missing_keys, info.unexpected_keys)
    if unexpected:
        raise InvalidModelError(file, min(unexpected), _unexpected(model, len(unexpected)))
    _refuse_missing(model, missing, expected, weights)
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


def _misfit(file: str, tensor: str, what: str, expected: str, found: str) -> InvalidModelError:
    reason = f"has {what} {found}, expected {expected}"
    return InvalidModelError(file, tensor, reason, expected=expected, found=found)


def _refuse_misfit(file: WeightFile, tensor: TensorInfo, expected: torch.Tensor) -> None:
    if tensor.shape != tuple(expected.shape):
        shapes = str(list(expected.shape)), str(list(tensor.shape))
        raise _misfit(file.name, tensor.name, "shape", *shapes)
    if torch_type(tensor).is_floating_point != expected.is_floating_point():
        wanted = str(expected.dtype).removeprefix("torch.")
        raise _misfit(file.name, tensor.name, "type", wanted, tensor.dtype)


def _refuse_missing(
    model: PreTrainedModel,
    missing: Collection[str],
    expected: Mapping[str, torch.Tensor],
    weights: Weights,
) -> None:
    if missing:
        worst = min(missing)
        files = ", ".join(file.name for file in weights.files[:_FILES_SHOWN_MAX])
        shape = str(list(expected[worst].shape))
        reason = (
            f"is missing, {type(model).__name__} expects it with shape {shape} "
            f"({len(missing)} such tensors)"
        )
        raise InvalidModelError(files, worst, reason, expected=shape)


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
