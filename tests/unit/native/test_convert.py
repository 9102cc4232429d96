"""The stored form holds the same tensors, laid out for loading, or the folder is as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from brisk_native import (
    CancelToken,
    ChecksumError,
    Conversion,
    FileChangedError,
    InvalidCheckpointError,
    ReadCancelledError,
    _convert,
    checksum_file,
    convert,
    execution_order,
    inspect,
    load_tensors,
    parse_header,
    parse_manifest,
    verify,
    write_weights,
)
from brisk_native._types import DTYPE_BITS
from safetensors import safe_open

from tests.unit.native.conftest import noise, run_on_disk
from tests.unit.native.loaders import Loader

Stored = tuple[str, tuple[int, ...], bytes]  # type, shape, bytes


@pytest.fixture(autouse=True)
def _both(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert with each implementation in turn."""
    monkeypatch.setattr(_convert, "gather_file", loader.gather_file)
    monkeypatch.setattr(_convert, "copy_file", loader.copy_file)


def write(path: Path, tensors: Mapping[str, Stored], metadata: object = None, gap: int = 0) -> None:
    """Write a safetensors file; `gap` shifts its data to odd places."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(entries).encode() + b" " * gap
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def stored(size: int, seed: int = 0) -> Stored:
    return "U8", (size,), noise(size + seed)[seed:]


def contents(path: Path) -> dict[str, Stored]:
    raw = path.read_bytes()
    return {
        one.name: (one.dtype, one.shape, raw[one.offset : one.offset + one.size_bytes])
        for one in parse_header(path).tensors
    }


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def model(folder: Path, *, mebibytes: int = 0) -> dict[str, Stored]:
    """Make a folder as Hugging Face has it, of odd sizes, in another order than that of use."""
    folder.mkdir()
    tensors = {
        "lm_head.weight": stored(999),
        **{f"model.layers.{n}.mlp.down_proj.weight": stored(1000 + n, n) for n in (0, 10, 2)},
        "model.layers.2.input_layernorm.weight": stored(7),
        "model.embed_tokens.weight": stored((mebibytes << 20) + 5),
        "model.norm.weight": stored(0),
    }
    write(folder / "model.safetensors", tensors, {"format": "pt"}, gap=3)
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "tokenizer.model").write_bytes(b"\0\1")
    return tensors


def test_the_result_is_what_safetensors_opens_with_every_tensor_as_it_was(tmp_path: Path) -> None:
    tensors = model(tmp_path / "source")
    done = convert(tmp_path / "source", tmp_path / "made")
    made = tmp_path / "made" / "model.safetensors"
    assert contents(made) == tensors
    with safe_open(made, "numpy") as opened:
        names = [name for name in opened.keys() if "brisk_padding" not in name]  # noqa: SIM118
        assert sorted(names) == sorted(tensors)
        assert opened.metadata() == {"format": "pt", "brisk_form": "1"}
        for name, (_, _, content) in tensors.items():
            assert opened.get_tensor(name).tobytes() == content
    size = sum(path.stat().st_size for path in (tmp_path / "made").iterdir())
    expected = Conversion(
        folder=tmp_path / "made",
        tensors=len(tensors),
        tensor_bytes=sum(len(content) for _, _, content in tensors.values()),
        written_bytes=size,
        verified=False,
        direct=done.direct,
        seconds=done.seconds,
    )
    assert done == expected
    assert done.gb_per_s == pytest.approx(size / 1e9 / done.seconds)


def test_tensors_lie_aligned_in_the_order_of_use_behind_a_full_header(tmp_path: Path) -> None:
    tensors = model(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "made")
    header = parse_header(tmp_path / "made" / "model.safetensors")
    assert header.is_stored_form
    assert header.data_offset % 4096 == 0
    assert [one.offset % 256 for one in header.tensors if one.size_bytes] == [0] * 6
    order = [name for group in execution_order(tensors) for name in group.tensors]
    assert [one.name for one in header.tensors] == order
    assert {one.size_bytes < 256 and one.dtype == "U8" for one in header.padding} == {True}
    raw = (tmp_path / "made" / "model.safetensors").read_bytes()
    for gap in header.padding:
        assert not any(raw[gap.offset : gap.offset + gap.size_bytes])


@pytest.mark.parametrize("mebibytes", [3, 4, 9])
def test_large_tensors_of_several_chunks_stay_as_they_are(
    loader: Loader, tmp_path: Path, mebibytes: int
) -> None:
    if loader.name == "python":
        mebibytes = 0  # its checksum takes a second for ten megabytes
    tensors = model(tmp_path / "source", mebibytes=mebibytes)
    convert(tmp_path / "source", tmp_path / "made", threads=3)
    assert contents(tmp_path / "made" / "model.safetensors") == tensors
    assert verify(tmp_path / "made").files_checked == 3


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_type_is_taken_along_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    shapes = {"s": (), "v": (8,), "m": (3, 4), "n": (0, 5)}
    sizes = {name: int(np.prod(shape)) * DTYPE_BITS[dtype] for name, shape in shapes.items()}
    tensors = {
        name: (dtype, shape, noise(sizes[name] // 8))
        for name, shape in shapes.items()
        if sizes[name] % 8 == 0
    }
    write(tmp_path / "model.safetensors", tensors, gap=1)
    convert(tmp_path / "model.safetensors", tmp_path / "made")
    assert contents(tmp_path / "made" / "model.safetensors") == tensors


def test_shards_become_one_file_without_an_index(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    shards = {"b.safetensors": {"h.0.x": stored(5)}, "a.safetensors": {"h.1.x": stored(6)}}
    for number, (name, tensors) in enumerate(shards.items()):
        write(tmp_path / "source" / name, tensors, {"from": name, "same": "1", str(number): "x"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = tmp_path / "source" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    convert(tmp_path / "source", tmp_path / "made")
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == ["brisk.json", "model.safetensors"]
    header = parse_header(tmp_path / "made" / "model.safetensors")
    assert [one.name for one in header.tensors] == ["h.0.x", "h.1.x"]
    expected = {"from": "a.safetensors", "same": "1", "0": "x", "1": "x", "brisk_form": "1"}
    assert header.metadata == expected


def test_the_manifest_lists_every_file_with_its_checksums(tmp_path: Path) -> None:
    model(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "made")
    manifest = parse_manifest(tmp_path / "made" / "brisk.json")
    assert (manifest.version, manifest.form) == (2, 1)
    names = ["config.json", "model.safetensors", "tokenizer.model"]
    assert [file.name for file in manifest.files] == names
    for file in manifest.files:
        path = tmp_path / "made" / file.name
        assert file.size_bytes == path.stat().st_size
        assert file.crc32c == tuple(checksum_file(path))


def test_equal_sources_give_equal_folders_and_converting_again_changes_nothing(
    tmp_path: Path,
) -> None:
    model(tmp_path / "one")
    model(tmp_path / "other")
    convert(tmp_path / "one", tmp_path / "a")
    convert(tmp_path / "other", tmp_path / "b", threads=1)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    convert(tmp_path / "a", tmp_path / "c")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    before = snapshot(tmp_path / "c")
    assert convert(tmp_path / "c", tmp_path / "c").verified
    assert snapshot(tmp_path / "c") == before


def test_a_smaller_model_over_a_larger_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    model(tmp_path / "large", mebibytes=1)
    (tmp_path / "large" / "extra.json").write_text("{}")
    model(tmp_path / "small")
    convert(tmp_path / "large", tmp_path / "made")
    convert(tmp_path / "small", tmp_path / "made")
    convert(tmp_path / "small", tmp_path / "expected")
    assert snapshot(tmp_path / "made") == snapshot(tmp_path / "expected")
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["expected", "large", "made", "small"]


def test_only_configuration_tokenizer_and_templates_are_taken_along(tmp_path: Path) -> None:
    model(tmp_path / "source")
    for name in ("run.py", "pytorch_model.bin", "brisk.txt", "other.safetensors"):
        (tmp_path / "source" / name).write_text("x")
    (tmp_path / "source" / "folder.json").mkdir()
    (tmp_path / "source" / "chat.jinja").symlink_to(tmp_path / "source" / "brisk.txt")
    convert(tmp_path / "source", tmp_path / "made")
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == [
        *("brisk.json", "brisk.txt", "chat.jinja", "config.json", "model.safetensors"),
        "tokenizer.model",
    ]
    assert not (tmp_path / "made" / "chat.jinja").is_symlink()


def test_too_many_files_beside_the_weights_are_refused(tmp_path: Path) -> None:
    model(tmp_path / "source")
    for number in range(63):
        (tmp_path / "source" / f"{number}.txt").touch()
    with pytest.raises(InvalidCheckpointError, match="65 files beside the weights"):
        convert(tmp_path / "source", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path) -> None:
    model(tmp_path / "source")
    (tmp_path / "made").mkdir()
    convert(tmp_path / "source", tmp_path / "made")  # an empty one is
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(FileExistsError, match="holds letter and no"):
        convert(tmp_path / "source", tmp_path / "mine")
    with pytest.raises(NotADirectoryError):
        convert(tmp_path / "source", tmp_path / "mine" / "letter")
    assert snapshot(tmp_path / "source")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


def test_a_name_of_the_padding_is_refused_in_a_model(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"__brisk_padding__.0": stored(3)})
    with pytest.raises(InvalidCheckpointError, match="a name of the stored form's gaps"):
        convert(tmp_path / "model.safetensors", tmp_path / "made")


def test_a_model_of_more_tensors_and_gaps_than_a_header_holds_is_refused(tmp_path: Path) -> None:
    tensors = {f"h.{n}.x": stored(1) for n in range(40_000)}
    write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(InvalidCheckpointError, match="40000 tensors and 39999 gaps, the stored"):
        convert(tmp_path / "model.safetensors", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("place", ["header", "tensor", "padding"])
def test_a_damaged_source_with_a_manifest_is_named_and_nothing_is_made(
    tmp_path: Path, place: str
) -> None:
    model(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "first")
    assert convert(tmp_path / "first", tmp_path / "made").verified
    before = snapshot(tmp_path / "made")
    path = tmp_path / "first" / "model.safetensors"
    header = parse_header(path)
    offsets = {"header": 4000, "tensor": header.tensors[0].offset + 9}  # 4000: white space
    raw = bytearray(path.read_bytes())
    raw[offsets.get(place, header.padding[0].offset)] ^= ord(" ") ^ ord("\t")
    path.write_bytes(raw)
    with pytest.raises(ChecksumError, match=r"first/model\.safetensors: chunk 0 at offset 0"):
        convert(tmp_path / "first", tmp_path / "made")
    assert snapshot(tmp_path / "made") == before


def test_a_damaged_configuration_with_a_manifest_is_named(tmp_path: Path) -> None:
    model(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "first")
    (tmp_path / "first" / "config.json").write_text('{"model_type": "y"}')
    with pytest.raises(ChecksumError, match=r"config\.json: chunk 0"):
        convert(tmp_path / "first", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("change", ["write", "replace", "remove"])
def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path, change: str) -> None:
    model(tmp_path / "source")
    weights = inspect(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"

    def spoil(done: int, _: int) -> None:
        if done:
            if change == "write":
                with path.open("r+b") as file:
                    file.seek(-1, os.SEEK_END)
                    file.write(b"\0")
                os.utime(path, ns=(1, 1))
            elif change == "replace":
                (tmp_path / "new").write_bytes(path.read_bytes())
                (tmp_path / "new").rename(path)
            else:
                path.unlink()

    with pytest.raises(FileChangedError, match="changed while it was converted"):
        write_weights(weights, tmp_path / "made", progress=spoil)
    assert not (tmp_path / "made").exists()


def test_cancelling_and_a_failing_progress_leave_the_old_model(tmp_path: Path) -> None:
    model(tmp_path / "old")
    model(tmp_path / "new", mebibytes=1)
    convert(tmp_path / "old", tmp_path / "made")
    before = snapshot(tmp_path / "made")
    token = CancelToken()
    token.cancel()
    with pytest.raises(ReadCancelledError):
        convert(tmp_path / "new", tmp_path / "made", cancel=token)

    def refuse(done: int, total: int) -> None:
        if done == total:
            raise KeyError(done)

    with pytest.raises(KeyError):
        convert(tmp_path / "new", tmp_path / "made", progress=refuse)
    late = CancelToken()
    with pytest.raises(ReadCancelledError):
        convert(
            tmp_path / "new",
            tmp_path / "made",
            cancel=late,
            progress=lambda done, total: late.cancel() if done == total else None,
        )
    assert snapshot(tmp_path / "made") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "new", "old"]


def test_progress_begins_at_nothing_and_ends_with_all(tmp_path: Path) -> None:
    model(tmp_path / "source", mebibytes=1)
    calls: list[tuple[int, int]] = []
    convert(tmp_path / "source", tmp_path / "made", progress=lambda *call: calls.append(call))
    made = tmp_path / "made"
    total = sum(path.stat().st_size for path in made.iterdir() if path.name != "brisk.json")
    assert calls == sorted(calls)
    assert (calls[0], calls[-1]) == ((0, total), (total, total))


FULL_DISK = """
import errno, os, sys
from pathlib import Path
from brisk_native import convert
disk, small, large = map(Path, sys.argv[1:])
convert(small, disk / "made")
before = {path.name: path.read_bytes() for path in (disk / "made").iterdir()}
try:
    convert(large, disk / "made")
