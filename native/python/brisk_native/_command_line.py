"""What the command line does: convert a folder, inspect, verify and time it.

Results go to stdout, as text or with --json as one object; progress and refusals go to stderr.
Exit status: 0 done, 1 the files are not sound or cannot be read, 2 the call was wrong, 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from brisk_native._convert import Conversion, convert
from brisk_native._implementation import IMPLEMENTATION
from brisk_native._progress import ProgressBar
from brisk_native._speed import Speed, measure
from brisk_native._types import (
    ChecksumError,
    InvalidCheckpointError,
    InvalidHeaderError,
    ShortReadError,
    TensorInfo,
)
from brisk_native._verify import verify
from brisk_native._weights import Weights, read_weights

_REFUSALS = (ChecksumError, InvalidCheckpointError, InvalidHeaderError, ShortReadError, OSError)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    commands = {"convert": _convert, "inspect": _inspect, "verify": _verify, "bench": _bench}
    command = commands[options.command]
    try:
        command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _REFUSALS as error:
        sys.stderr.write(f"{_printable(_words(error))}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _words(error: Exception) -> str:
    """Return what to say of a refusal: the file first, whoever refused."""
    if isinstance(error, OSError) and error.strerror is not None:
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{named}{error.strerror}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brisk_native", description="Look into folders of safetensors."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "convert": "write a folder's model in the stored form, which is laid out for loading",
        "inspect": "list the tensors of a folder or file",
        "verify": "check headers, index and all checksums of brisk.json",
        "bench": "measure how fast the weights come into memory, past the page cache",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", help="a folder as Hugging Face lays it out, or one file")
        if name == "convert":
            command.add_argument("target", help="the folder to make, or to replace if converted")
        command.add_argument("--json", action="store_true", help="print one JSON object")
        if name != "inspect":
            command.add_argument(
                "--threads", type=_threads, default=4, help="that read each file (4)"
            )
        if name == "bench":
            command.add_argument("--runs", type=_runs, default=5, help="how often to read (5)")
    return parser


def _threads(text: str) -> int:
    return _between(text, 1, 64)


def _runs(text: str) -> int:
    return _between(text, 1, 1000)


def _between(text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text[:9]) <= most:
        raise argparse.ArgumentTypeError(f"must be between {least} and {most}, not {text}")
    return int(text)


def _convert(options: argparse.Namespace) -> None:
    bar = ProgressBar(sys.stderr)
    try:
        done = convert(options.source, options.target, threads=options.threads, progress=bar)
    finally:
        bar.end()
    if options.json:
        _print_json(_conversion_json(done))
        return
    _print(
        f"{done.tensors} tensors, {done.written_bytes / 1e9:.2f} GB written in "
        f"{done.seconds:.2f} s: {done.gb_per_s:.2f} GB/s, on the disk"
    )
    source = "verified by its brisk.json" if done.verified else "not verified: no brisk.json"
    _print(f"{'direct' if done.direct else 'buffered'} reads and writes; source {source}")


def _inspect(options: argparse.Namespace) -> None:
    weights = read_weights(options.source)
    if options.json:
        _print_json(_weights_json(weights))
        return
    rows = [("tensor", "type", "shape", "bytes", "file")]
    for file in weights.files:
        rows += [(*_cells(tensor), _printable(file.name)) for tensor in file.header.tensors]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, dtype, shape, size, file_name in rows:
        line = (
            f"{name:{widths[0]}}  {dtype:{widths[1]}}  {shape:{widths[2]}}  "
            f"{size:>{widths[3]}}  {file_name}"
        )
        _print(line)
    _print(_summary(weights))


def _verify(options: argparse.Namespace) -> None:
    bar = ProgressBar(sys.stderr)
    try:
        found = verify(options.source, threads=options.threads, progress=bar)
    finally:
        bar.end()
    if options.json:
        checked = {"files_checked": found.files_checked, "bytes_checked": found.bytes_checked}
        _print_json({"sound": True, **checked, **_totals(found.weights)})
        return
    _print(_summary(found.weights))
    if found.files_checked:
        _print(
            f"sound: headers, and the checksums of {found.files_checked} files, "
            f"{found.bytes_checked / 1e9:.2f} GB"
        )
    else:
        _print("headers are sound; there is no brisk.json to check the bytes by")


def _bench(options: argparse.Namespace) -> None:
    bar = ProgressBar(sys.stderr)
    try:
        speed = measure(options.source, runs=options.runs, threads=options.threads, progress=bar)
    finally:
        bar.end()
    if options.json:
        _print_json(_speed_json(speed))
        return
    low, high = min(speed.seconds), max(speed.seconds)
    _print(
        f"{speed.file_bytes / 1e9:.2f} GB in {speed.median_s:.3f} s ({low:.3f} to {high:.3f}, "
        f"{len(speed.seconds)} runs): {speed.gb_per_s:.2f} GB/s"
    )
    _print(
        f"{speed.cpu_s_per_gb:.3f} CPU seconds per GB; "
        f"{'direct' if speed.direct else 'buffered'} reads into "
        f"{'huge' if speed.huge_pages else '4 KiB'} pages of fresh memory; "
        f"checksums {'verified' if speed.verified else 'not verified: no brisk.json'}; "
        f"{IMPLEMENTATION} implementation"
    )


def _cells(tensor: TensorInfo) -> tuple[str, str, str, str]:
    return _printable(tensor.name), tensor.dtype, str(list(tensor.shape)), str(tensor.size_bytes)


def _printable(text: str) -> str:
    """Return `text` without the characters by which a file could steer the terminal."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _summary(weights: Weights) -> str:
    totals = _totals(weights)
    return (
        f"{totals['tensors']} tensors, {totals['parameters']} parameters, "
        f"{weights.tensor_bytes / 1e9:.2f} GB in {len(weights.files)} files{_form(weights)}"
    )


