"""Which part of a model goes to which device: parsed from what callers write, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

_DEVICE: Final = re.compile(r"cuda(?::(\d{1,3}))?", re.ASCII)

Device: TypeAlias = "str | int | object"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """CUDA ordinals by the path of a module; an empty map means the CPU for all."""

    ordinals: Mapping[str, int]

    @property
    def is_cpu(self) -> bool:
        """True if nothing goes to a CUDA device."""
        return not self.ordinals

    @property
    def used(self) -> tuple[int, ...]:
        """The devices, each once, in the order in which they are named."""
        return tuple(dict.fromkeys(self.ordinals.values()))

    def owner(self, name: str) -> int:
        """Return the device of a parameter or buffer. Raises ValueError if the map has none."""
        if (found := self.of(name)) is not None:
            return found
        if name.endswith(("inv_freq", "position_ids")):  # computed, not stored: anywhere will do
            return self.used[0]
        raise ValueError(f'the device map leaves out {name!r}: name its module, or ""')

    def of(self, name: str) -> int | None:
        """Return the device of a parameter or buffer; None if the map does not say it."""
        path = name
        while True:
            if (found := self.ordinals.get(path)) is not None:
                return found
            if not path:
                return None
            path = path.rpartition(".")[0]


def parse_device_map(device: Device | Mapping[str, Device]) -> DeviceMap:
    """Return what `device` says: "cpu", "cuda", "cuda:1", 1, a torch.device, or a map to such.

    The keys of a map are paths of modules, "" for all that no other names. Raises ValueError for
    other devices, and for a map that names both the CPU and CUDA devices.
    """
    given = device if isinstance(device, Mapping) else {"": device}
    if not given:
        raise ValueError("the device map is empty")
    found = {str(path): _ordinal(one) for path, one in given.items()}
    ordinals = {path: ordinal for path, ordinal in found.items() if ordinal is not None}
    if ordinals and len(ordinals) < len(found):
        raise ValueError("a device map names either the CPU or CUDA devices, not both")
    return DeviceMap(ordinals=ordinals)


def _ordinal(device: Device) -> int | None:
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return device
    text = str(device)
    if text in ("cpu", "cpu:0"):
        return None
    match = _DEVICE.fullmatch(text)
    if match is None:
        raise ValueError(f'device must be "cpu", "cuda", "cuda:N" or N, not {device!r}')
    return int(match.group(1) or 0)
