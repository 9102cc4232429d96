"""Put stored tensors into a model's skeleton: in place, never allocated twice, in any order.

All that needs no stored bytes (ties, rotary tables, what transformers initializes) is done first,
so that a layer can compute as soon as its own tensors are there. A tensor is used as it is; only
one of another type than the model computes in is cast, and only an architecture whose tensors must
be merged or split is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Final

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from brisk_native._views import torch_type
from brisk_native._weights import Weights
from brisk_native.model._comparison import convert
from brisk_native.model._skeleton import Skeleton, building

log = logging.getLogger("brisk_native")

_CPU: Final = torch.device("cpu")

DeviceOf = Callable[[str], torch.device]
"""Returns the device on which a parameter or buffer belongs."""


def on_cpu(_: str) -> torch.device:
    """Return the CPU for every name."""
    return _CPU


class Assembly:
    """A skeleton on its way to becoming a model. For one thread at a time."""

    def __init__(self, skeleton: Skeleton, device_of: DeviceOf = on_cpu) -> None:
        """Use up the skeleton: it becomes the model. Blocks for milliseconds."""
        self.model: PreTrainedModel = skeleton.model
        self.cast_bytes = 0
        """Bytes of the tensors that could not be used as they are stored."""
        self.is_converted = skeleton.is_converted
        """Tensors are merged or split when all are there: no layer is ready before `finish`."""
        self._skeleton = skeleton
        self._device_of = device_of
        self._kept: dict[str, torch.Tensor] = {}  # of a model that must be converted
        self._expected = dict(self.model.state_dict())
        self._wanted = _wanted_dtypes(skeleton, self._expected)
        self._aliases: dict[str, tuple[str, ...]] = {}
        self.contested: tuple[tuple[str, str], ...] = ()
        """Pairs of tied parameters that are both stored: one, if their values are equal."""
        if not self.is_converted:
            with building:
                self._prepare()

    def planned_bytes(self, weights: Weights) -> int:
        """Return what `place` and `finish` take at most beside the stored tensors, in bytes."""
        if self.is_converted:
            tied = self.model.all_tied_weights_keys
            expected = self._expected.items()
            sizes = [int(one.nbytes) for name, one in expected if name not in tied]
            # All is made anew beside the files' bytes; the largest is put together from parts.
            return sum(sizes) + 2 * max(sizes, default=0)
        planned = 0
        for name, (_, stored) in weights.tensors.items():
            target = self._skeleton.targets.get(name)
            if target is not None and torch_type(stored) != self._wanted[target]:
                planned += stored.elements * self._wanted[target].itemsize
        return planned

    def place(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make stored tensors, by their stored names, the model's; each once.

        What the model has no use for is ignored.
        """
        if self.is_converted:
            self._kept.update(tensors)
            return
        for name, tensor in tensors.items():
            if names := self.names_of(name):
                value = tensor.to(self._wanted[self._skeleton.targets[name]])
                if value is not tensor:
                    self.cast_bytes += value.nbytes
                _set(self.model, names, value)

    def names_of(self, stored: str) -> tuple[str, ...]:
        """Return which parameters, or which buffer, a stored tensor becomes; ties are several."""
        target = self._skeleton.targets.get(stored)
        return () if target is None else self._aliases.get(target, (target,))

    def finish(self) -> PreTrainedModel:
        """Return the model; all stored tensors have been placed."""
        if self.is_converted:
            self._convert()
        elif self.contested:
            # Both sides of a tie are stored: transformers ties them only if they are equal.
            with building:
                self.model.tie_weights(missing_keys=set(), recompute_mapping=False)
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if tensor.is_meta:
                raise RuntimeError(f"{name} got no values")
        return self.model

    def _prepare(self) -> None:
        model, stored = self.model, set(self._skeleton.targets.values())
        _complete(model, self._expected.keys() - stored, stored, self._skeleton, self._device_of)
        ties = model.all_tied_weights_keys.items()
        self.contested = tuple(pair for pair in ties if stored.issuperset(pair))
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        self._aliases = {name: tuple(same) for same in names.values() for name in same}

    def _convert(self) -> None:
        """Let transformers merge or split the tensors, and count what the model then holds.

        Nothing stays in place: one view would keep a whole file in memory besides the copies.
        """
        model, skeleton = self.model, self._skeleton
        device = self._device_of("")
        info = convert(model, self._kept, skeleton.dtype, device=str(device))
        if info.conversion_errors or info.mismatched_keys:  # the skeleton's comparison prevents it
            raise RuntimeError("the weights could not be converted")
        self._kept.clear()
        held: dict[int, torch.Tensor] = {}
        for name, parameter in model.state_dict(keep_vars=True).items():
            if not parameter.is_meta:
                copy = held.setdefault(parameter.data_ptr(), parameter.detach().clone())
                _set(model, (name,), copy)
        self.cast_bytes = sum(tensor.nbytes for tensor in held.values())
        missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
        with building:
            _complete(model, missing, (), skeleton, self._device_of)
        log.info("weights converted, not used in place: %s", type(model).__name__)


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


def _complete(
    model: PreTrainedModel,
    missing: Collection[str],
    stored: Collection[str],
    skeleton: Skeleton,
    device_of: DeviceOf,
) -> None:
    """Tie what is tied and compute what is not stored, as `from_pretrained` does.

    `stored` tensors have no values yet; nothing is computed for them.
    """
    model.tie_weights(missing_keys=set(missing), recompute_mapping=False)
    present = dict(
        chain(
            model.named_parameters(remove_duplicate=False),
            model.named_buffers(remove_duplicate=False),
        )
    )
    for name in stored:
        _mark_initialized(present[name])
    absent = [name for name, _ in model.named_non_persistent_buffers()]
    for name in (*skeleton.uninitialized, *absent):
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        empty = torch.empty_like(getattr(module, leaf), device=device_of(name))
        is_parameter = leaf in module._parameters  # noqa: SLF001
        setattr(module, leaf, torch.nn.Parameter(empty) if is_parameter else empty)
    # Computes what is not marked as initialized: rotary tables and the like.
    model.initialize_weights()  # type: ignore[no-untyped-call]
    model.requires_grad_(requires_grad=False)


def _set(model: PreTrainedModel, names: Collection[str], value: torch.Tensor) -> None:
    """Let one tensor be the parameter, or the buffer, of all these names."""
    shared: torch.Tensor = value
    for name in names:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        # setattr would not tell a buffer from it
        is_parameter = leaf in module._parameters  # noqa: SLF001
        if is_parameter and not isinstance(shared, torch.nn.Parameter):
            shared = torch.nn.Parameter(value, requires_grad=False)
        _mark_initialized(shared)
        setattr(module, leaf, shared)


def _mark_initialized(tensor: torch.Tensor) -> None:
    """Tell transformers to leave a tensor's values alone."""
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001
