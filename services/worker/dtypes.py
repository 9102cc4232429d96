"""Types of tensors: how safetensors spells them, and a default that holds for one thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_FLOATS: Final = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.linspace, torch.eye}
)
_BY_VALUE: Final = frozenset({torch.full, torch.tensor, torch.arange, torch.scalar_tensor})


class DefaultDtype(TorchFunctionMode):
    """Gives new floating-point tensors a type where the code that makes them names none.

    `torch.set_default_dtype`, which transformers uses, holds for the whole process: it would
    change the tensors that the decode threads of other models make meanwhile.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, with our type if it would take the default."""
        given = dict(kwargs or {})
        if given.get("dtype") is None and _takes_default(func, (*args, *given.values())):
            given["dtype"] = self._dtype
        return func(*args, **given)


def _takes_default(func: Callable[..., Any], values: Iterable[object]) -> bool:
    return func in _FLOATS or (func in _BY_VALUE and any(map(_is_float, values)))


def _is_float(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_float, value))
    return isinstance(value, float)
