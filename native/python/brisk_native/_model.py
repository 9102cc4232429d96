"""A folder's model, ready to compute: loaded in one call, or piece by piece while it is read.

The bytes are read on one thread while another builds the model without weights; a group of
tensors becomes the model's as soon as both are there. torch and transformers are imported by the
first call, not by the package.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from brisk_native._device_map import DeviceMap, parse_device_map
from brisk_native._device_reading import read_tensors_to_devices, torch_device
from brisk_native._device_types import HOST_BYTES
from brisk_native._implementation import CancelToken, Pool
from brisk_native._manifest import read_checksums
from brisk_native._order import execution_order
from brisk_native._placed import Placed
from brisk_native._reading import (
    LoadReport,
    OnGroup,
    ReadOptions,
    ReadWeights,
    Tensors,
    listed,
    memory_given_back,
    read_tensors,
    take_tensors,
)
from brisk_native._types import InvalidHeaderError, InvalidModelError, ReadSettings
from brisk_native._verify import check_files
from brisk_native._weights import Weights, folder_of, read_weights, weights_in

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from typing_extensions import Buffer

    from brisk_native.model import Assembly

Result = TypeVar("Result")
Reserve: TypeAlias = Callable[[int], None]


def load_model(
    folder: str | os.PathLike[str],
    *,
    device: str | int | torch.device | Mapping[str, str | int | torch.device] = "cpu",
    pool: Pool | None = None,
    dtype: torch.dtype | str | None = None,
    on_layer: Callable[[str, dict[str, torch.Tensor]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
    verify: bool = True,
    settings: ReadSettings | None = None,
    host_bytes: int = HOST_BYTES,
    buffers: Mapping[str, Buffer] | None = None,
) -> PreTrainedModel:
    """Return the causal language model in `folder`, in evaluation mode, its weights in place.

    `device` is "cpu", or a CUDA device ("cuda", "cuda:1", 1) that the weights go to through a
    ring of `host_bytes` (from 8 MiB) of host memory, or a map from paths of modules to CUDA
    devices, "" for all others: each module named there then moves its inputs to its own device.

    `folder` is laid out as Hugging Face's are: config.json and safetensors, one file or shards, or
    the stored form. The model is what `AutoModelForCausalLM.from_pretrained` gives, but that it
    computes in the type that most bytes are stored in, or in `dtype` ("float16" or torch's own):
    tensors of another type are cast, all others lie where they were read, not copied. Parameters
    need no gradient. No code from the folder is run.

    `on_layer` gets the stored tensors of one group after another, in the order in which the model
    uses them and as soon as they are there: `embed`, `layers.0` and so on, `head`. `progress` gets
    the bytes done and those there are, about every 20 ms. Both are called on the calling thread;
    if one raises, so does this call. Weights go to `pool`, or else to fresh memory; `verify`,
    `settings` and `cancel` are as `load_tensors` has them; `verify` compares the other files of
    brisk.json, too. Whatever is raised, all memory of this call is given back.

    With `buffers`, which hold the bytes of all weight files by name, nothing of these is read: the
    model uses them where they are, as `map_pieces` gives them, and keeps them alive. Nobody may
    write to them meanwhile, and nothing here does; they were verified by whoever brought them.
    For the CPU only.

    Raises InvalidModelError naming file, tensor, expected and found if config and weights do not
    fit together, ImportError without torch and transformers, ValueError for a `dtype` that torch
    does not have or a map that leaves a parameter out, and what `load_tensors` does.
    """
    load = _Load(folder, None, buffers, device=device, dtype=dtype, verify=verify)
    options = ReadOptions(
        pool=pool, settings=settings, progress=progress, cancel=cancel, host_bytes=host_bytes
    )
    return load.run(options, on_layer)[0]


def start_loading(
    folder: str | os.PathLike[str],
    *,
    files: Sequence[str] | None = None,
    device: str | int | torch.device | Mapping[str, str | int | torch.device] = "cpu",
    pool: Pool | None = None,
    dtype: torch.dtype | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
    verify: bool = True,
    require_manifest: bool = False,
    reserve: Reserve | None = None,
    settings: ReadSettings | None = None,
    host_bytes: int = HOST_BYTES,
    buffers: Mapping[str, Buffer] | None = None,
) -> Loading:
    """Start to load a model on threads of its own; return the handle to it.

    Headers and index are read before this returns, so what is wrong with them is raised here.
    `files` names the weight files in the folder; None finds them as transformers does. `progress`
    is called on the loading thread.

    With `require_manifest` a folder without brisk.json is refused (InvalidCheckpointError) instead
    of read unverified. `reserve` gets the bytes that the weights are about to take in memory, file
    headers and padding left out: first what is stored; then, when the model is built, that and the
    copies that other types, misalignment, merging or splitting need; at the end what stays. It is
    called on threads of the load, before the memory is taken; what it raises ends the load. The
    rest is as `load_model` has it.
    """
    cancel = cancel or CancelToken()
    options = ReadOptions(
        pool=pool, settings=settings, progress=progress, cancel=cancel, host_bytes=host_bytes
    )
    load = _Load(
        folder,
        files,
        buffers,
        device=device,
        dtype=dtype,
        verify=verify or require_manifest,
        require_manifest=require_manifest,
        reserve=reserve,
    )
    return Loading(load, options, cancel)


class Loading:
    """A model being loaded, usable from its first layer on. Thread-safe.

    As a context manager it cancels what is not done at the end of the block, and waits for it.

        with brisk_native.start_loading(folder) as loading:
            model = loading.model  # parameters are on the meta device until their group is there
            loading.wait_for("layers.0")  # and with it all groups before it
            ...
            model = loading.result()

    `computing` does the waiting by itself.
    """

    def __init__(self, load: _Load, options: ReadOptions, cancel: CancelToken) -> None:
        """Start the load. Use `start_loading`."""
        self._load = load
        self._cancel = cancel
        self._future: Future[tuple[PreTrainedModel, LoadReport]] = _start(
            lambda: load.run(options, None), "brisk-load"
        )

    @property
    def weights(self) -> Weights:
        """What the weight files contain."""
        return self._load.weights

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order in which the model uses them and they are read."""
        return self._load.groups

    @property
    def model(self) -> PreTrainedModel:
        """The model, as soon as it is built. Blocks; raises what `result` does.

        The parameters of a group that is not there yet are on the meta device. An architecture
        whose stored tensors must be merged or split has all of them there until `result` returns.
        """
        if (built := self._load.placed.wait_built()) is None:
            return self.result()
        return built

    @contextmanager
    def computing(self) -> Iterator[PreTrainedModel]:
        """Give the model for a block in which its parts wait for their own weights.

        A forward pass within the block begins as soon as the first group is there, and each layer
        when its group is. Raises what `result` does, also out of the forward pass.
        """
        from brisk_native.model import waiting  # noqa: PLC0415 - slow

        model = self.model
        if self.groups:
            self.wait_for(self.groups[0])  # what the model says of its device and type is right
        with waiting(model, self._load.placed.group_of, self.wait_for):
            yield model

    def wait_for(self, group: str, timeout: float | None = None) -> None:
        """Return when the tensors of `group` and of all groups before it are the model's.

        Raises ValueError if there is no such group, TimeoutError after `timeout` seconds, and what
        `result` does if the load ended without it.
        """
        if group not in self.groups:
            raise ValueError(f"there is no group {group!r} among {', '.join(self.groups)}")
        if not self._load.placed.wait_for(group, timeout):
            self.result()

    def result(self, timeout: float | None = None) -> PreTrainedModel:
        """Return the whole model. Blocks.

        Raises TimeoutError after `timeout` seconds, ReadCancelledError after `cancel`, and what
        `load_model` does.
        """
        return self._future.result(timeout)[0]

    @property
    def report(self) -> LoadReport:
        """How the weights came into memory. Blocks; raises what `result` does."""
        return self._future.result()[1]

    def done(self) -> bool:
        """Return whether the load has ended, however."""
        return self._future.done()

    def cancel(self) -> None:
        """End the load within one chunk; `result` then raises ReadCancelledError."""
        self._cancel.cancel()

    def __enter__(self) -> Loading:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if not self.done():
            self.cancel()
        self._future.exception()


class _Load:
    """One load of one model; `run` it once."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        files: Sequence[str] | None,
        buffers: Mapping[str, Buffer] | None,
        *,
        device: str | int | torch.device | Mapping[str, str | int | torch.device],
        dtype: torch.dtype | str | None,
        verify: bool,
        require_manifest: bool = False,
        reserve: Reserve | None = None,
    ) -> None:
        """Read headers, index and manifest. Raises what is wrong with them."""
        self._folder = folder_of(folder)
        self._dtype = dtype
        self._reserve = reserve or (lambda _: None)
        self._devices = parse_device_map(device)
        self._buffers = buffers
        known = read_checksums(self._folder, is_required=require_manifest) if verify else None
        if buffers is None:
            self.weights = self._read_headers(folder, files, known or {})
        elif self._devices.is_cpu:
            self.weights = weights_in(self._folder, buffers)
        else:
            raise ValueError("buffers are host memory: a device cannot use them in place")
        self._checksums = listed(self._folder, known, self.weights)
        weights = {file.name for file in self.weights.files}  # those are verified as they are read
        check_files(self._folder, self._checksums, self._checksums.keys() - weights)
        self.groups = tuple(group.name for group in execution_order(self.weights.tensors))
        self.placed = Placed(self.groups)

    def _read_headers(
        self,
        folder: str | os.PathLike[str],
        files: Sequence[str] | None,
        checksums: Mapping[str, tuple[int, ...]],
    ) -> Weights:
        try:
            return read_weights(folder, files=files)
        except InvalidHeaderError as error:  # damage must not pass for a wrong model
            check_files(self._folder, checksums, [Path(error.path).name])
            raise

    def run(
        self, options: ReadOptions, on_layer: OnGroup | None
    ) -> tuple[PreTrainedModel, LoadReport]:
        """Load; the callbacks are called on this thread. Raises what `load_model` does."""
        with memory_given_back():
            try:
                model, report, most_bytes = self._run(options, on_layer)
            except InvalidModelError:  # it may be damage: the refusal came before all was read
                names = [] if self._buffers else [file.name for file in self.weights.files]
                check_files(self._folder, self._checksums, names, options.cancel)
                raise
            else:
                self._reserve(min(most_bytes, report.held_bytes))
                return model, report
            finally:
                self.placed.close()

    def _run(
        self, options: ReadOptions, on_layer: OnGroup | None
    ) -> tuple[PreTrainedModel, LoadReport, int]:
        self._reserve(self._stored_bytes)
        building = _start(self._build, "brisk-build")

        def on_group(name: str, tensors: Tensors) -> None:
            self.placed.add(name, tensors)
            if on_layer is not None:
                on_layer(name, tensors)

        def on_bytes(done: int, total: int) -> None:
            if building.done():
                building.result()  # a model that was refused need not be read
            if options.progress is not None:
                options.progress(done, total)

        try:
            read = self._read(replace(options, progress=on_bytes), on_group, building)
        finally:
            building.exception()  # nothing of a load goes on after its end
        assembly = building.result()
        most_bytes = self._most_bytes(assembly)
        return assembly.finish(), _with_casts(read.report, assembly), most_bytes

    def _build(self) -> Assembly:
        # Slow, and only models need it.
        from brisk_native.model import (  # noqa: PLC0415
            Assembly,
            bring_inputs,
            build_skeleton,
            named_dtype,
            on_cpu,
        )

        devices = self._devices
        skeleton = build_skeleton(self._folder, self.weights, dtype=named_dtype(self._dtype))
        if devices.is_cpu:
            assembly = Assembly(skeleton, on_cpu)
        else:
            known = {ordinal: torch_device(ordinal) for ordinal in devices.used}
            assembly = Assembly(skeleton, lambda name: known[devices.owner(name)])
        if len(devices.used) > 1:
            _refuse_to_split(assembly, devices)
            bring_inputs(assembly.model, devices.ordinals)
        self._reserve(self._most_bytes(assembly))
        group_of = {
            name: group.name
            for group in execution_order(self.weights.tensors)
            for stored in group.tensors
            for name in assembly.names_of(stored)
        }
        self.placed.built(assembly, group_of)
        return assembly

    @property
    def _stored_bytes(self) -> int:
        """What the weights take as they are stored: nothing where somebody else has them."""
        return 0 if self._buffers is not None else self.weights.tensor_bytes

    def _most_bytes(self, assembly: Assembly) -> int:
        """Return what the weights take at most, while they become the model."""
        copied = self.weights.misaligned_bytes if self._devices.is_cpu else 0
        return self._stored_bytes + copied + assembly.planned_bytes(self.weights)

    def _read(
        self, options: ReadOptions, on_group: OnGroup, building: Future[Assembly]
    ) -> ReadWeights:
        if self._buffers is not None:
            return take_tensors(self.weights, self._buffers, options, on_group)
        if self._devices.is_cpu:
            return read_tensors(self.weights, self._checksums, options, on_group)
        if len(self._devices.used) == 1:
            (ordinal,) = self._devices.used
            return read_tensors_to_devices(
                self.weights, self._checksums, options, lambda _: ordinal, on_group
            )
        assembly = building.result()  # a map speaks of parameters: which tensor becomes which?

        def ordinal_of(name: str) -> int:
            return self._devices.owner((assembly.names_of(name) or (name,))[0])

        return read_tensors_to_devices(self.weights, self._checksums, options, ordinal_of, on_group)


def _refuse_to_split(assembly: Assembly, devices: DeviceMap) -> None:
    """Refuse a map that this model cannot follow, before anything of it is read.

    Raises ValueError.
    """
    if assembly.is_converted:
        raise ValueError(
            "the device map splits a model whose stored tensors must be merged or split first: "
            "it takes one device for all of it"
        )
    for one, other in assembly.contested:
        if devices.owner(one) != devices.owner(other):
            raise ValueError(
                f"the device map puts {one!r} and {other!r}, which are tied, on two devices"
            )


def _with_casts(report: LoadReport, assembly: Assembly) -> LoadReport:
    if assembly.is_converted:
        return replace(
            report,
            copied_bytes=assembly.cast_bytes,
            held_bytes=assembly.cast_bytes,
            mapped_bytes=0,
        )
    copied = report.copied_bytes + assembly.cast_bytes
    return replace(report, copied_bytes=copied, held_bytes=report.held_bytes + assembly.cast_bytes)


def _start(call: Callable[[], Result], name: str) -> Future[Result]:
    """Run `call` on a thread of its own; return what will hold its result."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def body() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=body, name=name).start()
    return future
