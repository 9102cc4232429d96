"""Import as callers see it: progress, the same revision each time, and all or nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from brisk.storage.v1 import storage_service_pb2 as pb

from services.common.errors import BriskError
from services.common.status import from_rpc_error
from tests.broken_models import WEIGHTS
from tests.integration.storemgr.nodes import (
    SECONDS_BYTES,
    Node,
    Stub,
    bytes_of,
    contents_of,
    describe,
    import_folder,
    names_in,
    running,
    size_of,
    slow_folder,
    stub_of,
)


async def refusal_of(stub: Stub, folder: Path) -> BriskError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await import_folder(stub, folder, "x")
    return from_rpc_error(refusal.value)


@pytest.mark.parametrize("as_is", [True, False])
async def test_an_import_reports_progress_and_ends_with_the_model(
    node: Node, stub: Stub, good: Path, *, as_is: bool
) -> None:
    responses = await import_folder(stub, good, as_is=as_is)
    *progress, last = responses
    total = last.bytes_total
    done = [response.bytes_done for response in responses]
    assert done == sorted(done)
    assert done[-1] == total
    assert not any(response.HasField("model") for response in progress)
    assert {response.file for response in progress} <= names_in(good) | {""}
    model = last.model
    assert (model.ref.name, len(model.ref.revision)) == ("good", 16)
    assert model.architecture == "LlamaForCausalLM"
    folder = node.data_dir / "store" / "models" / "good" / model.ref.revision
    stored_files = contents_of(folder)
    assert stored_files.pop("brisk.json").startswith(b"{")
    assert sum(map(len, stored_files.values())) == total
    source_files = contents_of(good)
    assert (stored_files.pop(WEIGHTS) == source_files.pop(WEIGHTS)) is as_is
    assert stored_files == source_files
    assert list(node.staging.iterdir()) == []
    state = await describe(stub)
    assert [(stored.info, stored.file_bytes) for stored in state.models] == [(model, total)]
    assert state.node_id == "node-1"
    assert state.free_bytes > 0


async def test_importing_again_gives_the_same_revision(stub: Stub, good: Path) -> None:
    first = (await import_folder(stub, good))[-1].model
    second = (await import_folder(stub, good))[-1].model
    assert first == second
    assert len((await describe(stub)).models) == 1


async def test_imports_of_one_model_at_once_store_it_once(stub: Stub, good: Path) -> None:
    answers = await asyncio.gather(*(import_folder(stub, good) for _ in range(6)))
    revisions = {responses[-1].model.ref.revision for responses in answers}
    assert len(revisions) == 1
    assert len((await describe(stub)).models) == 1


async def test_models_are_still_there_after_a_restart(
    tmp_path: Path, redis_url: str, good: Path
) -> None:
    node = Node(tmp_path / "data", redis_url)
    with running(node):
        async with stub_of(node) as stub:
            await import_folder(stub, good, "first")
            await import_folder(stub, good, "second")
            before = await describe(stub)
        assert node.terminate() == 0
    with running(Node(tmp_path / "data", redis_url)) as node:
        async with stub_of(node) as stub:
            assert (await describe(stub)).models == before.models


Call: TypeAlias = "grpc.aio.UnaryStreamCall[pb.ImportRequest, pb.ImportResponse]"


async def begin_slow_import(stub: Stub, folder: Path) -> Call:
    """Start an import and return when it is in the middle of its weights."""
    call = stub.Import(pb.ImportRequest(source_path=str(folder), name="slow", as_is=True))
    while True:
        response = await call.read()
        assert isinstance(response, pb.ImportResponse)
        if response.file == "model.safetensors" and response.bytes_done > 4 << 20:
            assert response.bytes_done < response.bytes_total
            return call


async def read_to_the_end(call: Call) -> pb.ImportResponse:
    last = pb.ImportResponse()
    while isinstance(response := await call.read(), pb.ImportResponse):
        last = response
    return last


async def test_cancelling_an_import_half_way_leaves_nothing(
    node: Node, stub: Stub, tmp_path: Path, good: Path
) -> None:
    slow = slow_folder(tmp_path / "slow")
    before = bytes_of(slow)
    call = await begin_slow_import(stub, slow)
    assert list(node.staging.iterdir()) != []
    call.cancel()
    # The same name's lock is free again only when nothing is left of the cancelled import.
    await import_folder(stub, good, "slow")
    assert list(node.staging.iterdir()) == []
    models = (await describe(stub)).models
    assert [stored.info.weight_bytes for stored in models] == [324224]
    assert len(list((node.data_dir / "store" / "models" / "slow").iterdir())) == 1
    assert bytes_of(slow) == before
    assert 'brisk_storemgr_imports_total{outcome="cancelled"} 1.0' in node.metrics()


async def test_a_deadline_ends_an_import_as_cancelling_does(
    node: Node, stub: Stub, tmp_path: Path, good: Path
) -> None:
    folder = slow_folder(tmp_path / "slow")
    request = pb.ImportRequest(source_path=str(folder), name="slow", as_is=True)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async for _ in stub.Import(request, timeout=1):
            pass
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await import_folder(stub, good, "slow")
    assert list(node.staging.iterdir()) == []


async def test_what_a_killed_process_left_is_swept_away_at_the_next_start(
    tmp_path: Path, redis_url: str, good: Path
) -> None:
    slow = slow_folder(tmp_path / "slow")
    before = bytes_of(slow)
    node = Node(tmp_path / "data", redis_url)
    with running(node):
        async with stub_of(node) as stub:
            kept = (await import_folder(stub, good))[-1].model
            await begin_slow_import(stub, slow)
            node.kill()
    assert list(node.staging.iterdir()) != []  # the fault has happened
    with running(Node(tmp_path / "data", redis_url)) as node:
        assert list(node.staging.iterdir()) == []
        async with stub_of(node) as stub:
            assert [stored.info for stored in (await describe(stub)).models] == [kept]
    assert bytes_of(slow) == before


async def test_an_unfinished_import_ends_with_a_typed_error_when_the_service_stops(
    tmp_path: Path, redis_url: str
) -> None:
    node = Node(tmp_path / "data", redis_url, BRISK_DRAIN_S="0.5")
    with running(node):
        async with stub_of(node) as stub:
            call = await begin_slow_import(stub, slow_folder(tmp_path / "slow"))
            code = await asyncio.to_thread(node.terminate)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await read_to_the_end(call)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert code == 0
    assert "Traceback" not in node.log
    assert list(node.staging.iterdir()) == []


async def test_an_import_that_can_finish_in_time_does_so_when_the_service_stops(
    tmp_path: Path, redis_url: str
) -> None:
    node = Node(tmp_path / "data", redis_url)
    folder = slow_folder(tmp_path / "slow", SECONDS_BYTES)
    with running(node):
        async with stub_of(node) as stub:
            call = await begin_slow_import(stub, folder)
            stopping = asyncio.ensure_future(asyncio.to_thread(node.terminate))
            await asyncio.to_thread(node.wait_for, "draining")
            last = await read_to_the_end(call)
            assert await stopping == 0
    assert last.model.ref.name == "slow"
    assert "Traceback" not in node.log


@pytest.fixture
def small_disk(tmp_path: Path, redis_url: str) -> Iterator[Node]:
    """Run a store manager on a disk of 1.2 MiB, which only it can see."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    mount = f'mount -t tmpfs -o size=1200k none "{data_dir}" && exec "$@"'
    command = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip("this machine lets nobody mount a disk for one process")
    with running(Node(data_dir, redis_url), *command) as node:
        yield node


async def test_a_disk_that_is_too_small_is_told_with_needed_and_available_bytes(
    small_disk: Node, good: Path
) -> None:
    os.truncate(good / "tokenizer.json", 600_000)
    async with stub_of(small_disk) as stub:
        error = await refusal_of(stub, good)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
        needed, available = error.metadata["needed_bytes"], error.metadata["available_bytes"]
        assert int(needed) > size_of(good)  # the stored form has a header of whole blocks
        assert 0 < int(available) <= 1200 << 10
        assert needed in error.message
        assert available in error.message
        assert list((await describe(stub)).models) == []


async def test_a_missing_folder_is_not_found(stub: Stub, tmp_path: Path) -> None:
    error = await refusal_of(stub, tmp_path / "missing")
    assert (error.code, error.reason) == ("NOT_FOUND", "SOURCE_NOT_FOUND")
