"""Put stored bytes into a model's skeleton: in place, never allocated twice.

The files lie in memory whole. Each tensor becomes a view of its bytes; only one that is misaligned
or of another type than the model computes with is copied. The buffers live as long as any view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from services.common.errors import InternalError, Reason
from services.common.log import get_logger
from services.worker.checkpoint import ELEMENT_BYTES, Checkpoint, StoredTensor
from services.worker.comparison import convert
from services.worker.dtypes import TORCH_DTYPES
from services.worker.skeleton import Skeleton, building

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its weights, ready for a forward pass."""

    model: PreTrainedModel
    weight_bytes: int  # held in memory: buffers and copies
    copied_bytes: int  # of them, not used in place


def assemble(
    skeleton: Skeleton, checkpoint: Checkpoint, buffers: Mapping[str, memoryview]
) -> LoadedModel:
    """Return the model with the weights in `buffers` (by file name). Blocks for milliseconds.

    The skeleton is used up: it becomes the model.
    """
    views = {
        tensor.name: _view(tensor, buffers[tensor.file]) for tensor in checkpoint.tensors.values()
    }
    if skeleton.is_converted:
        copied_bytes = _convert(skeleton, views)
        held_bytes = copied_bytes
    else:
        copied_bytes = _assign(skeleton, checkpoint, views)
        held_bytes = sum(len(buffer) for buffer in buffers.values()) + copied_bytes
    with building:
        _finish(skeleton)
    return LoadedModel(model=skeleton.model, weight_bytes=held_bytes, copied_bytes=copied_bytes)


def _view(tensor: StoredTensor, buffer: memoryview) -> torch.Tensor:
    dtype = TORCH_DTYPES[tensor.dtype]
    if not tensor.size_bytes:  # frombuffer refuses to make nothing
        return torch.empty(tensor.shape, dtype=dtype)
    count = tensor.size_bytes // ELEMENT_BYTES[tensor.dtype]
    if not tensor.is_aligned:
        aligned = bytearray(buffer[tensor.start : tensor.end])
        return torch.frombuffer(aligned, dtype=dtype, count=count).view(tensor.shape)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=tensor.start).view(
        tensor.shape
    )


def _assign(skeleton: Skeleton, checkpoint: Checkpoint, views: Mapping[str, torch.Tensor]) -> int:
    """Make the views the model's parameters; return how many bytes had to be copied."""
    model = skeleton.model
    expected = model.state_dict()
    wanted = _wanted_dtypes(skeleton, expected)
    copied_bytes = 0
    for name, target in skeleton.targets.items():
        view = views[name]
        value = view.to(wanted[target])
        if value is not view or not checkpoint.tensors[name].is_aligned:
            copied_bytes += value.nbytes
        _set(model, target, value)
    return copied_bytes


def _convert(skeleton: Skeleton, views: Mapping[str, torch.Tensor]) -> int:
    """Let transformers merge or split the tensors; return the bytes that the model then holds.

    Nothing stays in place: a single view would keep a whole file in memory besides the copies.
    """
    model = skeleton.model
    info = convert(model, views, skeleton.dtype, device="cpu")
    if info.conversion_errors or info.mismatched_keys:  # the skeleton's comparison prevents it
        raise InternalError("the weights could not be converted", reason=Reason.ENGINE_FAILED)
    held: dict[int, torch.Tensor] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        if not parameter.is_meta:
            copy = held.setdefault(parameter.data_ptr(), parameter.detach().clone())
            _set(model, name, copy)
    total = sum(tensor.nbytes for tensor in held.values())
    log.info("weights converted, not used in place", model=type(model).__name__, bytes=total)
    return total


def _wanted_dtypes(
    skeleton: Skeleton, expected: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.dtype]:
    """Return each parameter's type: the model's, or what its code insists on."""
    plan = skeleton.model._get_dtype_plan(skeleton.dtype)  # noqa: SLF001 - from_pretrained's own
    wanted = {name: tensor.dtype for name, tensor in expected.items()}
    if plan:
        pattern, groups, _ = build_glob_alternation(list(plan))
        for name in wanted:
            if (match := pattern.search(name)) and match.lastgroup is not None:
                wanted[name] = plan[groups[match.lastgroup]]
    return wanted


def _set(model: PreTrainedModel, name: str, value: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._parameters:  # noqa: SLF001 - setattr would not tell a buffer from it
        value = torch.nn.Parameter(value, requires_grad=False)
    _mark_initialized(value)
    setattr(module, leaf, value)


def _mark_initialized(tensor: torch.Tensor) -> None:
    """Tell transformers to leave a tensor's values alone."""
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001


def _finish(skeleton: Skeleton) -> None:
    """Tie what is tied and compute what is not stored, as `from_pretrained` does."""
    model = skeleton.model
    missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    absent = [name for name, _ in model.named_non_persistent_buffers()]
    for name in (*skeleton.uninitialized, *absent):
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        empty = torch.empty_like(getattr(module, leaf), device="cpu")
        is_parameter = leaf in module._parameters  # noqa: SLF001
        setattr(module, leaf, torch.nn.Parameter(empty) if is_parameter else empty)
    # Computes what is not marked as initialized: rotary tables and the like.
    model.initialize_weights()  # type: ignore[no-untyped-call]
    model.requires_grad_(requires_grad=False)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise InternalError(f"{name} got no values", reason=Reason.ENGINE_FAILED)
