"""Control calls reach the leader and come back unchanged: answers, streams, refusals, cancels."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from brisk.control.v1 import control_service_pb2 as pb2

from services.common.errors import NotFoundError, Reason
from services.common.status import from_rpc_error
from tests.integration.router.fake_scheduler import run_scheduler
from tests.integration.router.house import run_house


async def test_a_unary_call_is_forwarded_with_its_id_and_deadline(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        response = await house.control.ListModels(
            pb2.ListModelsRequest(), timeout=20.0, metadata=(("x-request-id", "op-1"),)
        )
        assert [d.name for d in response.deployments] == ["opt-125m"]
        assert house.leader.control.request_ids == ["op-1"]
        assert 15.0 < house.leader.control.seconds[0] < 21.0  # gRPC rounds up


async def test_a_stream_is_forwarded_message_by_message(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        request = pb2.DeployRequest(name="m", source_path="/x")
        events = [event async for event in house.control.Deploy(request)]
        assert [e.WhichOneof("event") for e in events] == ["progress"] * 3 + ["deployment"]
        assert events[-1].deployment.name == "m"


async def test_a_refusal_comes_back_with_every_detail(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await house.control.GetModel(pb2.GetModelRequest(name="x"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert refused.value.details() == "no model x"
        error = from_rpc_error(refused.value)
        assert isinstance(error, NotFoundError)
        assert error.reason == Reason.MODEL_NOT_FOUND
        assert error.retry_after_s == 1.5
        assert error.metadata == {"near": "opt-125m"}
        method = "/brisk.control.v1.ControlService/GetModel"
        counted = f'brisk_rpcs_total{{code="NOT_FOUND",method="{method}"}} 1.0'
        assert counted in await asyncio.to_thread(house.router.metrics)


async def test_cancelling_and_deadlines_reach_the_leader(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        for timeout in (None, 0.5):
            house.leader.control.is_given_up.clear()
            call = house.control.Import(pb2.ImportRequest(source_path="/x"), timeout=timeout)
            await call.read()
            if timeout is None:
                call.cancel()
            await house.leader.control.is_given_up.wait()


async def test_a_bug_of_the_leaders_says_nothing_of_its_inside(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await house.control.Delete(pb2.DeleteRequest(name="x"))
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert "a bug" not in str(refused.value.details())


async def test_a_scheduler_that_leads_no_more_is_not_asked_twice(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house, run_scheduler(epoch=2) as heir:
        house.scheduler.is_leading = False  # and the router does not know yet
        await heir.lead(redis_url)
        response = await house.control.ListModels(pb2.ListModelsRequest())
        assert response.deployments
        assert len(heir.control.seconds) == 1


@pytest.mark.parametrize("how", ["stops leading", "dies"])
async def test_without_a_leader_the_operator_is_told_when_to_come_back(
    how: str, redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        if how == "dies":
            await house.leader.stop()
        else:
            house.scheduler.is_leading = False
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await house.control.ListModels(pb2.ListModelsRequest())
        error = from_rpc_error(refused.value)
        assert (error.code, error.reason) == ("UNAVAILABLE", Reason.NO_LEADER)
        assert error.retry_after_s
        assert house.leader.address not in error.message


async def test_a_method_that_nobody_knows_is_unimplemented_and_leaves_no_metric(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        unknown: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        unknown = house.channel.unary_unary("/brisk.control.v1.ControlService/Explode")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unknown(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "Explode" not in house.router.metrics()


async def test_an_import_longer_than_the_drain_is_told_so(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, drain_s=1.0) as house:
        call = house.control.Import(pb2.ImportRequest(source_path="/x"))
        await call.read()
        house.router.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await call.read()
        assert from_rpc_error(told.value).reason == Reason.SHUTTING_DOWN
