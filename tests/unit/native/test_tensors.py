"""load_tensors' promise: the tensors that safetensors gives, from any folder, or a precise error.

`open` gives the same one by one, `inspect` what is there, and `verify` finds every damage that a
checksum tells.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import brisk_native
import pytest
import torch
from brisk_native import (
    CHUNK_BYTES,
    CancelToken,
    ChecksumError,
    InvalidCheckpointError,
    InvalidHeaderError,
    LazyTensors,
    ReadCancelledError,
    UnsupportedTypeError,
    checksum_file,
    load_tensors,
)
from safetensors.torch import load_file, save_file

from tests.unit.native.conftest import noise
from tests.unit.native.headers import entry, file_of

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int16,
         torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
         torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
         torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]  # fmt: skip
Ways = Callable[[Path], Mapping[str, torch.Tensor]]


@pytest.fixture(params=["load_tensors", "open"])
def load(request: pytest.FixtureRequest) -> Ways:
    """Give each way to tensors in turn."""
    found: Ways = getattr(brisk_native, request.param)
    return found


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = torch.empty(shape, dtype=dtype).nbytes
    octets = torch.frombuffer(bytearray(noise(size) or b"x"), dtype=torch.uint8)[:size]
    if dtype is torch.bool:
        octets = octets & 1
    return octets.clone().view(dtype).view(shape)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether both are equal in type, shape and every byte, NaN included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    flat = [one.contiguous().flatten().view(torch.uint8) for one in (found, expected)]
    return torch.equal(flat[0], flat[1])


def check_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert same(found[name], tensor), name


def save_raw(path: Path, entries: Mapping[str, tuple[str, list[int], bytes]]) -> None:
    """Write tensors as they are given, one after another, without any alignment."""
    header: dict[str, object] = {}
    data = b""
    for name, (dtype, shape, content) in entries.items():
        header[name] = entry(dtype, shape, len(data), len(data) + len(content))
        data += content
    path.write_bytes(file_of(json.dumps(header), 0) + data)


def save_shards(folder: Path, shards: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for name, tensors in shards.items():
        save_file(dict(tensors), folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_manifest(folder: Path) -> None:
    files = [
        {
            "name": path.name,
            "size_bytes": path.stat().st_size,
            "crc32c": [f"{one:08x}" for one in checksum_file(path)],
        }
        for path in sorted(folder.iterdir())
    ]
    document = {"version": 1, "chunk_bytes": CHUNK_BYTES, "files": files}
    (folder / "brisk.json").write_text(json.dumps(document))


def test_every_type_of_torch_comes_as_safetensors_gives_it(load: Ways, tmp_path: Path) -> None:
    tensors = {str(dtype): random_tensor(dtype, 3, 5) for dtype in TYPES}
    tensors |= {"scalar": random_tensor(torch.float32), "none": random_tensor(torch.int16, 0, 4)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    expected = load_file(path)
    check_same(load(tmp_path), expected)
    check_same(load(path), expected)


def test_packed_and_scale_types_come_as_safetensors_gives_them(load: Ways, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_raw(path, {"four": ("F4", [3, 4], noise(6)), "scale": ("F8_E8M0", [5], noise(5))})
    check_same(load(path), load_file(path))
    assert load(path)["four"].shape == (3, 2)


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F6_E2M3", [4], 3), ("F4", [2, 3], 3)])
def test_what_torch_cannot_hold_is_a_typed_error_and_its_bytes_can_be_had(
    load: Ways, tmp_path: Path, dtype: str, shape: list[int], size: int
) -> None:
    path = tmp_path / "model.safetensors"
    save_raw(path, {"x": (dtype, shape, noise(size))})
    with pytest.raises(UnsupportedTypeError, match=dtype) as caught:
        load(path)["x"]
    assert (caught.value.tensor, caught.value.dtype) == ("x", dtype)
    assert brisk_native.open(path).read_bytes("x") == noise(size)


def test_misaligned_tensors_are_copied_and_all_others_lie_in_place(
    load: Ways, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    contents = {"one": ("U8", [1], noise(1)), "odd": ("F32", [6], noise(24)),
                "also odd": ("F64", [2, 1], noise(16)), "even": ("U8", [7], noise(7)),
                "right": ("F16", [9], noise(18))}  # fmt: skip
    save_raw(path, contents)
    tensors = load(path)
    for name, (_, shape, content) in contents.items():
        tensor = tensors[name]
        assert list(tensor.shape) == shape
        assert bytes(tensor.flatten().view(torch.uint8).numpy()) == content
        assert tensor.data_ptr() % tensor.element_size() == 0
        tensor.view(torch.uint8)[...] = 1  # memory of ours, which may be written
    if isinstance(tensors, dict):
        header = brisk_native.parse_header(path)
        places = {tensor.name: tensor.offset for tensor in header.tensors}
        begin = tensors["one"].data_ptr() - places["one"]
        in_place = {name for name in places if tensors[name].data_ptr() == begin + places[name]}
        assert in_place >= {"one", "even"}
        assert in_place == {n for n in places if places[n] % tensors[n].element_size() == 0}


def test_tensors_come_in_the_order_of_the_files(load: Ways, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    names = ["z", "a", "m", "b"]
    save_raw(path, {name: ("U8", [1], b"x") for name in names})
    assert list(load(path)) == names


def test_a_shape_with_a_zero_may_be_as_large_as_it_likes(load: Ways, tmp_path: Path) -> None:
    save_raw(tmp_path / "f", {"x": ("F32", [0, 2**40], b""), "y": ("U8", [1], b"y")})
    assert load(tmp_path / "f")["x"].shape == (0, 2**40)


def test_shards_are_found_by_their_index(load: Ways, tmp_path: Path) -> None:
    shards = {
        "model-1.safetensors": {
            "b": random_tensor(torch.float16, 3),
            "a": random_tensor(torch.int8, 2),
        },
        "model-2.safetensors": {"c": random_tensor(torch.float32, 4, 4)},
    }
    save_shards(tmp_path, shards)
    save_file({"unrelated": torch.ones(1)}, tmp_path / "other.safetensors")
    check_same(load(tmp_path), shards["model-1.safetensors"] | shards["model-2.safetensors"])
    weights = brisk_native.inspect(tmp_path)
    assert [file.name for file in weights.files] == list(shards)
    assert (weights.tensor_bytes, weights.parameters) == (6 + 2 + 64, 3 + 2 + 16)
    assert weights.file_bytes == sum((tmp_path / name).stat().st_size for name in shards)


def test_links_of_a_cache_and_adapters_are_read(load: Ways, tmp_path: Path) -> None:
    tensors = {"base_model.model.q.lora_A.weight": random_tensor(torch.float32, 8, 2)}
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(tensors, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "adapter_model.safetensors").symlink_to("../blobs/0123")
    check_same(load(tmp_path / "snapshot"), tensors)


INDEXES: dict[str, tuple[str, str]] = {
    "no map": ("{}", "has no weight_map"),
    "another folder": ('{"weight_map": {"a": "../m1.safetensors"}}', "no .safetensors file in its"),
    "a wrong place": (
        '{"weight_map": {"a": "m1.safetensors", "b": "m1.safetensors", "c": "m2.safetensors"}}',
        "puts tensor 'b' into m1.safetensors, which does not have it",
    ),
}  # more of them in test_weight_index.py


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_does_not_fit_is_refused(load: Ways, tmp_path: Path, kind: str) -> None:
    text, reason = INDEXES[kind]
    one = {"a": torch.ones(1)}
    save_shards(tmp_path, {"m1.safetensors": one, "m2.safetensors": {"b": torch.ones(1)}})
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(InvalidCheckpointError) as caught:
        load(tmp_path)
    assert caught.value.path == str(path)
    assert reason in caught.value.reason


def test_a_tensor_in_two_shards_is_refused(load: Ways, tmp_path: Path) -> None:
    one = {"a": torch.ones(1)}
    save_shards(tmp_path, {"m1.safetensors": one | {"b": torch.ones(1)}, "m2.safetensors": one})
    with pytest.raises(InvalidCheckpointError, match="'a' is in both m1"):
        load(tmp_path)


def test_a_folder_without_a_clear_weight_file_is_refused(load: Ways, tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"has 0 \.safetensors files"):
        load(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert list(load(tmp_path)) == ["a"]
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(InvalidCheckpointError, match=r"has 2 \.safetensors files"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_a_missing_shard_and_a_damaged_header_name_the_file(load: Ways, tmp_path: Path) -> None:
    shards = {f"m{n}.safetensors": {f"t{n}": torch.ones(9)} for n in (1, 2)}
    save_shards(tmp_path, shards)
    os.truncate(tmp_path / "m2.safetensors", 90)
    with pytest.raises(InvalidHeaderError, match=r"m2\.safetensors: truncated"):
        load(tmp_path)
    (tmp_path / "m2.safetensors").unlink()
    with pytest.raises(
        InvalidCheckpointError, match=r"index\.json: names m2\.safetensors, which is"
    ):
        load(tmp_path)


def make_model(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {f"t{n}": random_tensor(torch.float16, 1024, 1024 + n) for n in range(4)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    return tensors


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_sound_files_verify(tmp_path: Path) -> None:
    tensors = make_model(tmp_path)
    check_same(load_tensors(tmp_path), tensors)
    calls: list[tuple[int, int]] = []
    found = brisk_native.verify(tmp_path, progress=lambda *call: calls.append(call))
    assert (found.files_checked, len(found.weights.files)) == (2, 1)
    assert found.bytes_checked == found.weights.file_bytes + 2
    assert calls[-1] == (found.bytes_checked, found.bytes_checked)
    (tmp_path / "brisk.json").unlink()
    assert brisk_native.verify(tmp_path).files_checked == 0


def test_a_flipped_bit_is_a_checksum_error_and_never_a_wrong_weight(tmp_path: Path) -> None:
    make_model(tmp_path)
    path = tmp_path / "model.safetensors"
    flip(path, CHUNK_BYTES + 77)
    for call in (load_tensors, brisk_native.verify):
        with pytest.raises(ChecksumError) as caught:
            call(tmp_path)
        assert (caught.value.path, caught.value.chunk) == (str(path), 1)
    assert load_tensors(tmp_path, verify=False)
    flip(path, CHUNK_BYTES + 77)
    flip(tmp_path / "config.json", 0)
    with pytest.raises(ChecksumError, match=r"config\.json"):
        brisk_native.verify(tmp_path)


# More of them in test_manifest.py.
MANIFESTS = {
    "[]": "there must be '{'",
    '{"version": 1, "chunk_bytes": 4194304, "files": []}': "does not list model.safetensors",
}


@pytest.mark.parametrize("text", MANIFESTS)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "brisk.json").write_text(text)
    with pytest.raises(InvalidCheckpointError, match=r"brisk\.json") as caught:
        load_tensors(tmp_path)
    assert MANIFESTS[text] in caught.value.reason


def test_progress_covers_all_files_and_its_error_ends_the_load(tmp_path: Path) -> None:
    chunk = random_tensor(torch.uint8, CHUNK_BYTES)
    shards = {f"m{n}.safetensors": {f"t{n}": chunk} for n in range(3)}
    save_shards(tmp_path, shards)
    calls: list[tuple[int, int]] = []
    load_tensors(tmp_path, progress=lambda *call: calls.append(call))
    total = sum((tmp_path / name).stat().st_size for name in shards)
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)

    def refuse(done: int, of: int) -> None:
        raise KeyError(done)

    with pytest.raises(KeyError):
        load_tensors(tmp_path, progress=refuse)


def test_a_raised_token_ends_the_load(tmp_path: Path) -> None:
    make_model(tmp_path)
    token = CancelToken()
    token.cancel()
    with pytest.raises(ReadCancelledError):
        load_tensors(tmp_path, cancel=token)
    with pytest.raises(ReadCancelledError):
        brisk_native.verify(tmp_path, cancel=token)


def replace(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def test_a_file_replaced_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, path)
    lazy = brisk_native.open(path)
    real = brisk_native.read_files

    def replaced_first(*arguments: object, **options: object) -> object:
        replace(path, {"b": torch.zeros(4)})
        return real(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr("brisk_native._reading.read_files", replaced_first)
    with pytest.raises(InvalidHeaderError, match="changed while it was read"):
        load_tensors(path)
    with pytest.raises(InvalidHeaderError, match="changed since it was opened"):
        lazy["a"]


def test_lazy_tensors_are_a_mapping_that_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_raw(path, {"a": ("F32", [2], noise(8)), "bad": ("F6_E3M2", [4], noise(3))})
    lazy = brisk_native.open(path)
    assert isinstance(lazy, LazyTensors)
    assert (len(lazy), list(lazy), "bad" in lazy, "c" in lazy) == (2, ["a", "bad"], True, False)
    assert lazy.info("bad").shape == (4,)
    first, second = lazy["a"], lazy["a"]
    assert same(first, second)
    assert first.data_ptr() != second.data_ptr()
    with pytest.raises(KeyError):
        lazy["c"]


def test_memory_goes_back_with_the_last_tensor(tmp_path: Path) -> None:
    def resident_bytes() -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    size = 32 * 1024 * 1024
    save_raw(tmp_path / "f", {"a": ("U8", [size], noise(size)), "b": ("U8", [1], b"b")})
    load_tensors(tmp_path / "f")
    gc.collect()
    before = resident_bytes()
    kept = [load_tensors(tmp_path / "f")["b"] for _ in range(4)]
    held = resident_bytes() - before
    kept.clear()
    gc.collect()
    assert held > 3 * size
    assert resident_bytes() - before < size


def test_the_package_does_not_import_torch() -> None:
    code = "import sys, brisk_native; print('torch' in sys.modules, 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False False\n"


def test_the_python_implementation_loads_the_same_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6).view(2, 3)}, tmp_path / "model.safetensors")
    package = Path(brisk_native.__file__).parent
    shutil.copytree(package, tmp_path / "brisk_native", ignore=shutil.ignore_patterns("*.so"))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import brisk_native as b;"
        f"print(b.IMPLEMENTATION, b.load_tensors({str(tmp_path)!r})['a'].tolist())"
    )
    command = [sys.executable, "-I", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "python [[0, 1, 2], [3, 4, 5]]\n"


def test_a_tensor_read_alone_is_verified_by_the_chunks_that_hold_it(tmp_path: Path) -> None:
    values = {"a": torch.arange(1_500_000.0), "b": torch.ones(1_500_000)}  # 6 MB each
    save_file(values, tmp_path / "model.safetensors")
    brisk_native.convert(tmp_path, tmp_path / "stored")
    path = tmp_path / "stored" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with brisk_native.open(tmp_path / "stored") as tensors:
        assert torch.equal(tensors["a"], values["a"])
        with pytest.raises(ChecksumError) as caught:
            tensors["b"]
        assert (caught.value.chunk, caught.value.offset) == (2, 2 * CHUNK_BYTES)
    assert not torch.equal(brisk_native.open(tmp_path / "stored", verify=False)["b"], values["b"])


def test_a_manifest_with_too_few_checksums_is_a_checksum_error_for_a_tensor_alone(
    tmp_path: Path,
) -> None:
    save_file({"a": torch.ones(1_500_000)}, tmp_path / "model.safetensors")
    brisk_native.convert(tmp_path, tmp_path / "stored")
    with (tmp_path / "stored" / "model.safetensors").open("rb") as file:
        size = len(file.read())
    document = json.loads((tmp_path / "stored" / "brisk.json").read_text())
    (entry,) = (one for one in document["files"] if one["name"] == "model.safetensors")
    entry["crc32c"], entry["size_bytes"] = entry["crc32c"][:1], CHUNK_BYTES
    (tmp_path / "stored" / "brisk.json").write_text(json.dumps(document))
    assert size > CHUNK_BYTES
    with pytest.raises(ChecksumError, match="has 2 chunks, 1 checksums were given"):
        brisk_native.open(tmp_path / "stored")["a"]
