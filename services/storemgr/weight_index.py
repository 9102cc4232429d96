"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.common.names import shorten
from services.storemgr.file_names import is_file_name
from services.storemgr.refusal import MalformedError
from services.storemgr.strict_json import JsonRules, described, is_object, parse_object

INDEX_BYTES_MAX: Final = 64 << 20
SHARDS_MAX: Final = 1024
_TENSORS_MAX: Final = 500_000
_RULES: Final = JsonRules(
    size_bytes_max=INDEX_BYTES_MAX, containers_max=_TENSORS_MAX, values_max=2 * _TENSORS_MAX
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightIndex:
    """A checked index file."""

    file_of: Mapping[str, str]  # tensor name -> file name

    @property
    def shards(self) -> frozenset[str]:
        """Return the names of all files that it names."""
        return frozenset(self.file_of.values())


def parse_index(raw: bytes) -> WeightIndex:
    """Return the index that `raw` holds. Raises MalformedError."""
    weight_map = parse_object(raw, _RULES).get("weight_map")
    if not is_object(weight_map) or not weight_map:
        raise MalformedError("has no weight_map")
    file_of: dict[str, str] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise MalformedError(f"puts tensor {shorten(tensor)} into {described(file)}")
        if not is_file_name(file) or not file.endswith(".safetensors"):
            raise MalformedError(
                f"puts tensor {shorten(tensor)} into {shorten(file)}, no safetensors file name"
            )
        file_of[tensor] = file
    index = WeightIndex(file_of=file_of)
    if len(index.shards) > SHARDS_MAX:
        raise MalformedError(f"names {len(index.shards)} files, the limit is {SHARDS_MAX}")
    return index
