"""The index of shards where the compiled loader was not built. Documents its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final


@final
class WeightIndex:
    """Which file holds which tensor, as the index of a checkpoint says: checked by itself.

    `len` is the number of tensors. Made by `parse_index` and `parse_index_bytes`.
    """

    def __init__(self, file_of: Mapping[str, str]) -> None:
        self._file_of = file_of

    def __len__(self) -> int:
        return len(self._file_of)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, each once, in the order in which the index names them."""
        return tuple(dict.fromkeys(self._file_of.values()))

    def misplaced(self, file_of: dict[str, str]) -> tuple[str, str] | None:
        """Return the first tensor and file of the index that `file_of` does not have so."""
        for tensor, file in self._file_of.items():
            if file_of.get(tensor) != file:
                return tensor, file
        return None
