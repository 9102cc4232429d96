"""The node's memory over the wire: who asks for it gets it with progress, and says what stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import brisk_native
import grpc
import pytest
import pytest_asyncio
from brisk.common.v1 import model_pb2
from brisk.storage.v1 import storage_service_pb2 as pb

from services.common.status import from_rpc_error
from tests.broken_models import WEIGHTS, good_folder
from tests.integration.storemgr.nodes import (
    Node,
    NodeError,
    Stub,
    describe,
    import_folder,
    names_in,
    running,
    stub_of,
)

pytestmark = pytest.mark.skipif(
    brisk_native.IMPLEMENTATION != "native", reason="the arena needs the compiled loader"
)
CHUNK = brisk_native.CHUNK_BYTES
ARENA = 4 * CHUNK


@pytest.fixture
def node(tmp_path: Path, redis_url: str) -> Iterator[Node]:
    """Run a store manager with an arena of four chunks."""
    settings = {
        "BRISK_STOREMGR_ARENA_BYTES": str(ARENA),
        "BRISK_STOREMGR_ARENA_RESIDENCY_S": "0",
    }
    with running(Node(tmp_path / "data", redis_url, **settings)) as node:
        yield node


@pytest_asyncio.fixture
async def stub(node: Node) -> AsyncIterator[Stub]:
    async with stub_of(node) as stub:
        yield stub


def lease_request(name: str = "good", *, maps: bool = True) -> pb.LeaseRequest:
    return pb.LeaseRequest(model=model_pb2.ModelRef(name=name), holder="w-1", map=maps)


async def messages(stub: Stub, request: pb.LeaseRequest) -> list[pb.LeaseResponse]:
    """Return what a lease says up to the mapping, and end it."""
    call = stub.Lease(request, timeout=60)
    seen: list[pb.LeaseResponse] = []
    async for response in call:
        seen.append(response)
        if response.HasField("mapping") or not (response.more or response.bytes_total):
            break
    call.cancel()
    return seen


def bytes_of(mapping: pb.Mapping) -> dict[str, bytes]:
    found = {}
    for file in mapping.files:
        pieces = [(piece.offset, piece.size_bytes) for piece in file.pieces]
        found[file.name] = bytes(brisk_native.map_pieces(mapping.path, pieces, file.size_bytes))
    return found


async def test_a_lease_that_maps_brings_the_weights_into_memory(stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    first, *progress, last = await messages(stub, lease_request())
    assert first.more
    assert first.tier == model_pb2.TIER_SSD
    stored = (Path(first.folder) / WEIGHTS).read_bytes()
    assert {each.bytes_total for each in progress} == {len(stored)}
    assert bytes_of(last.mapping) == {WEIGHTS: stored}
    again, *_, mapped = await messages(stub, lease_request())
    assert again.tier == model_pb2.TIER_DRAM
    assert mapped.mapping == last.mapping
    state = await describe(stub)
    assert state.models[0].dram_bytes == len(stored)
    assert not state.models[0].in_use
    assert state.arena.size_bytes == ARENA
    assert state.arena.size_bytes - state.arena.free_bytes == CHUNK
    assert state.arena.kind in {"hugetlb", "tmpfs", "small"}
    assert state.disk.bytes_per_second > 0
    assert state.disk.queued_bytes == 0


async def test_who_does_not_map_gets_files_alone(stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    (only,) = await messages(stub, lease_request(maps=False))
    assert not only.more
    assert (await describe(stub)).arena.free_bytes == ARENA


async def test_without_room_the_lease_is_one_of_files(
    node: Node, stub: Stub, tmp_path: Path
) -> None:
    held = []
    for number in range(4):
        await import_folder(stub, good_folder(tmp_path / "good"), f"m{number}")
        call = stub.Lease(lease_request(f"m{number}"))
        async for response in call:
            if response.HasField("mapping"):
                break
        held.append(call)
    await import_folder(stub, tmp_path / "good", "late")
    (only,) = await messages(stub, lease_request("late"))
    assert (only.more, only.tier) == (False, model_pb2.TIER_SSD)
    assert 'brisk_storemgr_tier_lookups_total{outcome="no_room",tier="dram"} 1.0' in node.metrics()
    held[0].cancel()
    await asyncio.to_thread(node.wait_for, "lease ended")
    assert (await messages(stub, lease_request("late")))[-1].HasField("mapping")
    assert 'brisk_storemgr_evictions_total{tier="dram"} 1.0' in node.metrics()
    for call in held:
        call.cancel()


async def test_a_model_is_fetched_pinned_and_evicted_on_demand(stub: Stub, good: Path) -> None:
    ref = (await import_folder(stub, good))[-1].model.ref
    name = model_pb2.ModelRef(name="good")
    seen = [each async for each in stub.Prefetch(pb.PrefetchRequest(model=name), timeout=60)]
    assert seen[-1].bytes_done == seen[-1].bytes_total > 0
    await stub.Pin(pb.PinRequest(model=name, pinned=True), timeout=30)
    (model,) = (await describe(stub)).models
    assert model.pinned
    assert model.dram_bytes == seen[-1].bytes_total
    assert model.last_used.seconds > 0
    for _ in range(2):
        await stub.Evict(pb.EvictRequest(model=ref), timeout=30)
    assert (await describe(stub)).models[0].dram_bytes == 0
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Evict(pb.EvictRequest(model=model_pb2.ModelRef(name="none")), timeout=30)
    assert from_rpc_error(refused.value).reason == "MODEL_NOT_FOUND"


async def test_damage_on_the_disk_ends_a_lease_that_maps(stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    (only,) = await messages(stub, lease_request(maps=False))
    path = Path(only.folder) / WEIGHTS
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a failing disk would
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await messages(stub, lease_request())
    assert from_rpc_error(refused.value).reason == "CHECKSUM_MISMATCH"
    assert (await describe(stub)).arena.free_bytes == ARENA


async def test_verifying_finds_damage_that_no_time_gives_away(stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    request = pb.VerifyRequest(model=model_pb2.ModelRef(name="good"))
    sound = await stub.Verify(request, timeout=30)
    (only,) = await messages(stub, lease_request(maps=False))
    assert sound.files == len(names_in(Path(only.folder))) - 1  # but the manifest
    path = Path(only.folder) / WEIGHTS
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a failing disk would
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Verify(request, timeout=30)
    assert from_rpc_error(refused.value).reason == "CHECKSUM_MISMATCH"


async def test_a_deleted_model_leaves_memory_too(stub: Stub, good: Path) -> None:
    ref = (await import_folder(stub, good))[-1].model.ref
    assert (await messages(stub, lease_request()))[-1].HasField("mapping")
    async with asyncio.timeout(30):
        while (await describe(stub)).models[0].leases:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    await stub.Delete(pb.DeleteRequest(model=ref), timeout=30)
    assert (await describe(stub)).arena.free_bytes == ARENA


def test_an_arena_that_does_not_fit_is_refused(tmp_path: Path, redis_url: str) -> None:
    node = Node(tmp_path / "data", redis_url, BRISK_STOREMGR_ARENA_BYTES=str(2**45))
    node.launch()
    try:
        with pytest.raises(NodeError):
            node.wait_for("serving")
        assert node.wait() == 2
    finally:
        node.close()
    assert "BRISK_STOREMGR_ARENA_BYTES: an arena of" in node.lines[-1]
    assert "Traceback" not in node.log


async def test_without_an_arena_leases_are_of_files(
    tmp_path: Path, redis_url: str, good: Path
) -> None:
    with running(Node(tmp_path / "data", redis_url)) as node:
        async with stub_of(node) as stub:
            await import_folder(stub, good)
            (only,) = await messages(stub, lease_request())
            assert not only.more
            state = await describe(stub)
            assert not state.HasField("arena")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in stub.Prefetch(
                    pb.PrefetchRequest(model=model_pb2.ModelRef(name="good")), timeout=30
                ):
                    pass
            assert from_rpc_error(refused.value).reason == "INSUFFICIENT_MEMORY"
