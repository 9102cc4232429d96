"""One checkpoint of random weights in every form that a loader wants."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import brisk_native
import torch
from safetensors.torch import load_file, save_file

from bench.loaders import LOADERS, checksum_of
from bench.processes import ROOT
from scripts.make_large_model import make
from scripts.opt_layout import Shape

TOKENIZER = ROOT / "models" / "brisk-licence-1.5m"
SHARDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A loader on a folder."""

    label: str
    loader: str
    folder: Path


def prepare(folder: Path, shape: Shape) -> tuple[list[Way], dict[str, str], int]:
    """Write the checkpoint in every form; return the ways, notes and the tensors' checksum."""
    whole, shards, others = folder / "whole", folder / "shards", folder / "others"
    make(whole, shape, 1, TOKENIZER)
    tensors = load_file(whole / "model.safetensors")
    checksum = checksum_of(tensors.values())
    shards.mkdir()
    others.mkdir()
    _write_shards(shards, tensors)
    torch.save(tensors, others / "pytorch_model.bin")
    notes = {}
    try:
        _write_tensorizer(others / "model.tensors", tensors)
    except ImportError as error:
        notes["tensorizer"] = f"tensorizer was not measured: {error}"
    for place in (whole, shards):
        _write_manifest(place)
    ways = [Way(label="brisk, 4 shards", loader="brisk", folder=shards)]
    for loader in LOADERS:
        if loader not in notes:
            place = others if loader in {"torch.load", "torch.load mmap", "tensorizer"} else whole
            ways.append(Way(label=loader, loader=loader, folder=place))
    return ways, notes, checksum


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


def _write_tensorizer(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    serializer = importlib.import_module("tensorizer").TensorSerializer(str(path))
    serializer.write_state_dict(tensors)
    serializer.close()


def _write_manifest(folder: Path) -> None:
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
