"""Read, checksum and copy model files at the speed of the disk.

`read_file` brings a whole file into fresh page-aligned memory past the page cache, verifying it
on the way; `checksum_file` and `copy_file` compute the checksums to verify against later. All of
them release the GIL while they work, block the calling thread until they are done, and report
progress on it: services call them on executor threads. Cancelling is a `CancelToken`, which any
thread may raise; the call then ends within one chunk with `ReadCancelledError`.

`read_files` does so for many files at once, at choice into a `Pool`: memory that was faulted in
beforehand, in huge pages where they can be had, which is what makes loads as fast as the disk.
A pool may be cut into chunks by its owner instead: `read_pieces` brings files into it, and another
process sees each as one read-only range by `map_pieces`, without a copy; `start_loading` makes a
model of such bytes. `pieces_in_use` tells the owner what someone still has mapped.

`calibrate` finds out how to read from a file system; `counters` tell how it went so far.

`load_model` gives the model in a folder, ready to compute, its weights where they were read;
`start_loading` the same while it is read, usable from its first layer on. Both need transformers.

`load_adapter` and `save_adapter` read and write LoRA adapters in PEFT's layout.

`convert` writes a model in the stored form, which is laid out for loading; any tool opens it.

`load_tensors` brings a folder of safetensors, as Hugging Face lays it out, into torch tensors;
`open` gives them one by one, `inspect` says what is there and `verify` whether it is sound. What a
file says of itself is checked first (`parse_header`). torch is imported when the first tensor is
made, and only then. `execution_order` tells by names when a model needs which tensors. The same
from the command line: `python -m brisk_native --help`.

`devices` lists the CUDA devices of the machine; `read_to_devices` brings pieces of files into their
memory through a small ring of pinned memory, `copy_to_devices` pieces of memory, and a
`DeviceBuffer` is what they lie in. The driver is opened at run time, where there is one.

The compiled library does this; where it was not built, `IMPLEMENTATION` says "python" and a
slower module of the same interface takes its place. A library that was built but does not load
is an error: speed must not vanish silently.
"""

from __future__ import annotations

from brisk_native._adapter import Adapter, load_adapter, save_adapter
from brisk_native._adapter_config import AdapterConfig
from brisk_native._calibration import calibrate
from brisk_native._convert import (
    Conversion,
    WrittenWeights,
    convert,
    stored_bytes,
    write_weights,
)
from brisk_native._device_types import (
    DeviceError,
    DeviceInfo,
    DeviceLoadResult,
    DeviceMemoryError,
    DevicePiece,
)
from brisk_native._devices import read_to_devices
from brisk_native._files import read_files
from brisk_native._implementation import (
    IMPLEMENTATION,
    CancelToken,
    DeviceBuffer,
    FileBuffer,
    PinnedMemory,
    Pool,
    checksum_file,
    checksum_pieces,
    copy_file,
    copy_to_devices,
    counters,
    crc32c,
    device_memory,
    devices,
    map_pieces,
    parse_header,
    parse_header_bytes,
    parse_manifest,
    parse_manifest_bytes,
    pieces_in_use,
    read_file,
)
from brisk_native._layout import Layout
from brisk_native._layout import plan_layout as stored_layout
from brisk_native._model import Loading, load_model, start_loading
from brisk_native._order import LayerGroup, execution_order
from brisk_native._pieces import read_pieces
from brisk_native._reading import LoadReport
from brisk_native._tensors import LazyTensors, load_tensors, tensors_in
from brisk_native._tensors import open_tensors as open  # noqa: A004 - the name is brisk_native.open
from brisk_native._types import (
    CHUNK_BYTES,
    ChecksumError,
    Counters,
    FileChangedError,
    Header,
    InvalidAdapterError,
    InvalidCheckpointError,
    InvalidHeaderError,
    InvalidModelError,
    Manifest,
    ManifestFile,
    PoolFullError,
    ReadCancelledError,
    ReadResult,
    ReadSettings,
    ShortReadError,
    TensorInfo,
    UnsupportedTypeError,
)
from brisk_native._verify import Verification, verify
from brisk_native._weights import WeightFile, Weights
from brisk_native._weights import read_weights as inspect

__all__ = [
    "CHUNK_BYTES",
    "IMPLEMENTATION",
    "Adapter",
    "AdapterConfig",
    "CancelToken",
    "ChecksumError",
    "Conversion",
    "Counters",
    "DeviceBuffer",
    "DeviceError",
    "DeviceInfo",
    "DeviceLoadResult",
    "DeviceMemoryError",
    "DevicePiece",
    "FileBuffer",
    "FileChangedError",
    "Header",
    "InvalidAdapterError",
    "InvalidCheckpointError",
    "InvalidHeaderError",
    "InvalidModelError",
    "LayerGroup",
    "Layout",
    "LazyTensors",
    "LoadReport",
    "Loading",
    "Manifest",
    "ManifestFile",
    "PinnedMemory",
    "Pool",
    "PoolFullError",
    "ReadCancelledError",
    "ReadResult",
    "ReadSettings",
    "ShortReadError",
    "TensorInfo",
    "UnsupportedTypeError",
    "Verification",
    "WeightFile",
    "Weights",
    "WrittenWeights",
    "calibrate",
    "checksum_file",
    "checksum_pieces",
    "convert",
    "copy_file",
    "copy_to_devices",
    "counters",
    "crc32c",
    "device_memory",
    "devices",
    "execution_order",
    "inspect",
    "load_adapter",
    "load_model",
    "load_tensors",
    "map_pieces",
    "open",
    "parse_header",
    "parse_header_bytes",
    "parse_manifest",
    "parse_manifest_bytes",
    "pieces_in_use",
    "read_file",
    "read_files",
    "read_pieces",
    "read_to_devices",
    "save_adapter",
    "start_loading",
    "stored_bytes",
    "stored_layout",
    "tensors_in",
    "verify",
    "write_weights",
]
