"""One load of a checkpoint by one loader, in a process of its own: `python -m bench.loaders`.

Everything is imported before the clock starts. The program says "ready" and waits for a line on
stdin, so that whoever runs it can drop the page cache in between; then it loads, touches every
page, and prints one line of JSON. The checksum comes last, outside of all times.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
POOL_ROUNDING = 4 << 20  # files start on huge pages, and end within one
FACTS: dict[str, int] = {}  # what a loader says of itself beside its figures
Tensors = Iterable[Any]  # torch's tensors; the type would import torch before it is wanted


def _brisk_fresh(folder: Path) -> Callable[[], Tensors]:
    import brisk_native  # noqa: PLC0415 - each process imports its own loader only

    return lambda: brisk_native.load_tensors(folder).values()


def _brisk_pool(folder: Path, kind: str = "auto") -> Callable[[], Tensors]:
    import brisk_native  # noqa: PLC0415

    room = sum(file.stat().st_size + POOL_ROUNDING for file in _files(folder))
    pool = brisk_native.Pool(room, kind=kind)
    pool.wait_populated()
    FACTS["pool_bytes"] = pool.size_bytes
    FACTS["page_bytes"] = pool.page_bytes
    return lambda: brisk_native.load_tensors(folder, pool=pool).values()


def _brisk_small_pool(folder: Path) -> Callable[[], Tensors]:
    return _brisk_pool(folder, kind="small")


def _brisk_in_place(folder: Path) -> Callable[[], Tensors]:
    import brisk_native  # noqa: PLC0415

    command = [sys.executable, "-m", "bench.holder", str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _KEPT.append(holder)  # it ends with our end of its stdin
    assert holder.stdout is not None  # noqa: S101 - it is a pipe
    held = json.loads(holder.stdout.readline())
    FACTS["page_bytes"] = held["page_bytes"]

    def load() -> Tensors:
        pool = brisk_native.Pool.attach(held["path"])
        images = [pool.view(offset, size) for offset, size in held["places"]]
        return [one for image in images for one in brisk_native.tensors_in(image).values()]

    return load


def _safetensors(folder: Path) -> Callable[[], Tensors]:
    from safetensors.torch import load_file  # noqa: PLC0415

    return lambda: [one for file in _files(folder) for one in load_file(file).values()]


def _torch_load(folder: Path) -> Callable[[], Tensors]:
    import torch  # noqa: PLC0415

    path = folder / "pytorch_model.bin"
    return lambda: torch.load(path, weights_only=True).values()


def _torch_load_mmap(folder: Path) -> Callable[[], Tensors]:
    import torch  # noqa: PLC0415

    path = folder / "pytorch_model.bin"
    return lambda: torch.load(path, weights_only=True, mmap=True).values()


def _transformers(folder: Path) -> Callable[[], Tensors]:
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    config = AutoConfig.from_pretrained(folder)
    importlib.import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")

    def load() -> Tensors:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        kept = list(model.state_dict().values())
        return {tensor.data_ptr(): tensor for tensor in kept}.values()  # tied ones count once

    return load


def _runai(folder: Path) -> Callable[[], Tensors]:
    module = importlib.import_module("runai_model_streamer")

    def load() -> Tensors:
        with module.SafetensorsStreamer() as streamer:
            streamer.stream_files([str(file) for file in _files(folder)])
            return [tensor for _, tensor in streamer.get_tensors()]

    return load


def _fastsafetensors(folder: Path) -> Callable[[], Tensors]:
    module = importlib.import_module("fastsafetensors")

    def load() -> Tensors:
        loader = module.SafeTensorsFileLoader(module.SingleGroup(), device="cpu", nogds=True)
        loader.add_filenames({0: [str(file) for file in _files(folder)]})
        names = loader.get_keys()
        buffers = loader.copy_files_to_device()
        _KEPT.extend((loader, buffers))
        return [buffers.get_tensor(name) for name in names]

    return load


def _tensorizer(folder: Path) -> Callable[[], Tensors]:
    module = importlib.import_module("tensorizer")

    def load() -> Tensors:
        found = module.TensorDeserializer(str(folder / "model.tensors"), device="cpu")
        _KEPT.append(found)
        return [found[name] for name in found]

    return load


_KEPT: list[object] = []  # owners of memory that tensors do not keep alive themselves
LOADERS: dict[str, Callable[[Path], Callable[[], Tensors]]] = {
    "brisk": _brisk_pool,
    "brisk, 4 shards": _brisk_pool,
    "brisk, stored form": _brisk_pool,
    "brisk, 4 KiB pages": _brisk_small_pool,
    "brisk, fresh memory": _brisk_fresh,
    "brisk, in place": _brisk_in_place,
    "safetensors": _safetensors,
    "torch.load": _torch_load,
    "torch.load mmap": _torch_load_mmap,
    "transformers": _transformers,
    "runai-model-streamer": _runai,
    "fastsafetensors": _fastsafetensors,
    "tensorizer": _tensorizer,
}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _octets(tensor: Any) -> Any:
    import torch  # noqa: PLC0415

    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _touch_s(tensors: list[Any]) -> float:
    begin_s = time.perf_counter()
    for tensor in tensors:
        int(_octets(tensor)[::PAGE_BYTES].sum())
    return time.perf_counter() - begin_s


def checksum_of(tensors: Tensors) -> int:
    """Return a sum that does not depend on the order of the tensors."""
    from brisk_native import crc32c  # noqa: PLC0415

    return sum(crc32c(_octets(tensor).numpy()) for tensor in tensors)


def _peak_bytes() -> int:
    """Return the most memory that was ever resident; getrusage would count the parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(arguments: list[str]) -> int:
    """Load once and say what it took."""
    name, folder = arguments[0], Path(arguments[1])
    load = LOADERS[name](folder)
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)  # of the touching; the loaders have threads of their own
    _touch_s([torch.zeros(PAGE_BYTES, dtype=torch.uint8)])  # reads the code for it from the disk
    print("ready", flush=True)
    sys.stdin.readline()
    before_bytes, before = _peak_bytes(), resource.getrusage(resource.RUSAGE_SELF)
    begin_s = time.perf_counter()
    tensors = list(load())
    load_s = time.perf_counter() - begin_s
    first_s = _touch_s(tensors)
    after = resource.getrusage(resource.RUSAGE_SELF)
    again_s = _touch_s(tensors)  # what touching costs when everything is there
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - again_s
    found = {
        "seconds": load_s + max(0.0, first_s - again_s),
        "call_s": load_s,
        "cpu_s": max(0.0, cpu_s),
        "system_s": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak_bytes": _peak_bytes() - before_bytes + FACTS.get("pool_bytes", 0),
        "tensor_bytes": sum(tensor.nbytes for tensor in tensors),
        "checksum": checksum_of(tensors),
        **FACTS,
    }
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
