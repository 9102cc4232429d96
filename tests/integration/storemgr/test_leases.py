"""A lease holds exactly as long as its stream, whatever ends it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.storage.v1 import storage_service_pb2 as pb

from services.common.errors import BriskError
from services.common.status import from_rpc_error
from tests.integration.storemgr.nodes import Node, Stub, describe, import_folder

Call: TypeAlias = "grpc.aio.UnaryStreamCall[pb.LeaseRequest, pb.LeaseResponse]"

HOLDER = """
import sys, grpc
from brisk.storage.v1 import storage_service_pb2 as pb, storage_service_pb2_grpc as pb_grpc
channel = grpc.insecure_channel(sys.argv[1])
call = pb_grpc.StorageServiceStub(channel).Lease(pb.LeaseRequest(model={"name": "good"}))
print(next(call).lease_id, flush=True)
next(call)
"""


def lease_request(name: str = "good", revision: str = "", holder: str = "w-1") -> pb.LeaseRequest:
    return pb.LeaseRequest(model=model_pb2.ModelRef(name=name, revision=revision), holder=holder)


async def lease(stub: Stub, request: pb.LeaseRequest) -> tuple[Call, pb.LeaseResponse]:
    call = stub.Lease(request)
    response = await call.read()
    assert isinstance(response, pb.LeaseResponse)
    return call, response


async def leases_of(stub: Stub) -> int:
    return sum(stored.leases for stored in (await describe(stub)).models)


def is_there(granted: pb.LeaseResponse) -> bool:
    return Path(granted.folder).exists()


async def error_of(call: Awaitable[object]) -> BriskError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return from_rpc_error(refusal.value)


async def test_a_lease_says_where_the_weights_are(stub: Stub, good: Path) -> None:
    model = (await import_folder(stub, good))[-1].model
    call, granted = await lease(stub, lease_request())
    folder = Path(granted.folder)
    assert granted.info == model
    assert granted.tier == model_pb2.TIER_SSD
    assert folder.name == model.ref.revision
    assert [(weight.name, weight.size_bytes) for weight in granted.weights] == [
        ("model.safetensors", (folder / "model.safetensors").stat().st_size)
    ]
    assert await leases_of(stub) == 1
    call.cancel()


async def test_the_latest_import_is_leased_unless_a_revision_is_asked_for(
    stub: Stub, good: Path
) -> None:
    old = (await import_folder(stub, good))[-1].model.ref
    (good / "generation_config.json").write_text("{}")
    new = (await import_folder(stub, good))[-1].model.ref
    assert old.revision != new.revision
    for request, expected in (
        (lease_request(), new),
        (lease_request(revision=old.revision), old),
    ):
        call, granted = await lease(stub, request)
        assert granted.info.ref == expected
        call.cancel()


async def test_a_leased_model_is_not_deleted_until_released(
    node: Node, stub: Stub, good: Path
) -> None:
    ref = (await import_folder(stub, good))[-1].model.ref
    call, granted = await lease(stub, lease_request())
    error = await error_of(stub.Delete(pb.DeleteRequest(model=ref)))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "MODEL_LEASED")
    assert is_there(granted)
    await stub.Release(pb.ReleaseRequest(lease_id=granted.lease_id))
    assert await call.read() is grpc.aio.EOF
    await stub.Delete(pb.DeleteRequest(model=ref))
    await stub.Delete(pb.DeleteRequest(model=ref))
    assert not is_there(granted)
    assert list((await describe(stub)).models) == []
    assert list(node.staging.iterdir()) == []


async def test_cancelling_ends_the_lease(node: Node, stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    call, _ = await lease(stub, lease_request())
    call.cancel()
    await asyncio.to_thread(node.wait_for, "lease ended")
    assert await leases_of(stub) == 0
    assert "brisk_storemgr_leases 0.0" in node.metrics()


async def test_the_holder_s_death_ends_the_lease(node: Node, stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    holder = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", HOLDER, node.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout is not None
    lease_id = (await asyncio.to_thread(holder.stdout.readline)).strip()
    assert await leases_of(stub) == 1
    holder.kill()
    ended = await asyncio.to_thread(node.wait_for, "lease ended")
    assert ended["lease"] == lease_id
    assert await leases_of(stub) == 0
    holder.wait()
    holder.stdout.close()


async def test_a_stop_of_the_service_ends_leases_at_once_with_a_typed_error(
    node: Node, stub: Stub, good: Path
) -> None:
    await import_folder(stub, good)
    call, granted = await lease(stub, lease_request())
    assert await asyncio.to_thread(node.terminate) == 0  # far sooner than the drain's 30 s
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call.read()
    error = from_rpc_error(refusal.value)
    assert (error.code, error.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert is_there(granted)
    assert "Traceback" not in node.log


async def test_an_unknown_model_is_refused_with_near_matches(stub: Stub, good: Path) -> None:
    await import_folder(stub, good)
    error = await error_of(stub.Lease(lease_request("goood")).read())
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert "near: good" in error.message


async def test_a_model_that_was_changed_under_its_other_name_is_not_leased(
    stub: Stub, good: Path
) -> None:
    await import_folder(stub, good, as_is=True)
    with (good / "model.safetensors").open("r+b") as file:  # a hard link to the stored file
        file.seek(-4, 2)
        file.write(b"oops")
    error = await error_of(stub.Lease(lease_request()).read())
    assert (error.code, error.reason) == ("DATA_LOSS", "CHECKSUM_MISMATCH")
    assert "model.safetensors" in error.message
    assert await leases_of(stub) == 0
