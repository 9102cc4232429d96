"""A checkpoint as a whole: config, index and headers, each sound and none against another.

Whether the tensors are those of the architecture only shows when the model is built, which takes
transformers: the worker's Check does that before a model is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import brisk_native

from services.common.names import shorten
from services.storemgr.facts import ModelFacts, Tally
from services.storemgr.folder import (
    CONFIG,
    INDEX,
    SUPPORT_BYTES_MAX,
    FileKind,
    ModelFile,
    read_whole,
)
from services.storemgr.model_config import ModelConfig, parse_config
from services.storemgr.refusal import MalformedError, blaming, invalid_model
from services.storemgr.weight_index import WeightIndex, parse_index

TENSORS_MAX: Final = 500_000  # of all files together


def inspect(files: Sequence[ModelFile]) -> ModelFacts:
    """Return the facts of the checkpoint that `files` make up, reading headers, not tensors.

    Raises InvalidArgumentError (INVALID_MODEL) naming the file at fault.
    """
    by_name = {file.name: file for file in files}
    config = _config(by_name[CONFIG])
    index = _index(by_name.get(INDEX))
    tally = Tally()
    file_of: dict[str, str] = {}
    for file in files:
        if file.kind is not FileKind.WEIGHTS:
            continue
        with blaming(file.name):
            header = read_header(file.path)
        tally.add(header.tensors)
        _place(file_of, header, file.name)
    if not file_of:
        raise invalid_model("", "has no tensors")
    _compare(index, file_of)
    return tally.facts(config)


def read_header(path: Path) -> brisk_native.Header:
    """Return the header of a safetensors file. Raises MalformedError and OSError."""
    try:
        return brisk_native.parse_header(path)
    except brisk_native.InvalidHeaderError as error:
        fault = error.reason
        if error.tensor is not None:
            fault = f"tensor {shorten(error.tensor)} {fault}"
        raise MalformedError(f"has no sound header: {fault}") from None
    except brisk_native.ShortReadError as error:
        raise MalformedError("shrank while it was read") from error


def _config(file: ModelFile) -> ModelConfig:
    with blaming(CONFIG):
        return parse_config(read_whole(file.path, bytes_max=SUPPORT_BYTES_MAX))


def _index(file: ModelFile | None) -> WeightIndex | None:
    if file is None:
        return None
    with blaming(INDEX):
        return parse_index(read_whole(file.path, bytes_max=SUPPORT_BYTES_MAX))


def _place(file_of: dict[str, str], header: brisk_native.Header, file: str) -> None:
    for tensor in header.tensors:
        other = file_of.setdefault(tensor.name, file)
        if other != file:
            raise invalid_model(file, f"repeats tensor {shorten(tensor.name)} of {shorten(other)}")
    if len(file_of) > TENSORS_MAX:
        raise invalid_model("", f"has more than {TENSORS_MAX} tensors")


def _compare(index: WeightIndex | None, file_of: Mapping[str, str]) -> None:
    """Refuse an index that promises what is not there. Tensors that it leaves out are fine."""
    if index is None:
        return
    for tensor, file in index.file_of.items():
        if file_of.get(tensor) != file:
            raise invalid_model(
                INDEX, f"puts tensor {shorten(tensor)} into {shorten(file)}, which lacks it"
            )
