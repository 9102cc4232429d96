"""Types by name, and a default type for new tensors that holds for one thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

_FLOATS: Final = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.linspace, torch.eye}
)
_BY_VALUE: Final = frozenset({torch.full, torch.tensor, torch.arange, torch.scalar_tensor})


def named_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return torch's type of that name; None for None. Raises ValueError if it is no float."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"a model computes in a floating-point type of torch, not {dtype!r}")
    return found


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
