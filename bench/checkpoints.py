"""One checkpoint in every form that a loader wants, as far as the disk has room."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import brisk_native
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.loaders import checksum_of
from bench.models import Model, write

SHARDS = 4
SPARE_BYTES = 2_000_000_000

WHOLE, SHARDED, STORED, PICKLED, TENSORIZED = "whole", "sharded", "stored", "pickled", "tensorized"
_WANTED = {
    "brisk, stored form": STORED,
    "brisk, 4 shards": SHARDED,
    "torch.load": PICKLED,
    "torch.load mmap": PICKLED,
    "tensorizer": TENSORIZED,
}  # all others read one unmodified file


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The checkpoint on the disk."""

    folders: dict[str, Path]  # by form
    notes: tuple[str, ...]  # which forms are missing, and why
    checksum: int  # of all tensors, in any order
    conversion_gb_per_s: float

    def folder_for(self, loader: str) -> Path | None:
        """Return what `loader` is measured on, None if the disk had no room for it."""
        return self.folders.get(_WANTED.get(loader, WHOLE))


def prepare(place: Path, model: Model) -> Forms:
    """Write `model` into folders under `place`. Raises OSError if there is no room for two."""
    whole = place / WHOLE
    write(whole, model)
    brisk_native.calibrate(whole / "model.safetensors")  # once for a file system
    tensors = _mapped(whole / "model.safetensors")
    folders, notes = {WHOLE: whole}, []
    conversion = brisk_native.convert(whole, place / STORED)
    folders[STORED] = place / STORED
    forms: dict[str, Callable[[Path], None]] = {
        SHARDED: lambda folder: _write_shards(folder, tensors),
        PICKLED: lambda folder: torch.save(tensors, folder / "pytorch_model.bin"),
        TENSORIZED: lambda folder: _write_tensorizer(folder, tensors),
    }
    for name, make in forms.items():
        if shutil.disk_usage(place).free < model.tensor_bytes + SPARE_BYTES:
            notes.append(f"{name.capitalize()} was not measured: the disk has no room for it.")
            continue
        folder = place / name
        folder.mkdir()
        shutil.copy(whole / "config.json", folder)
        try:
            make(folder)
        except ImportError as error:
            notes.append(f"{name.capitalize()} was not measured: {error}.")
        else:
            folders[name] = folder
    for name in (WHOLE, SHARDED):
        if name in folders:
            _write_manifest(folders[name])
    return Forms(
        folders=folders,
        notes=tuple(notes),
        checksum=checksum_of(tensors.values()),
        conversion_gb_per_s=conversion.gb_per_s,
    )


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, in the page cache: a model may be larger than memory."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    size = math.ceil(len(names) / SHARDS)
    for number, first in enumerate(range(0, len(names), size)):
        part = {name: tensors[name] for name in names[first : first + size]}
        file = f"model-{number}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _write_tensorizer(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    serializer = importlib.import_module("tensorizer").TensorSerializer(
        str(folder / "model.tensors")
    )
    serializer.write_state_dict(tensors)
    serializer.close()


def _write_manifest(folder: Path) -> None:
    """Let Brisk verify an unmodified folder, as `brisk import --as-is` does."""
    files = [
        {
            "name": path.name,
            "size_bytes": path.stat().st_size,
            "crc32c": [f"{one:08x}" for one in brisk_native.checksum_file(path)],
        }
        for path in sorted(folder.glob("*.safetensors"))
    ]
    document = {"version": 1, "chunk_bytes": brisk_native.CHUNK_BYTES, "files": files}
    (folder / "brisk.json").write_text(json.dumps(document), encoding="utf-8")
