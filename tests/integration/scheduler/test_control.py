"""Operators' calls: a model goes to every node or to none, and what is deployed is durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from services.common.errors import (
    BriskError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.status import from_rpc_error
from tests.fakes.store_server import FakeStoreServer, run_store
from tests.fakes.worker_server import FakeWorkerServer, run_worker
from tests.integration.scheduler.house import CALL_S, Scheduler, run_scheduler, until


@dataclass(slots=True, kw_only=True)
class House:
    """A scheduler with two nodes, the first of which has a worker."""

    scheduler: Scheduler
    worker: FakeWorkerServer
    stores: tuple[FakeStoreServer, FakeStoreServer]


@pytest.fixture
async def house(redis_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(run_store(redis_url, node_id="node-1"))
        second = await stack.enter_async_context(run_store(redis_url, node_id="node-2"))
        worker = await stack.enter_async_context(run_worker(redis_url, node_id="node-1"))
        scheduler = await stack.enter_async_context(run_scheduler(redis_url, tmp_path))
        await until(scheduler.leads)

        async def knows_worker() -> bool:
            return await scheduler.workers() == [worker.worker_id]

        await until(knows_worker)
        yield House(scheduler=scheduler, worker=worker, stores=(first, second))


async def imported(
    scheduler: Scheduler, path: str, name: str = ""
) -> tuple[list[pb2.ImportProgress], model_pb2.ModelInfo]:
    """Make an Import call to its end; raise BriskError."""
    told: list[pb2.ImportProgress] = []
    request = pb2.ImportRequest(source_path=path, name=name)
    try:
        async for response in scheduler.control.Import(request, timeout=CALL_S):
            if response.HasField("model"):
                return told, response.model
            told.append(response.progress)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    raise AssertionError("the stream ended without a model")


async def delete(scheduler: Scheduler, name: str, *, keep_files: bool = False) -> None:
    """Delete a deployment; raise BriskError."""
    try:
        request = pb2.DeleteRequest(name=name, keep_files=keep_files)
        await scheduler.control.Delete(request, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def held(house: House) -> list[list[str]]:
    """Return the names of the models that each node has."""
    return [[name for name, _ in store.models] for store in house.stores]


async def test_an_import_goes_to_every_node_and_is_checked(house: House) -> None:
    told, model = await imported(house.scheduler, "/m/alpha", "org/alpha")
    assert model.ref.name == "org/alpha"
    assert held(house) == [["org/alpha"], ["org/alpha"]]
    assert told
    assert told[-1].bytes_total in (1000, 2000)
    assert house.worker.checked == [model.ref]
    again = await imported(house.scheduler, "/m/alpha", "org/alpha")
    assert again[1] == model


async def test_a_model_that_fails_the_check_is_gone_again(house: House) -> None:
    house.worker.check_refusal = InvalidArgumentError(
        "tensor x is missing", reason=Reason.INVALID_MODEL
    )
    with pytest.raises(InvalidArgumentError, match="tensor x is missing"):
        await imported(house.scheduler, "/m/alpha")
    assert held(house) == [[], []]
    with pytest.raises(InvalidArgumentError):
        await house.scheduler.deploy("/m/alpha")
    assert held(house) == [[], []]
    assert await house.scheduler.models() == []


async def test_a_model_that_was_there_before_stays_when_the_check_fails(house: House) -> None:
    await imported(house.scheduler, "/m/alpha")
    house.worker.check_refusal = InvalidArgumentError("no", reason=Reason.INVALID_MODEL)
    with pytest.raises(InvalidArgumentError):
        await imported(house.scheduler, "/m/alpha")
    assert held(house) == [["alpha"], ["alpha"]]


async def test_an_undecided_check_stops_nothing(house: House) -> None:
    house.worker.check_refusal = UnavailableError("no store", reason=Reason.STORE_UNREACHABLE)
    await house.scheduler.deploy("/m/alpha")
    assert await house.scheduler.models() == ["alpha"]


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("/m/missing", NotFoundError, Reason.SOURCE_NOT_FOUND),
        ("/m/pickled", InvalidArgumentError, Reason.INVALID_MODEL),
    ],
)
async def test_a_bad_folder_is_refused_in_the_store_managers_words(
    house: House, path: str, kind: type[BriskError], reason: str
) -> None:
    with pytest.raises(kind) as refusal:
        await house.scheduler.deploy(path)
    assert refusal.value.reason == reason
    assert held(house) == [[], []]


async def test_one_node_that_fails_undoes_the_others(house: House) -> None:
    house.stores[1].is_full = True
    with pytest.raises(ResourceExhaustedError) as refusal:
        await imported(house.scheduler, "/m/alpha")
    assert refusal.value.reason == Reason.DISK_FULL
    await until(lambda: held(house) == [[], []])


async def test_nodes_that_see_different_files_are_told_apart(house: House) -> None:
    house.stores[1].salt = "other"
    with pytest.raises(InvalidArgumentError, match="differ between nodes"):
        await imported(house.scheduler, "/m/alpha")
    assert held(house) == [[], []]


async def test_a_cancelled_import_leaves_nothing(house: House) -> None:
    house.stores[1].may_import.clear()
    call = house.scheduler.control.Import(pb2.ImportRequest(source_path="/m/alpha"), timeout=CALL_S)
    await call.read()
    await until(lambda: house.stores[0].models)
    call.cancel()
    await until(lambda: house.stores[1].cancelled == ["alpha"])
    await until(lambda: held(house) == [[], []])


async def test_without_a_store_manager_there_is_no_node(redis_url: str, tmp_path: Path) -> None:
    async with run_scheduler(redis_url, tmp_path) as scheduler:
        await until(scheduler.leads)
        with pytest.raises(UnavailableError) as refusal:
            await imported(scheduler, "/m/alpha")
        assert refusal.value.reason == Reason.NO_NODE
        assert refusal.value.retry_after_s


async def test_a_deployment_is_completed_and_listed(house: House) -> None:
    made = await house.scheduler.deploy("/m/alpha", name="org/first")
    assert made.name == "org/first"
    assert made.model.ref.name == "alpha"
    assert (made.spec.slots, made.spec.context_tokens_max) == (4, 128)
    assert made.spec.keep_alive == Duration(seconds=300)
    assert made.device_bytes == 1000 + 4 * 128
    assert made.created_at.seconds > 0
    by_model = pb2.DeployRequest(name="second", model=model_pb2.ModelRef(name="alpha"))
    second = await house.scheduler.deployed(by_model)
    assert second.model == made.model
    assert await house.scheduler.models() == ["org/first", "second"]
    ever = await house.scheduler.deploy("/m/alpha", keep_alive=Duration(seconds=-5))
    assert ever.spec.keep_alive == Duration(seconds=-1)


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("../etc", {}, "model name"),
        ("", {"slots": 0}, "slots must be between 1 and 256. Given: 0"),
        ("", {"slots": 257}, "Given: 257"),
        ("", {"context_tokens_max": 129}, "at most 128, which alpha supports. Given: 129"),
        ("", {"keep_alive": Duration(seconds=10**9)}, "keep_alive must be at most"),
    ],
)
async def test_a_bad_deployment_is_refused_and_leaves_nothing(
    house: House, name: str, spec: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await house.scheduler.deploy("/m/alpha", name=name, **spec)
    assert words in refusal.value.message
    assert held(house) == [[], []]
    assert await house.scheduler.models() == []


async def test_a_deployment_needs_a_source_that_exists(house: House) -> None:
    with pytest.raises(InvalidArgumentError, match="source must be set"):
        await house.scheduler.deployed(pb2.DeployRequest(name="alpha"))
    await imported(house.scheduler, "/m/alpha")
    with pytest.raises(NotFoundError, match="did you mean alpha") as refusal:
        await house.scheduler.deployed(pb2.DeployRequest(model=model_pb2.ModelRef(name="alpa")))
    assert refusal.value.reason == Reason.MODEL_NOT_FOUND
    with pytest.raises(NotFoundError, match="at revision 00"):
        await house.scheduler.deployed(
            pb2.DeployRequest(model=model_pb2.ModelRef(name="alpha", revision="00"))
        )


async def test_the_last_import_is_deployed_when_no_revision_is_named(house: House) -> None:
    await imported(house.scheduler, "/m/one", "alpha")
    _, newer = await imported(house.scheduler, "/m/two", "alpha")
    made = await house.scheduler.deployed(pb2.DeployRequest(model=model_pb2.ModelRef(name="alpha")))
    assert made.model == newer


async def test_delete_drains_instances_and_takes_the_files_along(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    got = await house.scheduler.acquired("r1", "alpha")
    house.worker.busy(got.instance_id)
    for store in house.stores:
        store.leased.add("alpha")
    await delete(house.scheduler, "alpha")
    assert await house.scheduler.models() == []
    refused = await house.scheduler.acquired("r2", "alpha")
    assert isinstance(refused.error, NotFoundError)
    assert house.worker.held
    house.worker.busy(got.instance_id, running=0)
    await until(lambda: not house.worker.held)
    assert held(house) == [["alpha"], ["alpha"]]
    for store in house.stores:
        store.leased.clear()
    await until(lambda: held(house) == [[], []])
    with pytest.raises(NotFoundError):
        await delete(house.scheduler, "alpha")


async def test_delete_keeps_files_that_are_wanted(house: House) -> None:
    await house.scheduler.deploy("/m/alpha", name="one")
    await house.scheduler.deploy("/m/alpha", name="two")
    await delete(house.scheduler, "one")
    assert held(house) == [["alpha"], ["alpha"]]
    await delete(house.scheduler, "two", keep_files=True)
    assert held(house) == [["alpha"], ["alpha"]]


async def test_the_cluster_can_be_seen(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    got = await house.scheduler.acquired("r1", "alpha")
    await house.scheduler.release("r1")
    response = await house.scheduler.control.ListNodes(pb2.ListNodesRequest(), timeout=CALL_S)
    assert [node.node_id for node in response.nodes] == ["node-1", "node-2"]
    assert all(node.storemgr_address for node in response.nodes)
    assert response.leader_id.startswith("scheduler-")
    assert response.leader_epoch > 0

    async def is_idle() -> bool:
        (instance,) = await house.scheduler.instances()
        return 290 < instance.keep_alive_left.seconds <= 300 and instance.HasField("idle")

    await until(is_idle)
    described = await house.scheduler.control.GetModel(
        pb2.GetModelRequest(name="alpha"), timeout=CALL_S
    )
    assert described.deployment.instances_ready == 1
    assert [each.instance_id for each in described.instances] == [got.instance_id]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.scheduler.control.GetModel(pb2.GetModelRequest(name="alpa"), timeout=CALL_S)
    assert "did you mean alpha" in from_rpc_error(refused.value).message


async def test_changes_of_one_name_at_once_end_in_one_of_them(house: House) -> None:
    await imported(house.scheduler, "/m/alpha")
    requests = [
        pb2.DeployRequest(
            model=model_pb2.ModelRef(name="alpha"), spec=pb2.DeploymentSpec(slots=slots)
        )
        for slots in range(1, 9)
    ]
    await asyncio.gather(*(house.scheduler.deployed(each) for each in requests))
    listed = await house.scheduler.control.ListModels(pb2.ListModelsRequest(), timeout=CALL_S)
    (made,) = listed.deployments
    assert made.spec.slots in range(1, 9)
    got = await house.scheduler.acquired("r1", "alpha")
    assert got.granted is not None
    assert got.granted.route.slots == made.spec.slots
