"""A safetensors header is believed only if every byte of the file belongs to exactly one tensor.

What the safetensors library refuses, we refuse; what it writes, we read back; both implementations
say the same, word for word.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from brisk_native import Header, InvalidHeaderError, TensorInfo, parse_header_bytes
from brisk_native._types import DTYPE_BITS, HEADER_BYTES_MAX, TENSORS_MAX
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.unit.native import loaders
from tests.unit.native.headers import (
    BROKEN,
    GOOD,
    ONE,
    PADDED,
    STRICTER,
    entry,
    file_of,
    mutations,
)
from tests.unit.native.loaders import Loader


def parse(loader: Loader, content: bytes) -> Header:
    return loader.parse_header_bytes(content, len(content), "m.safetensors")


def outcome(loader: Loader, content: bytes) -> Header | tuple[object, ...]:
    try:
        return parse(loader, content)
    except InvalidHeaderError as error:
        return error.path, error.tensor, error.reason


def library_refuses(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]  # has no types
    except safetensors.SafetensorError:
        return True
    return False


def test_a_sound_header_is_read_in_the_order_of_the_bytes(loader: Loader, tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"format": "pt"}} | dict(reversed(GOOD.items()))) + "   "
    (tmp_path / "f").write_bytes(file_of(text, 32))
    begin = 8 + len(text)
    header = loader.parse_header(tmp_path / "f")
    assert header == Header(
        data_offset=begin,
        file_bytes=begin + 32,
        tensors=(
            TensorInfo(name="a", dtype="F32", shape=(2, 3), offset=begin, size_bytes=24),
            TensorInfo(name="b", dtype="BF16", shape=(4,), offset=begin + 24, size_bytes=8),
        ),
        metadata={"format": "pt"},
    )
    assert header.tensors[0].elements == 6
    assert header == parse(loader, (tmp_path / "f").read_bytes())


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_its_tensor_and_reason(
    loader: Loader, tmp_path: Path, kind: str
) -> None:
    content, tensor, reason = BROKEN[kind]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidHeaderError) as refusal:
        loader.parse_header(path)
    error = refusal.value
    assert (error.path, error.tensor) == (str(path), tensor)
    assert reason in error.reason
    assert str(error).startswith(f"{path}: ")
    assert outcome(loader, content) == ("m.safetensors", tensor, error.reason)


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_the_library_takes_only_what_we_are_stricter_about(kind: str) -> None:
    assert library_refuses(BROKEN[kind][0]) is (kind not in STRICTER)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_library_refuses_we_refuse_and_both_of_us_in_the_same_words(
    seed: int,
) -> None:
    header = GOOD | {"__metadata__": {"format": "pt"}}
    content = file_of(json.dumps(header), 32)
    implementations = [loaders.find("python")]
    if loaders.is_built():
        implementations.append(loaders.find("native"))
    for mutant in mutations(content[8:-32] if seed % 2 else content, seed):
        # In every second run the length is kept right, so that mutants die of something else.
        whole = file_of(mutant, 32) if seed % 2 else mutant
        outcomes = [outcome(loader, whole) for loader in implementations]
        assert outcomes[0] == outcomes[-1], whole
        if isinstance(outcomes[0], Header):
            assert not library_refuses(whole), whole


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 40), max_size=4)),
        max_size=6,
    )
)
@settings(deadline=None)
def test_all_accept_every_file_whose_tensors_fit(parts: list[tuple[str, list[int]]]) -> None:
    entries: dict[str, object] = {}
    end = 0
    for number, (dtype, shape) in enumerate(parts):
        bits = DTYPE_BITS[dtype] * math.prod(shape)
        if bits % 8:
            continue
        begin, end = end, end + bits // 8
        entries[f"t{number}"] = entry(dtype, shape, begin, end)
    content = file_of(json.dumps(entries), end)
    assert not library_refuses(content)
    for name in loaders.MODULES if loaders.is_built() else ["python"]:
        header = parse(loaders.find(name), content)
        assert {one.name: list(one.shape) for one in header.tensors} == {
            key: fields["shape"] for key, fields in entries.items() if isinstance(fields, dict)
        }


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 5), max_size=3),
        max_size=5,
    )
)
@settings(deadline=None)
def test_what_the_library_writes_we_read(shapes: dict[str, list[int]]) -> None:
    arrays = {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}
    content = save(arrays, metadata={"format": "np"})
    for name in loaders.MODULES if loaders.is_built() else ["python"]:
        header = parse(loaders.find(name), content)
        assert {one.name: list(one.shape) for one in header.tensors} == shapes
        assert header.metadata == {"format": "np"}


def test_bytes_that_end_before_the_header_does_are_refused(loader: Loader) -> None:
    content = file_of(ONE, 4)
    for length in range(8 + len(ONE)):
        with pytest.raises(InvalidHeaderError, match="truncated"):
            loader.parse_header_bytes(content[:length], len(content))
    assert loader.parse_header_bytes(content[: 8 + len(ONE)], len(content)).tensors
    for size in (-1, 2**63, "x"):
        with pytest.raises(TypeError):
            loader.parse_header_bytes(content, size)


def test_what_is_no_regular_file_is_refused_as_by_read_file(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (("link", OSError), ("fifo", OSError), ("missing", FileNotFoundError)):
        with pytest.raises(kind) as caught:
            loader.parse_header(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        loader.parse_header(tmp_path)


def test_the_refusal_survives_pickling_and_shortens_long_names() -> None:
    error = pickle.loads(pickle.dumps(InvalidHeaderError("f", "n\n" * 200, "bad")))  # noqa: S301
    assert (error.path, error.tensor, error.reason) == ("f", "n\n" * 200, "bad")
    assert isinstance(error, ValueError)
    assert "\n" not in str(error)
    assert len(str(error)) < 200


def million_tensors() -> str:
    one = '"{0}":{{"dtype":"U8","shape":[1],"data_offsets":[{0},{1}]}}'
    return "{" + ",".join(one.format(place, place + 1) for place in range(1_000_000)) + "}"


CHILD = """
import sys, time
import brisk_native
from brisk_native import InvalidHeaderError
def peak():  # not getrusage, which begins with the parent's peak
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
for path in sys.argv[1:]:
    begin = time.process_time()
    try:
        brisk_native.parse_header(path)
    except InvalidHeaderError:
        print(time.process_time() - begin, (peak() - before) * 1024)
