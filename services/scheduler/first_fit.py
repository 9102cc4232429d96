"""Find the first device with enough of something, in a time that barely grows with the cluster.

A segment tree of maxima over the devices in their order: setting a value and finding the leftmost
one that is large enough both take a number of steps that is the logarithm of the devices.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_LEAST: Final = -(2**63)


class DeviceKey(NamedTuple):
    """Names a device in the cluster; devices are tried in the order of their keys."""

    node_id: str
    worker_id: str
    device_id: str


class FirstFit:
    """A number for each device."""

    def __init__(self) -> None:
        self._values: dict[DeviceKey, int] = {}
        self._order: list[DeviceKey] = []
        self._slots: dict[DeviceKey, int] = {}
        self._tree: list[int] = []
        self._is_stale = True  # devices come and go rarely: the tree is built anew when asked

    def __len__(self) -> int:
        return len(self._values)

    def set(self, key: DeviceKey, value: int) -> None:
        """Set the number of a device, known or new."""
        self._is_stale = self._is_stale or key not in self._values
        self._values[key] = value
        if not self._is_stale:
            node = len(self._tree) // 2 + self._slots[key]
            self._tree[node] = value
            while node > 1:
                node //= 2
                self._tree[node] = max(self._tree[2 * node], self._tree[2 * node + 1])

    def discard(self, key: DeviceKey) -> None:
        """Forget a device, known or not."""
        if self._values.pop(key, None) is not None:
            self._is_stale = True

    def largest(self) -> int:
        """Return the largest number; there must be a device."""
        return self._built()[1]

    def argmax(self) -> DeviceKey:
        """Return the first device of those with the largest number; there must be one."""
        key = self.first(self.largest())
        if key is None:
            raise LookupError("no device")
        return key

    def first(self, least: int, *, after: DeviceKey | None = None) -> DeviceKey | None:
        """Return the first device, behind `after` if given, that has at least `least`."""
        tree = self._built()
        size = len(tree) // 2
        start = 0 if after is None else self._slots[after] + 1
        if start >= len(self._order):
            return None
        node = size + start
        while tree[node] < least:
            while node & 1:  # a right child: its parent's subtree is done
                node >>= 1
            if node == 0:
                return None
            node += 1
        while node < size:
            node *= 2
            node += tree[node] < least
        return self._order[node - size]

    def _built(self) -> list[int]:
        if self._is_stale:
            self._order = sorted(self._values)
            self._slots = {key: slot for slot, key in enumerate(self._order)}
            size = 1 << max(0, len(self._order) - 1).bit_length()
            self._tree = [_LEAST] * (2 * size)
            for slot, key in enumerate(self._order):
                self._tree[size + slot] = self._values[key]
            for node in range(size - 1, 0, -1):
                self._tree[node] = max(self._tree[2 * node], self._tree[2 * node + 1])
            self._is_stale = False
        return self._tree