def _form(weights: Weights) -> str:
    is_stored = all(file.header.is_stored_form for file in weights.files)
    return ", in the stored form" if is_stored else ""


def _totals(weights: Weights) -> Mapping[str, object]:
    return {
        "tensors": sum(len(file.header.tensors) for file in weights.files),
        "parameters": weights.parameters,
        "tensor_bytes": weights.tensor_bytes,
        "file_bytes": weights.file_bytes,
    }


def _weights_json(weights: Weights) -> Mapping[str, object]:
    files = [
        {
            "name": file.name,
            "size_bytes": file.header.file_bytes,
            "data_offset": file.header.data_offset,
            "stored_form": file.header.is_stored_form,
            "metadata": dict(file.header.metadata),
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "offset": tensor.offset,
                    "size_bytes": tensor.size_bytes,
                }
                for tensor in file.header.tensors
            ],
        }
        for file in weights.files
    ]
    return {"files": files, "totals": _totals(weights)}


def _conversion_json(done: Conversion) -> Mapping[str, object]:
    return {
        "folder": os.fspath(done.folder),
        "tensors": done.tensors,
        "tensor_bytes": done.tensor_bytes,
        "written_bytes": done.written_bytes,
        "verified": done.verified,
        "direct": done.direct,
        "seconds": done.seconds,
        "gb_per_s": done.gb_per_s,
        "implementation": IMPLEMENTATION,
    }


def _speed_json(speed: Speed) -> Mapping[str, object]:
    return {
        "file_bytes": speed.file_bytes,
        "seconds": list(speed.seconds),
        "median_s": speed.median_s,
        "gb_per_s": speed.gb_per_s,
        "cpu_s_per_gb": speed.cpu_s_per_gb,
        "direct": speed.direct,
        "huge_pages": speed.huge_pages,
        "verified": speed.verified,
        "implementation": IMPLEMENTATION,
    }


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print_json(document: Mapping[str, object]) -> None:
    _print(json.dumps(document))
