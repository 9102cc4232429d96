"""A folder's model, ready to compute: loaded in one call, or piece by piece while it is read.

The bytes are read on one thread while another builds the model without weights; a group of
tensors becomes the model's as soon as both are there. torch and transformers are imported by the
first call, not by the package.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

from brisk_native._implementation import CancelToken
from brisk_native._order import execution_order
from brisk_native._reading import (
    LoadReport,
    OnGroup,
    Progress,
    Tensors,
    checksums_of,
    memory_given_back,
    read_tensors,
)
from brisk_native._weights import Weights, folder_of, read_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from brisk_native.model import Assembly

Result = TypeVar("Result")

READ_THREADS: Final = 4


def load_model(
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    on_layer: Callable[[str, dict[str, torch.Tensor]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
    verify: bool = True,
    threads: int = READ_THREADS,
) -> PreTrainedModel:
    """Return the causal language model in `folder`, in evaluation mode, its weights in place.

    `folder` is laid out as Hugging Face's are: config.json and safetensors, one file or shards, or
    the stored form. The model is what `AutoModelForCausalLM.from_pretrained` gives, but that it
    computes in the type that most bytes are stored in, or in `dtype` ("float16" or torch's own):
    tensors of another type are cast, all others lie where they were read, not copied. Parameters
    need no gradient. No code from the folder is run.

    `on_layer` gets the stored tensors of one group after another, in the order in which the model
    uses them and as soon as they are there: `embed`, `layers.0` and so on, `head`. `progress` gets
    the bytes done and those there are, about every 20 ms. Both are called on the calling thread;
    if one raises, so does this call. Raising `cancel` ends it within one chunk. Whatever is
    raised, all memory of this call is given back.

    Raises InvalidModelError naming file, tensor, expected and found if config and weights do not
    fit together, ImportError without torch and transformers, ValueError for a `dtype` that torch
    does not have, and what `load_tensors` does.
    """
    load = _Load(folder, None, dtype=dtype, verify=verify, threads=threads)
    return load.run(on_layer=on_layer, progress=progress, cancel=cancel)[0]


def start_loading(
    folder: str | os.PathLike[str],
    *,
    files: Sequence[str] | None = None,
    dtype: torch.dtype | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
    verify: bool = True,
    threads: int = READ_THREADS,
) -> Loading:
    """Start to load a model on threads of its own; return the handle to it.

    Headers and index are read before this returns, so what is wrong with them is raised here.
    `files` names the weight files in the folder; None finds them as transformers does. `progress`
    is called on the loading thread. The rest is as `load_model` has it.
    """
    return Loading(
        _Load(folder, files, dtype=dtype, verify=verify, threads=threads), progress, cancel
    )


class Loading:
    """A model being loaded, usable from its first layer on. Thread-safe.

    As a context manager it cancels what is not done at the end of the block, and waits for it.

        with brisk_native.start_loading(folder) as loading:
            model = loading.model  # parameters are on the meta device until their group is there
            loading.wait_for("layers.0")  # and with it all groups before it
            ...
            model = loading.result()
    """

    def __init__(self, load: _Load, progress: Progress | None, cancel: CancelToken | None) -> None:
        """Start the load. Use `start_loading`."""
        self._load = load
        self._cancel = cancel or CancelToken()
        self._future: Future[tuple[PreTrainedModel, LoadReport]] = _start(
            lambda: load.run(on_layer=None, progress=progress, cancel=self._cancel), "brisk-load"
        )
        self._future.add_done_callback(lambda _: load.placed.close())

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
        self.cancel()
        self._future.exception()


class _Load:
    """One load of one model; `run` it once."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        files: Sequence[str] | None,
        *,
        dtype: torch.dtype | str | None,
        verify: bool,
        threads: int,
    ) -> None:
        """Read headers, index and manifest. Raises what is wrong with them."""
        self._folder = folder_of(folder)
        self._dtype = dtype
        self._threads = threads
        self.weights = read_weights(folder, files=files)
        self._checksums = checksums_of(self._folder, self.weights) if verify else {}
        self.groups = tuple(group.name for group in execution_order(self.weights.tensors))
        self.placed = _Placed(self.groups)

    def run(
        self, *, on_layer: OnGroup | None, progress: Progress | None, cancel: CancelToken | None
    ) -> tuple[PreTrainedModel, LoadReport]:
        """Load; the callbacks are called on this thread. Raises what `load_model` does."""
        with memory_given_back():
            return self._run(on_layer, progress, cancel)

    def _run(
        self, on_layer: OnGroup | None, progress: Progress | None, cancel: CancelToken | None
    ) -> tuple[PreTrainedModel, LoadReport]:
        building = _start(
            lambda: _build(self._folder, self.weights, self._dtype, self.placed), "brisk-build"
        )
        waiting: list[tuple[str, Tensors]] = []

        def on_group(name: str, tensors: Tensors) -> None:
            waiting.append((name, tensors))
            self._place(building, waiting)
            if on_layer is not None:
                on_layer(name, tensors)

        def on_bytes(done: int, total: int) -> None:
            self._place(building, waiting)
            if progress is not None:
                progress(done, total)

        try:
            read = read_tensors(
                self.weights,
                self._checksums,
                threads=self._threads,
                on_group=on_group,
                progress=on_bytes,
                cancel=cancel,
            )
        finally:
            building.exception()  # nothing of a load goes on after its end
        self._place(building, waiting)
        assembly = building.result()
        model = assembly.finish()
        return model, _with_casts(read.report, assembly)

    def _place(self, building: Future[Assembly], waiting: list[tuple[str, Tensors]]) -> None:
        """Give the model what has come, once it is built; raise what building raised."""
        if building.done():
            assembly = building.result()
            for name, tensors in waiting:
                assembly.place(tensors)
                if not assembly.is_converted:
                    self.placed.add(name)
            waiting.clear()


class _Placed:
    """Which groups are the model's, for threads that wait for them."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._changed = threading.Condition()
        self._left = dict.fromkeys(groups)
        self._model: PreTrainedModel | None = None
        self._is_over = False

    def built(self, model: PreTrainedModel) -> None:
        with self._changed:
            self._model = model
            self._changed.notify_all()

    def add(self, group: str) -> None:
        with self._changed:
            del self._left[group]
            self._changed.notify_all()

    def close(self) -> None:
        """No more will come; the model is no longer kept alive by this."""
        with self._changed:
            self._is_over, self._model = True, None
            self._changed.notify_all()

    def wait_built(self) -> PreTrainedModel | None:
        """Return the model; None if the load is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._model is not None or self._is_over)
            return self._model

    def wait_for(self, group: str, timeout: float | None) -> bool:
        """Return whether the group is there; False if the load is over. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: group not in self._left or self._is_over, timeout
            ):
                raise TimeoutError(f"group {group!r} is not there after {timeout} s")
            return group not in self._left


def _build(
    folder: Path, weights: Weights, dtype: torch.dtype | str | None, placed: _Placed
) -> Assembly:
    from brisk_native.model import Assembly, build_skeleton, named_dtype  # noqa: PLC0415 - slow

    assembly = Assembly(build_skeleton(folder, weights, dtype=named_dtype(dtype)))
    placed.built(assembly.model)
    return assembly


def _with_casts(report: LoadReport, assembly: Assembly) -> LoadReport:
    if assembly.is_converted:
        return replace(report, copied_bytes=assembly.cast_bytes, held_bytes=assembly.cast_bytes)
    copied = report.copied_bytes + assembly.cast_bytes
    return replace(report, copied_bytes=copied, held_bytes=report.bytes_read + copied)


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
