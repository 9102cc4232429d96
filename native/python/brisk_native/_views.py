"""Tensors over bytes that lie in memory already: which type torch has, and the view itself.

torch is imported by the first call, not with this module.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

from brisk_native._types import DTYPE_BITS, TensorInfo, UnsupportedTypeError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

# The names of torch's types; F6_E2M3 and F6_E3M2 have none.
_TORCH_TYPES: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",  # two elements a byte
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "C64": "complex64",
}


def torch_type(tensor: TensorInfo) -> torch.dtype:
    """Return the type that torch gives the tensor's elements. Raises UnsupportedTypeError."""
    import torch  # noqa: PLC0415 - slow, and only loading needs it

    found = getattr(torch, _TORCH_TYPES.get(tensor.dtype, ""), None)
    packs_evenly = tensor.dtype != "F4" or (bool(tensor.shape) and tensor.shape[-1] % 2 == 0)
    if not isinstance(found, torch.dtype) or not packs_evenly:
        raise UnsupportedTypeError(tensor.name, tensor.dtype)
    return found


def stored_type(name: str, tensor: torch.Tensor) -> str:
    """Return how safetensors spells the type of a tensor. Raises UnsupportedTypeError."""
    spelled = str(tensor.dtype).removeprefix("torch.")
    found = next((key for key, value in _TORCH_TYPES.items() if value == spelled), None)
    if found is None or found == "F4":
        raise UnsupportedTypeError(name, spelled)
    return found


def torch_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Return the shape that torch gives the tensor: F4 has two elements in one of torch's."""
    if tensor.dtype == "F4":
        return (*tensor.shape[:-1], tensor.shape[-1] // 2)
    return tensor.shape


def octets_of(buffer: Buffer) -> torch.Tensor:
    """Return the bytes of `buffer` as a tensor that keeps it alive."""
    import torch  # noqa: PLC0415

    with memoryview(buffer) as view:
        is_readonly = view.readonly
        if not view.nbytes:  # frombuffer refuses to make nothing
            return torch.empty(0, dtype=torch.uint8)
    if not is_readonly:
        return torch.frombuffer(buffer, dtype=torch.uint8)
    with warnings.catch_warnings():  # torch cannot make a tensor that may not be written to
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch.uint8)


def tensor_in(octets: torch.Tensor, tensor: TensorInfo, offset: int) -> torch.Tensor:
    """Return the tensor whose bytes begin at `offset` of `octets`, whose memory it keeps alive.

    It is a view; only where the bytes are misaligned for their type it is a copy.
    """
    import torch  # noqa: PLC0415

    dtype, shape = torch_type(tensor), torch_shape(tensor)
    if tensor.size_bytes == 0:
        return torch.empty(shape, dtype=dtype, device=octets.device)
    own = octets[offset : offset + tensor.size_bytes]
    if own.data_ptr() % max(1, DTYPE_BITS[tensor.dtype] // 8):
        own = own.clone()
    return own.view(dtype).view(shape)
