"""Every kind of bad model folder is refused by file and reason, and nothing of it stays.

All go against one running store manager: none of them may harm the next one's chances.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from brisk.storage.v1 import storage_service_pb2 as pb

from services.common.errors import BriskError
from services.common.status import from_rpc_error
from tests.broken_models import BROKEN, SHAPE_KINDS, WEIGHTS, broken_folder, good_folder
from tests.fakes.redis_server import RedisServer
from tests.integration.storemgr.nodes import Node, Stub, describe, import_folder, running, stub_of

INDEX = "model.safetensors.index.json"
MEMORY_BYTES_MAX = 500 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Node]:
    """Run one store manager for all attacks."""
    with running(Node(tmp_path_factory.mktemp("node") / "data", redis_server.url)) as node:
        yield node
        assert node.terminate() == 0
        assert "Traceback" not in node.log


@pytest_asyncio.fixture
async def stub(node: Node) -> AsyncIterator[Stub]:
    """Give a client, and afterwards look whether anything stayed."""
    async with stub_of(node) as stub:
        yield stub
        assert list((await describe(stub)).models) == []
        assert list(node.staging.iterdir()) == []


async def refusal_of(stub: Stub, source_path: str, name: str = "attack") -> BriskError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async for _ in stub.Import(
            pb.ImportRequest(source_path=source_path, name=name), timeout=60
        ):
            pass
    error = from_rpc_error(refusal.value)
    assert source_path not in error.message or not source_path.startswith("/tmp")  # noqa: S108
    return error


@pytest.mark.parametrize("kind", sorted(set(BROKEN) - set(SHAPE_KINDS)))
async def test_a_broken_folder_is_refused(stub: Stub, tmp_path: Path, kind: str) -> None:
    folder = broken_folder(tmp_path / "model", kind)
    error = await refusal_of(stub, str(folder))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", BROKEN[kind].reason)
    for name in BROKEN[kind].names:
        assert name in error.message


@pytest.mark.parametrize("kind", SHAPE_KINDS)
async def test_what_only_building_the_model_shows_is_left_to_the_worker(
    stub: Stub, tmp_path: Path, kind: str
) -> None:
    folder = broken_folder(tmp_path / "model", kind)
    model = (await import_folder(stub, folder, "attack"))[-1].model
    await stub.Delete(pb.DeleteRequest(model=model.ref))


def link_to_device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


def link_to_nothing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("gone")


def link_to_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def subfolder(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


def huge_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 1 << 40)


def many_templates(folder: Path) -> None:
    for number in range(100):
        (folder / f"{number}.jinja").touch()


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' + "[" * 20_000 + "]" * 20_000 + "}")


def repeated_key_in_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"model_type": "llama", ', 1))


def wide_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":[' + "1," * 300_000 + "1]}")


def absurd_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**15}))


def utf_16_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-16")


def absolute_shard(folder: Path) -> None:
    target = folder.parent / "outside.safetensors"
    (folder / WEIGHTS).rename(target)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": str(target)}}))


def repeated_tensor_in_index(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "one.safetensors")
    (folder / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}')


def header_of_brackets(folder: Path) -> None:
    header = b'{"a":[' + b"[]," * 33_000_000 + b"[]]}"
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def header_of_nesting(folder: Path) -> None:
    header = b'{"a":' + b"[" * 150_000 + b"]" * 150_000 + b"}"
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def nothing_but_a_header_length(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((100_000_000).to_bytes(8, "little"))
    os.truncate(folder / WEIGHTS, 100_000_008)  # a header of zeros, which takes no room


ATTACKS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "link to a device": (link_to_device, WEIGHTS),
    "link to nothing": (link_to_nothing, "tokenizer.json"),
    "link to itself": (link_to_itself, "config.json"),
    "a pipe": (pipe, "config.json"),
    "a folder for a file": (subfolder, "tokenizer.json"),
    "a tokenizer of a terabyte": (huge_tokenizer, "tokenizer.json"),
    "a hundred templates": (many_templates, "files beside the weights"),
    "a config nested deep": (deep_config, "config.json"),
    "a config that says a thing twice": (repeated_key_in_config, "'model_type' twice"),
    "a config of very many values": (wide_config, "config.json"),
    "a config with absurd numbers": (absurd_config, "num_hidden_layers"),
    "a config in UTF-16": (utf_16_config, "config.json"),
    "a shard at an absolute path": (absolute_shard, INDEX),
    "an index that says a thing twice": (repeated_tensor_in_index, INDEX),
    "a header of brackets": (header_of_brackets, WEIGHTS),
    "a header nested deep": (header_of_nesting, WEIGHTS),
    "a header of zeros": (nothing_but_a_header_length, WEIGHTS),
}


@pytest.mark.parametrize("kind", ATTACKS)
async def test_an_attack_by_folder_is_refused(
    node: Node, stub: Stub, tmp_path: Path, kind: str
) -> None:
    make, named = ATTACKS[kind]
    folder = good_folder(tmp_path / "model")
    make(folder)
    error = await refusal_of(stub, str(folder))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_MODEL")
    assert named in error.message
    assert len(error.message) < 400
    assert peak_memory_bytes(node) < MEMORY_BYTES_MAX


def peak_memory_bytes(node: Node) -> int:
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


@pytest.mark.parametrize(
    ("source_path", "problem"),
    [
        ("", "must be set"),
        ("models/tiny", "must be absolute"),
        ("../tiny", "must be absolute"),
        ("/tmp/\0tiny", "must not contain NUL"),  # noqa: S108
        ("/" + "x" * 5000, "at most 4096 bytes"),
        ("/" + "x" * 300, "leads nowhere"),
        ("/etc/passwd", "is not a folder"),
    ],
)
async def test_a_path_that_is_none_is_refused(stub: Stub, source_path: str, problem: str) -> None:
    error = await refusal_of(stub, source_path)
    expected = "SOURCE_NOT_A_FOLDER" if problem == "is not a folder" else "INVALID_SOURCE"
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", expected)
    assert problem in error.message


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../b",
        "a\0b",
        "x" * 10_000,
        "a//b",
        "a/b/c",
        "/a",
        "a--b",
        "\u0430lpha",
        "a\u202eb",
        " ",
    ],
)
async def test_a_name_that_is_none_is_refused(stub: Stub, tmp_path: Path, name: str) -> None:
    error = await refusal_of(stub, str(good_folder(tmp_path / "model")), name)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_NAME")
    assert len(error.message) < 400
    assert error.message.isprintable()


async def test_after_all_this_a_good_folder_is_imported(stub: Stub, tmp_path: Path) -> None:
    model = (await import_folder(stub, good_folder(tmp_path / "model"), "attack"))[-1].model
    await stub.Delete(pb.DeleteRequest(model=model.ref))
