"""What a worker can be told: `BRISK_WORKER_<FIELD>`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field

from services.common.config import ServiceConfig
from services.common.memory import memory_limit_bytes
from services.common.names import shorten

_UNITS: Final = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DEVICE: Final = re.compile(r"(cpu:\d{1,3})=(\d{1,18})(|KiB|MiB|GiB|TiB)", re.ASCII)
_DEVICES_MAX: Final = 16
_DEFAULT_DEVICE: Final = "cpu:0"
_DEFAULT_SHARE: Final = 0.6  # of the memory that this process may use


def parse_devices(text: str) -> dict[str, int]:
    """Return the memory budget of each device of "cpu:0=2GiB,cpu:1=512MiB". Raises ValueError."""
    budgets: dict[str, int] = {}
    for part in text.split(","):
        match = _DEVICE.fullmatch(part)
        if match is None:
            raise ValueError(
                f"must be like cpu:0=2GiB,cpu:1=512MiB (units {', '.join(filter(None, _UNITS))} "
                f"or none): {shorten(part)} is not"
            )
        device, number, unit = match.groups()
        if device in budgets:
            raise ValueError(f"names {device} twice")
        budgets[device] = int(number) * _UNITS[unit]
        if budgets[device] < 1:
            raise ValueError(f"gives {device} no memory")
    if len(budgets) > _DEVICES_MAX:
        raise ValueError(f"must have at most {_DEVICES_MAX} devices")
    return budgets


def _checked_devices(text: str) -> str:
    parse_devices(text)
    return text


def default_devices() -> str:
    """Return one CPU device with 60 % of the memory that this process may use."""
    return f"{_DEFAULT_DEVICE}={int(memory_limit_bytes() * _DEFAULT_SHARE)}"


class WorkerConfig(ServiceConfig):
    """Settings of one worker."""

    service: ClassVar[str] = "worker"
    purpose: ClassVar[str] = (
        "A worker: holds models on its devices and produces their tokens. Its node needs a\n"
        "storemgr, which has their files."
    )

    devices: Annotated[str, AfterValidator(_checked_devices)] = Field(
        default_factory=default_devices
    )
    """Its devices and the memory it may use on each, like cpu:0=2GiB,cpu:1=512MiB. Unset: one
    with 60 % of the memory that it may use."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of one forward pass; more than one help on idle cores only."""
    pool_bytes: int = Field(default=0, ge=0, le=2**46)
    """Memory that is faulted in at start for weights to be read into, in bytes; 0: none."""
    waiting_max: int = Field(default=64, ge=1, le=10_000)
    """Sequences that wait per instance; more are refused."""
    exact: bool = False
    """Whether the tokens of a sequence depend on nothing but its own tokens, bit for bit, whatever
    else is decoded; slower with few sequences and long prompts."""
    prefix_cache: bool = True
    """Whether sequences that begin with the same tokens share their keys and values."""
    step_s_max: float = Field(default=300.0, ge=0.001, le=86_400.0)
    """Longest time that a step of a device may take; a worker whose device hangs leaves."""

    @property
    def budgets(self) -> dict[str, int]:
        """The devices' memory budgets in bytes, in the order declared."""
        return parse_devices(self.devices)
