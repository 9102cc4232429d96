"""Models for tests of remote sources: of several chunks, so that a fetch has something to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.broken_models import WEIGHTS, good_folder, write_safetensors

LARGE_BYTES = 24 << 20


def large_folder(folder: Path, size_bytes: int = LARGE_BYTES) -> Path:
    """Write a sound model with about `size_bytes` of weights, small tensors among large ones."""
    tensors = load_file(good_folder(folder) / WEIGHTS)
    noise = np.random.default_rng(1)
    for number in range(4):
        tensors[f"model.layers.{number}.mlp.extra.weight"] = noise.standard_normal(
            size_bytes // 16, dtype=np.float32
        )
    write_safetensors(folder / WEIGHTS, dict(sorted(tensors.items())))
    return folder