except OSError as error:
    print(errno.errorcode[error.errno], error.filename)
assert {path.name: path.read_bytes() for path in (disk / "made").iterdir()} == before
assert os.listdir(disk) == ["made"], os.listdir(disk)
convert(small, disk / "again")
"""


def test_a_full_disk_keeps_the_old_model_and_leaves_room_for_others(tmp_path: Path) -> None:
    model(tmp_path / "small")
    model(tmp_path / "large", mebibytes=6)
    sources = (tmp_path / "small", tmp_path / "large")
    disk = tmp_path / "disk"
    printed = run_on_disk("tmpfs", "size=4m", disk, FULL_DISK, disk, *sources)
    assert printed == f"ENOSPC {disk}/made/model.safetensors\n"  # not the one that is staged


def test_debris_of_the_dead_is_swept_and_work_of_the_living_is_not(tmp_path: Path) -> None:
    model(tmp_path / "source")
    inside: list[list[str]] = []

    def look(done: int, total: int) -> None:
        if done == total and not inside:
            inside.append(sorted(path.name for path in tmp_path.iterdir()))
            convert(tmp_path / "source", tmp_path / "made")  # another one, meanwhile
            inside.append(sorted(path.name for path in tmp_path.iterdir()))

    convert(tmp_path / "source", tmp_path / "made", progress=look)
    (staged,) = [name for name in inside[0] if name.startswith(".")]
    assert inside[1] == [staged, "made", "source"]
    (tmp_path / staged).mkdir()
    (tmp_path / staged / "model.safetensors").touch()
    convert(tmp_path / "source", tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "source"]


def test_the_stored_form_loads_as_the_source_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "made")
    loaded, expected = load_tensors(tmp_path / "made"), load_tensors(tmp_path / "source")
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
