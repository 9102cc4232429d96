"""The constants of the simulated hardware, read strictly from `calibration.toml` with sources."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("calibration.toml")
SOURCES: Final = ("measured: ", "sheet: ", "published: ", "assumed: ")


class CalibrationError(ValueError):
    """A constant is missing, unknown, not a positive number, or without its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What messages and processes cost, whatever the hardware."""

    rpc_s: float  # one way between two services, the work behind it left aside
    router_s: float  # what the router adds to each request
    report_gap_s: float  # changes closer together share a report
    heartbeat_s: float  # between reports when nothing changes
    lines_gap_s: float  # changes of a router's lines closer together share a report
    lines_repeat_s: float  # between two of them while nothing changes
    lost_s: float  # from a node's death until the scheduler hears of it
    broken_s: float  # from a node's death until streams break
    unload_s: float
    init_s: float  # from the last byte on the device to a model that serves


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One node of a kind."""

    devices: float
    device_bytes: float
    arena_bytes: float
    ssd_bytes: float
    arena_speed: float  # from the arena to one device
    ssd_speed: float
    nic_speed: float  # each way
    memory_speed: float  # of a device
    memory_share: float
    compute_speed: float  # operations a second of a device
    compute_share: float
    step_s: float
    remote_latency_s: float
    spread: float  # standard deviation of the logarithm of a load's speed

    def joined(self, count: int) -> Hardware:
        """Return the node with `count` of its devices taken together as one, in parallel."""
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("device_bytes", "arena_speed", "memory_speed", "compute_speed"):
            changed[name] *= count
        changed["devices"] = self.devices // count
        return Hardware(**changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A number with its origin, for the pages."""

    section: str
    name: str
    value: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Everything that the file says."""

    control: Control
    hardware: dict[str, Hardware]
    constants: tuple[Constant, ...]


def load(path: Path = FILE) -> Calibration:
    """Return the constants. Raises CalibrationError naming what is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path.name}: {error}") from error
    if "control" not in tables:
        raise CalibrationError(f"{path.name}: the section control is missing")
    constants: list[Constant] = []
    control = Control(**_section("control", tables.pop("control"), Control, constants))
    hardware = {
        name: Hardware(**_section(name, table, Hardware, constants))
        for name, table in tables.items()
    }
    return Calibration(control=control, hardware=hardware, constants=tuple(constants))


def _section(
    section: str, table: object, kind: type[Control | Hardware], constants: list[Constant]
) -> dict[str, float]:
    if not isinstance(table, dict):
        raise CalibrationError(f"{section} must be a section. Given: {table!r}")
    names = {each.name for each in fields(kind)}
    if missing := sorted(names - table.keys()):
        raise CalibrationError(f"{section}.{missing[0]} is missing")
    if unknown := sorted(table.keys() - names):
        raise CalibrationError(f"{section}.{unknown[0]} is not a constant of {kind.__name__}")
    found = [_constant(section, name, entry) for name, entry in table.items()]
    constants.extend(found)
    return {each.name: each.value for each in found}


def _constant(section: str, name: str, entry: object) -> Constant:
    where = f"{section}.{name}"
    if not isinstance(entry, dict) or entry.keys() != {"value", "source"}:
        raise CalibrationError(f"{where} must have a value and a source, and nothing else")
    value, source = entry["value"], entry["source"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CalibrationError(f"{where} must be a number. Given: {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise CalibrationError(f"{where} must be a positive number. Given: {value!r}")
    if not isinstance(source, str) or not source.startswith(SOURCES):
        raise CalibrationError(f"{where}: the source must begin with one of {', '.join(SOURCES)}")
    return Constant(section=section, name=name, value=float(value), source=source)
