"""Find devices with room, the best node first, in a time that does not grow with the cluster.

Devices are sorted into classes: by a rank, the less the better, and within a rank by how many bytes
they have, four classes to each doubling. A question looks at the best ranks only, and within
each at the smallest class that is large enough: best fit keeps large holes for large models.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import Final

from services.scheduler.first_fit import DeviceKey

_CLASSES_PER_DOUBLING: Final = 4
_BOUNDARY_MAX: Final = 8  # devices looked at in the class that only some of which are large enough
_PER_CLASS: Final = 3  # devices of a class that are offered
_RANKS_MAX: Final = 64  # looked at for one question


class _Rank:
    """The devices of one rank by classes of room."""

    __slots__ = ("classes", "filled")

    def __init__(self) -> None:
        self.filled = 0  # a bit for each class that has devices
        self.classes: dict[int, dict[DeviceKey, int]] = {}


class Capacity:
    """A number of bytes, and a rank, for each device that has any."""

    def __init__(self) -> None:
        self._places: dict[DeviceKey, tuple[int, int, int]] = {}  # rank, class, bytes
        self._ranks: dict[int, _Rank] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def set(self, key: DeviceKey, room_bytes: int, rank: int) -> None:
        """Set what a device has, known or new; one without room is left out."""
        place = (rank, _class_of(room_bytes), room_bytes) if room_bytes > 0 else None
        before = self._places.get(key)
        if before == place:
            return
        if before is not None:
            if place is not None and before[:2] == place[:2]:
                self._places[key] = place
                self._ranks[rank].classes[place[1]][key] = room_bytes
                return
            self._remove(key, before)
        if place is not None:
            self._add(key, place)

    def discard(self, key: DeviceKey) -> None:
        """Forget a device, known or not."""
        if (before := self._places.get(key)) is not None:
            self._remove(key, before)

    def room_bytes(self, key: DeviceKey) -> int:
        """Return what a device has; 0 if it is not known here."""
        place = self._places.get(key)
        return 0 if place is None else place[2]

    def best(self, need_bytes: int, *, ranks: int, after: int | None = None) -> Iterator[DeviceKey]:
        """Yield a few devices with at least so much of the best ranks that have any.

        Ranks up to `after` are passed over.
        """
        start = 0 if after is None else bisect_left(self._order, after + 1)
        found = 0
        for rank in islice(self._order, start, start + _RANKS_MAX):
            any_here = False
            for key in _fitting(self._ranks[rank], need_bytes):
                any_here = True
                yield key
            found += any_here
            if found >= ranks:
                return

    def _add(self, key: DeviceKey, place: tuple[int, int, int]) -> None:
        number, size_class, room_bytes = place
        rank = self._ranks.get(number)
        if rank is None:
            rank = self._ranks[number] = _Rank()
            insort(self._order, number)
        rank.classes.setdefault(size_class, {})[key] = room_bytes
        rank.filled |= 1 << size_class
        self._places[key] = place

    def _remove(self, key: DeviceKey, place: tuple[int, int, int]) -> None:
        number, size_class, _ = place
        rank = self._ranks[number]
        members = rank.classes[size_class]
        del members[key]
        del self._places[key]
        if not members:
            del rank.classes[size_class]
            rank.filled &= ~(1 << size_class)
            if not rank.filled:
                del self._ranks[number]
                del self._order[bisect_left(self._order, number)]


def _fitting(rank: _Rank, need_bytes: int) -> Iterator[DeviceKey]:
    """Yield a few devices of the smallest classes that are large enough."""
    lowest = _class_of(max(1, need_bytes))
    members = rank.classes.get(lowest)
    if members is not None:
        found = [
            key
            for key, room_bytes in islice(members.items(), _BOUNDARY_MAX)
            if room_bytes >= need_bytes
        ]
        if found:
            yield from found[:_PER_CLASS]
            return
    above = rank.filled >> (lowest + 1)
    if above:
        size_class = lowest + 1 + (above & -above).bit_length() - 1
        yield from islice(rank.classes[size_class], _PER_CLASS)


def _class_of(room_bytes: int) -> int:
    """Return the class of a number of bytes, at least 1: its doubling and which quarter of it."""
    exponent = room_bytes.bit_length() - 1
    quarter = (room_bytes << 2 >> exponent) & (_CLASSES_PER_DOUBLING - 1)
    return exponent * _CLASSES_PER_DOUBLING + quarter