"""


@pytest.mark.skipif(not loaders.is_built(), reason="the promise is the compiled parser's")
def test_a_huge_header_is_refused_within_50_ms_and_50_mb(tmp_path: Path) -> None:
    tensors = ",".join(
        f'"layers.{place}":' + json.dumps(entry("U8", [1], place + 1, place + 2))
        for place in reversed(range(TENSORS_MAX))
    )
    texts = {
        "million": million_tensors(),
        "brackets": '{"a":' + "[" * (HEADER_BYTES_MAX - 5),
        "tensors": "{" + tensors + "}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(file_of(text, 0))
    assert len(texts["tensors"]) <= HEADER_BYTES_MAX
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in texts)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert len(lines) == len(texts)
    for line in lines:
        seconds, grown = line.split()
        assert float(seconds) < 0.05
        assert int(grown) < 50_000_000
    assert int(lines[-1].split()[1]) > 8_000_000  # or this would measure nothing


def test_padding_of_the_stored_form_is_no_tensor_of_the_model(loader: Loader) -> None:
    content = file_of(PADDED, 255)
    header = loader.parse_header_bytes(content, len(content))
    assert header.tensors == ()
    assert [one.name for one in header.padding] == ["__brisk_padding__.0"]
    assert header.is_stored_form


def test_a_file_of_no_form_has_no_padding_whatever_its_names(loader: Loader) -> None:
    content = file_of(PADDED.replace('"brisk_form":"1"', '"brisk_form":"0"'), 255)
    header = loader.parse_header_bytes(content, len(content))
    assert [one.name for one in header.tensors] == ["__brisk_padding__.0"]
    assert header.padding == ()
    assert not header.is_stored_form


@pytest.mark.skipif(not loaders.is_built(), reason="the promise is the compiled parser's")
def test_the_tensors_of_the_largest_header_are_handed_over_in_a_moment() -> None:
    entries = {f"layers.{n}.weight": entry("U8", [1], n, n + 1) for n in range(TENSORS_MAX)}
    content = file_of(json.dumps(entries, separators=(",", ":")), 0)
    size = len(content) + TENSORS_MAX

    def spent() -> float:
        begin = time.process_time()
        header = parse_header_bytes(content, size)
        taken = time.process_time() - begin
        assert header.tensors[-1] == TensorInfo(
            name=f"layers.{TENSORS_MAX - 1}.weight",
            dtype="U8",
            shape=(1,),
            offset=size - 1,
            size_bytes=1,
        )
        return taken

    assert min(spent() for _ in range(5)) < 0.1  # a busy machine slows processors down, too
