"""LoRA adapters in the layout of PEFT: adapter_model.safetensors beside adapter_config.json.

PEFT stores `base_model.model.<module>.lora_A.weight` (rank x in) and `lora_B.weight` (out x rank),
for embeddings `lora_embedding_A` and `lora_embedding_B`, without the adapter's own name in them,
and beside them whatever else was trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from brisk_native._adapter_config import CONFIG, AdapterConfig, config_bytes, read_config
from brisk_native._implementation import CancelToken, parse_header_bytes
from brisk_native._publish import refuse_strangers, replacement_of, write_durably
from brisk_native._tensors import load_tensors
from brisk_native._types import InvalidAdapterError
from brisk_native._views import stored_type
from brisk_native._weights import folder_of

if TYPE_CHECKING:
    import torch

WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
_PAIRS: Final = {
    ".lora_A.weight": ".lora_B.weight",
    ".lora_embedding_A": ".lora_embedding_B",
}
_PARTS: Final = tuple(end for pair in _PAIRS.items() for end in pair)
_README: Final = "README.md"  # PEFT writes one
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter in memory."""

    config: AdapterConfig
    tensors: Mapping[str, torch.Tensor]
    """By the names that PEFT stores."""


def load_adapter(
    folder: str | os.PathLike[str],
    *,
    verify: bool = True,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Adapter:
    """Return the LoRA adapter in `folder`, which PEFT, or `save_adapter`, has written.

    Its tensors are checked to be pairs of A and B whose ranks match. The rest, errors included,
    is as `load_tensors` has it; InvalidAdapterError names file, tensor and reason.
    """
    place = folder_of(folder)
    config = read_config(place)
    tensors = load_tensors(place / WEIGHTS, verify=verify, progress=progress, cancel=cancel)
    _check(os.fspath(place / WEIGHTS), tensors, config)
    return Adapter(config=config, tensors=tensors)


def save_adapter(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    config: AdapterConfig,
) -> None:
    """Write a LoRA adapter as PEFT does; `tensors` have the names that PEFT stores.

    A folder that holds an adapter is replaced as a whole: readers, and whoever looks after a
    crash, find the old one or the new one. The bytes are on the disk when this returns.

    Raises InvalidAdapterError naming the tensor for what `load_adapter` would not take,
    FileExistsError if the folder holds anything else, UnsupportedTypeError, ValueError and OSError.
    """
    place = Path(os.path.abspath(folder))  # noqa: PTH100 - a link is replaced, not followed
    _check(os.fspath(place / WEIGHTS), tensors, config)
    refuse_strangers(place, {WEIGHTS: None, CONFIG: None, _README: None})
    text = config_bytes(config)
    arrays, head = _laid_out(tensors)
    with replacement_of(place) as staged:
        write_durably(staged / WEIGHTS, head, *arrays)
        write_durably(staged / CONFIG, text)


def _laid_out(tensors: Mapping[str, torch.Tensor]) -> tuple[list[memoryview], bytes]:
    """Return the tensors' bytes, those of wide elements first, and the header for them."""
    import torch  # noqa: PLC0415 - slow, and only this needs it

    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    arrays: list[memoryview] = []
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].detach().to("cpu").contiguous()
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": stored_type(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        arrays.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    parse_header_bytes(head, len(head) + end)  # what we write has to be what we would read
    return arrays, head


def _check(path: str, tensors: Mapping[str, torch.Tensor], config: AdapterConfig) -> None:
    """Refuse what is no adapter: strange names, halves of pairs, ranks that do not match."""
    pairs = 0
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise InvalidAdapterError(path, name, f"does not begin with {PREFIX}")
        for one, other in _PAIRS.items():
            if name.endswith(one):
                pairs += 1
                _check_pair(path, name, tensors, name.removesuffix(one) + other, config)
            elif name.endswith(other) and name.removesuffix(other) + one not in tensors:
                raise InvalidAdapterError(path, name, f"has no {one.removeprefix('.')} beside it")
        if ".lora_" in name and tensor.ndim and not name.endswith(_PARTS):
            _check_part(path, name)
    if not pairs:
        raise InvalidAdapterError(path, None, "has no pair of LoRA matrices")


def _check_part(path: str, name: str) -> None:
    """Refuse the names that PEFT uses in memory only."""
    for one in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
        if f".{one}." in f"{name}.":
            reason = f"is not named as PEFT stores it: the adapter's name does not follow {one}"
            raise InvalidAdapterError(path, name, reason)


def _check_pair(
    path: str,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    other: str,
    config: AdapterConfig,
) -> None:
    if other not in tensors:
        raise InvalidAdapterError(path, name, f"has no {other.removeprefix(PREFIX)} beside it")
    first, second = tensors[name], tensors[other]
    if min(first.ndim, second.ndim) < 2 or first.shape[0] != second.shape[1]:  # noqa: PLR2004
        reason = f"has shape {list(first.shape)}, its pair {list(second.shape)}: no common rank"
        raise InvalidAdapterError(path, name, reason)
    if not config.other.get("rank_pattern") and first.shape[0] != config.rank:
        reason = f"has rank {first.shape[0]}, {CONFIG} says {config.rank}"
        raise InvalidAdapterError(path, name, reason)
