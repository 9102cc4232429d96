"""adapter_config.json: what PEFT notes of a LoRA adapter, read without believing it.

Nothing in it is executed or imported: what we do not know is kept as it is, and written again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from brisk_native._types import InvalidAdapterError, InvalidCheckpointError, shown
from brisk_native._weights import read_json

CONFIG: Final = "adapter_config.json"
CONFIG_BYTES_MAX: Final = 1024 * 1024
RANK_MAX: Final = 65_536
MODULES_MAX: Final = 10_000
_NAME_CHARS_MAX: Final = 4096
_KIND: Final = "LORA"
_OWN: Final = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What a LoRA adapter is: what it multiplies with, and where."""

    rank: int
    """Columns of A and rows of B, 1 to 65536; single modules may differ (`rank_pattern`)."""
    alpha: float
    """The product counts `alpha / rank` (`lora_alpha`)."""
    target_modules: tuple[str, ...] | str | None
    """Endings of the modules' names, or one regular expression, or None if others say it."""
    base_model: str | None = None
    """Folder or hub name of the model that it was trained on; a stranger's word."""
    other: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """The fields of PEFT that we have no use for, as JSON gives them."""

    def as_json(self) -> dict[str, object]:
        """Return the fields as PEFT names them."""
        modules = self.target_modules
        return {
            **self.other,
            "peft_type": _KIND,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(modules) if isinstance(modules, tuple) else modules,
            "base_model_name_or_path": self.base_model,
        }

    def __post_init__(self) -> None:
        """Raise ValueError for what no adapter can have."""
        if isinstance(self.rank, bool) or not 1 <= self.rank <= RANK_MAX:
            raise ValueError(f"r must be between 1 and {RANK_MAX}. Given: {self.rank}")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"lora_alpha must be a positive number. Given: {self.alpha}")
        modules = self.target_modules
        names = modules if isinstance(modules, tuple) else (modules,) if modules else ()
        if len(names) > MODULES_MAX:
            raise ValueError(f"target_modules has {len(names)} names, the limit is {MODULES_MAX}")
        for name in names:
            if not 1 <= len(name) <= _NAME_CHARS_MAX:
                raise ValueError(f"target_modules has a name of {len(name)} characters")
        if owned := set(_OWN) & self.other.keys():
            raise ValueError(f"{min(owned)} has a field of its own")


def read_config(folder: Path) -> AdapterConfig:
    """Return what the folder's adapter_config.json says.

    Raises InvalidAdapterError naming the field, and OSError.
    """
    path = folder / CONFIG
    try:
        document = read_json(path, CONFIG_BYTES_MAX)
    except InvalidCheckpointError as error:
        raise InvalidAdapterError(error.path, None, error.reason) from None
    match document:
        case {"peft_type": "LORA"}:
            pass
        case _:
            kind = shown(str(document.get("peft_type")))
            raise _refusal(path, f"peft_type must be {_KIND}. Given: {kind}")
    match document:
        case {"r": int(rank), "lora_alpha": int(alpha) | float(alpha)} if type(alpha) is not bool:
            pass
        case _:
            raise _refusal(path, "lacks the number r or lora_alpha")
    base_model = document.get("base_model_name_or_path")
    if base_model is not None and not isinstance(base_model, str):
        raise _refusal(path, "base_model_name_or_path is no text")
    try:
        return AdapterConfig(
            rank=rank,
            alpha=alpha,
            target_modules=_modules(path, document.get("target_modules")),
            base_model=base_model,
            other={key: value for key, value in document.items() if key not in _OWN},
        )
    except (ValueError, OverflowError) as error:
        if isinstance(error, InvalidAdapterError):
            raise
        raise _refusal(path, str(error)) from None


def config_bytes(config: AdapterConfig) -> bytes:
    """Return the contents of adapter_config.json. Raises ValueError if it cannot be JSON."""
    try:
        text = json.dumps(config.as_json(), indent=2, sort_keys=True, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"the adapter's config is not JSON: {error}") from None
    return text.encode()


def _modules(path: Path, value: object) -> tuple[str, ...] | str | None:
    match value:
        case None | str():
            return value
        case [*names] if all(isinstance(name, str) for name in names):
            return tuple(map(str, names))
        case _:
            raise _refusal(path, "target_modules is neither a text nor a list of texts")


def _refusal(path: Path, reason: str) -> InvalidAdapterError:
    return InvalidAdapterError(os.fspath(path), None, reason)
