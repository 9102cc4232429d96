"""What the cluster needs to know about a checkpoint: how large it is and what a token costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from brisk_native import TensorInfo

from services.storemgr.model_config import ModelConfig

_HEAD: Final = "lm_head.weight"
# Types that a key/value cache can have; beside quantized weights it stays in 16 bits.
_CACHE_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_TORCH_NAMES: Final = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CACHE_BYTES_QUANTIZED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts of one checkpoint; `services.common.model.ModelInfo` without its name."""

    architecture: str
    dtype: str  # the tensors' most frequent type as safetensors spells it; "" without tensors
    weight_bytes: int  # each tied tensor counted once
    parameters: int
    tensors: int
    context_tokens_max: int  # 0 if the config states none
    kv_bytes_per_token: int  # 0 if it cannot be derived


class Tally:
    """Adds up the tensors of a checkpoint, file by file."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._elements = 0
        self._head: TensorInfo | None = None

    def add(self, tensors: Iterable[TensorInfo]) -> None:
        """Take in the tensors of one file."""
        for tensor in tensors:
            self._count[tensor.dtype] += 1
            self._bytes[tensor.dtype] += tensor.size_bytes
            self._elements += tensor.elements
            if tensor.name == _HEAD:
                self._head = tensor

    def facts(self, config: ModelConfig) -> ModelFacts:
        """Return the facts of all tensors added, under `config`."""
        # A tied head that was stored nevertheless is the embedding again: it is never loaded.
        spare = self._head if config.tied else None
        dtype = max(
            self._count, key=lambda name: (self._count[name], self._bytes[name]), default=""
        )
        return ModelFacts(
            architecture=config.architecture,
            dtype=dtype,
            weight_bytes=self._bytes.total() - (spare.size_bytes if spare else 0),
            parameters=self._elements - (spare.elements if spare else 0),
            tensors=self._count.total(),
            context_tokens_max=config.context_tokens_max or 0,
            kv_bytes_per_token=config.kv_elements_per_token * _cache_bytes(dtype, config),
        )


def _cache_bytes(dtype: str, config: ModelConfig) -> int:
    stated = _TORCH_NAMES.get(config.dtype or "", "")
    known = dtype if dtype in _CACHE_BYTES else stated
    return _CACHE_BYTES.get(known, _CACHE_BYTES_QUANTIZED)
