"""Write a random-weight checkpoint of OPT-1.3B's shape, to show what a real cold start costs.

What a load costs depends on the bytes and their layout, not on what they mean: so this makes the
2.6 GB that the published OPT-1.3B would bring, without the network. The tokenizer is the demo
model's, and some rows of the embeddings are louder than the rest, so that the model writes
nonsense made of words. Nothing is ever half there: the folder appears whole, or not at all.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from scripts.opt_layout import BYTES_PER_VALUE, Shape, Tensor, config, header, tensors

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
NOISE_VALUES = 32 * MIB  # made once; every tensor is a piece of it from a place of its own
WRITE_BYTES, SYNC_BYTES = 16 * MIB, 256 * MIB  # per write; between flushes, so progress is true
# Standard deviations. Loud rows make the tokenizer's words likelier than the 49,000 ids that it
# cannot spell; loud positions keep random layers from repeating one word for ever.
QUIET, TOKENS, POSITIONS = 0.01, 0.2, 4.0
WORDS_FROM = 2 + 256  # after begin and end, which would end the text, and the single bytes


class RefusedError(Exception):
    """Nothing was written; the message says why and what would help."""


def small_files(shape: Shape, tokenizer: Path) -> dict[str, bytes]:
    """Return the folder's files besides the weights. Raises RefusedError without a tokenizer."""
    try:
        spelling = (tokenizer / "tokenizer.json").read_bytes()
        facts = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(
            f"no tokenizer in {tokenizer} ({error.strerror}): scripts/make_demo_model.py makes one"
        ) from error
    facts["model_max_length"] = shape.positions
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {
        "config.json": _json(config(shape)),
        "generation_config.json": _json(tokens),
        "tokenizer.json": spelling,
        "tokenizer_config.json": _json(facts),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def make(out: Path, shape: Shape, seed: int, tokenizer: Path) -> bool:
    """Write the folder `out`; return False if it was there already.

    Raises RefusedError. Whatever interrupts it, no part of the folder stays.
    """
    layout = tensors(shape)
    top = header(layout, seed)
    weight_bytes = sum(tensor.size_bytes() for tensor in layout)
    files = small_files(shape, tokenizer)
    if out.exists():
        if _is_there(out, top, len(top) + weight_bytes, files):
            return False
        raise RefusedError(f"{out} holds something else: remove it or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = len(top) + weight_bytes + sum(map(len, files.values()))
    available = shutil.disk_usage(out.parent).free
    if available < needed:
        raise RefusedError(
            f"not enough room in {out.parent}: needed {needed} bytes, available {available} bytes"
        )
    known = len(json.loads(files["tokenizer.json"])["model"]["vocab"])
    with _folder_or_nothing(out) as fresh:
        _write_weights(fresh / "model.safetensors", top, layout, Noise(seed, known, shape))
        for name, content in files.items():
            with (fresh / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    return True


def _is_there(out: Path, top: bytes, size_bytes: int, files: dict[str, bytes]) -> bool:
    weights = out / "model.safetensors"
    try:
        with weights.open("rb") as file:
            if file.read(len(top)) != top or weights.stat().st_size != size_bytes:
                return False
        return all((out / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


@contextmanager
def _folder_or_nothing(out: Path) -> Iterator[Path]:
    """Lend a new folder that becomes `out` if the block ends well and else goes away."""
    fresh = out.with_name(f".{out.name}.partial")
    fresh.mkdir(exist_ok=True)
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(f"another run is writing {out}") from error
        try:
            for leftover in fresh.iterdir():  # of a run that was killed
                leftover.unlink()
            yield fresh
            os.fsync(lock)
            fresh.rename(out)
            _sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Noise:
    """Endless random fp16 bytes, cut from one block that is drawn once."""

    def __init__(self, seed: int, known_tokens: int, shape: Shape) -> None:
        """Draw the block; the rows of the words among `known_tokens` will be loud."""
        import numpy as np  # noqa: PLC0415 - an existing model is recognised without it, in ms

        rows = shape.positions + 2
        count = min(NOISE_VALUES, max(MIB, shape.hidden * shape.vocabulary, shape.hidden * rows))
        block = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)

        def scaled(first_row: int, end_row: int, deviation: float) -> memoryview:
            part = block[first_row * shape.hidden : end_row * shape.hidden]
            return memoryview((part * deviation).astype(np.float16).tobytes())

        self.quiet = memoryview((block * QUIET).astype(np.float16).tobytes())
        self.start = {
            "tokens": [scaled(0, WORDS_FROM, QUIET), scaled(WORDS_FROM, known_tokens, TOKENS)],
            "positions": [scaled(0, rows, POSITIONS)],
        }

    def pieces(self, tensor: Tensor, number: int) -> Iterator[memoryview]:
        """Yield the bytes of `tensor`, the `number`-th of the file, in pieces."""
        left = tensor.size_bytes()
        if tensor.fill in {"ones", "zeros"}:
            one = b"\x00\x3c" if tensor.fill == "ones" else b"\x00\x00"
            yield memoryview(one * (left // BYTES_PER_VALUE))
            return
        for piece in self.start.get(tensor.fill, []):
            yield piece
            left -= len(piece)
        at = number * 2_654_435_761 % (len(self.quiet) // BYTES_PER_VALUE) * BYTES_PER_VALUE
        while left > 0:
            piece = self.quiet[at : at + min(left, WRITE_BYTES)]
            yield piece
            left -= len(piece)
            at = (at + len(piece)) % len(self.quiet)


def _write_weights(path: Path, top: bytes, layout: list[Tensor], noise: Noise) -> None:
    total = len(top) + sum(tensor.size_bytes() for tensor in layout)
    progress = Progress(total)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, total)  # no room shows now, not halfway
        written, synced = file.write(top), 0
        for number, tensor in enumerate(layout):
            for piece in noise.pieces(tensor, number):
                written += file.write(piece)
                if written - synced >= SYNC_BYTES:
                    file.flush()
                    os.fdatasync(file.fileno())
                    synced = written
                progress.show(written)
        file.flush()
        os.fsync(file.fileno())
    progress.finish()


class Progress:
    """One living line on a terminal, a line per tenth elsewhere."""

    def __init__(self, total_bytes: int) -> None:
        """Start the clock for `total_bytes`."""
        self.total_bytes, self.started_s, self.tenth = total_bytes, time.monotonic(), 0

    def show(self, done_bytes: int) -> None:
        """Tell that `done_bytes` are written."""
        rate = done_bytes / MIB / max(1e-6, time.monotonic() - self.started_s)
        line = f"{done_bytes / 1e9:.2f} of {self.total_bytes / 1e9:.2f} GB"
        line += f"  {done_bytes / self.total_bytes:4.0%}  {rate:.0f} MiB/s"
        if sys.stdout.isatty():
            print(f"\r{line}\x1b[K", end="", flush=True)
        elif done_bytes * 10 // self.total_bytes > self.tenth:
            self.tenth = done_bytes * 10 // self.total_bytes
            print(line, flush=True)

    def finish(self) -> None:
        """End the living line."""
        if sys.stdout.isatty():
            print()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    out = ROOT / ".brisk" / "opt-1.3b-random"
    parser.add_argument("--out", type=Path, default=out, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--layers", type=int, default=Shape().layers, help="(%(default)s)")
    parser.add_argument("--hidden", type=int, default=Shape().hidden, help="(%(default)s)")
    parser.add_argument(
        "--tokenizer", type=Path, default=ROOT / "models" / "brisk-licence-1.5m",
        help="folder of the tokenizer to reuse (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.layers < 1 or options.hidden < Shape().heads or options.hidden % Shape().heads:
        parser.error(f"--layers must be at least 1 and --hidden a multiple of {Shape().heads}")
    return options


def main(arguments: list[str]) -> int:
    """Make the model; return the exit status."""
    options = parse(arguments)

    def leave(signum: int, _frame: object) -> NoReturn:
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, leave)
    shape = Shape(layers=options.layers, hidden=options.hidden, ffn=4 * options.hidden)
    try:
        made = make(options.out.absolute(), shape, options.seed, options.tokenizer)
    except RefusedError as error:
        print(f"make_large_model: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"make_large_model: {error.filename or ''} {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was left behind", file=sys.stderr)
        return 130
    print(f"{'wrote' if made else 'already there:'} {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
