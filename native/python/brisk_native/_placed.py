"""Where the model that is being built and the tensors that are being read meet."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from brisk_native._reading import Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from brisk_native.model import Assembly


class Placed:
    """The model of one load, from empty to whole. Thread-safe."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._changed = threading.Condition()  # guards all of this, the assembly included
        self._left = dict.fromkeys(groups)
        self._waiting: list[tuple[str, Tensors]] = []
        self._assembly: Assembly | None = None
        self._is_over = False
        self.group_of: Mapping[str, str] = {}
        """The group of each parameter; set when the model is built."""

    def built(self, assembly: Assembly, group_of: Mapping[str, str]) -> None:
        """Take the empty model, and place what is there already."""
        with self._changed:
            if not self._is_over:
                self._assembly, self.group_of = assembly, group_of
                for group, tensors in self._waiting:
                    self._place(assembly, group, tensors)
                self._waiting.clear()
                self._changed.notify_all()

    def add(self, group: str, tensors: Tensors) -> None:
        """Place a group, now or when the model is built."""
        with self._changed:
            if self._assembly is None:
                self._waiting.append((group, tensors))
            else:
                self._place(self._assembly, group, tensors)
                self._changed.notify_all()

    def _place(self, assembly: Assembly, group: str, tensors: Tensors) -> None:
        assembly.place(tensors)
        if not assembly.is_converted:
            del self._left[group]

    def close(self) -> None:
        """No more will come; nothing is kept alive by this."""
        with self._changed:
            self._is_over, self._assembly = True, None
            self._waiting.clear()
            self._changed.notify_all()

    def wait_built(self) -> PreTrainedModel | None:
        """Return the model; None if the load is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._assembly is not None or self._is_over)
            return None if self._assembly is None else self._assembly.model

    def wait_for(self, group: str, timeout: float | None) -> bool:
        """Return whether the group is there; False if the load is over. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: group not in self._left or self._is_over, timeout
            ):
                raise TimeoutError(f"group {group!r} is not there after {timeout} s")
            return group not in self._left
