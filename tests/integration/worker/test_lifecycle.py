"""A worker starts with sound settings only, registers, and leaves without losing a token."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.common.errors import Reason
from services.common.keys import ServiceKind
from services.common.redis_client import connect as connect_redis
from services.common.registry import Registry
from services.common.status import from_rpc_error
from tests.integration.worker.house import (
    NODE,
    Cluster,
    connect,
    describe,
    launch,
    load,
    load_request,
    refusal,
    run_cluster,
    until_state,
)
from tests.models import DEMO_MODEL


@pytest.fixture
def fresh(tmp_path: Path, redis_url: str) -> Iterator[Cluster]:
    """Return a node of the test's own."""
    with run_cluster(tmp_path, redis_url) as cluster:
        yield cluster


def generate(tokens: int) -> pb2.GenerateRequest:
    return pb2.GenerateRequest(
        request_id="r",
        instance_id="i",
        prompt=model_pb2.Prompt(text="The"),
        sampling=model_pb2.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
    )


def no_trace_of_trouble(cluster: Cluster) -> None:
    log = cluster.worker.log()
    assert "Traceback" not in log
    assert not [event for event in cluster.worker.events() if event["level"] == "error"]


async def test_a_stopped_worker_sends_all_tokens_first_and_exits_0(fresh: Cluster) -> None:
    info = await fresh.import_model(DEMO_MODEL, "demo")
    async with (
        connect(fresh.worker.grpc) as stub,
        grpc.aio.insecure_channel(fresh.worker.grpc) as channel,
    ):
        await load(stub, load_request(info, "i", context_tokens_max=1024))
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = aiter(stub.Generate(generate(300), timeout=60))
        tokens = list((await anext(call)).chunk.token_ids)
        fresh.worker.terminate()
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        async for response in call:
            tokens += response.chunk.token_ids
        assert len(tokens) == 300
        assert response.chunk.finish_reason == model_pb2.FINISH_REASON_LENGTH
    assert await asyncio.to_thread(fresh.worker.wait) == 0
    no_trace_of_trouble(fresh)
    assert not fresh.worker.ready_file.exists()


async def test_a_leaving_worker_takes_nothing_new(tmp_path: Path, redis_url: str) -> None:
    with run_cluster(tmp_path, redis_url, announce_s="5") as cluster:
        info = await cluster.import_model(DEMO_MODEL, "demo")
        async with connect(cluster.worker.grpc) as stub:
            await load(stub, load_request(info, "i", context_tokens_max=1024))
            call = stub.Generate(generate(300), timeout=60)
            await call.read()
            cluster.worker.terminate()
            await until_state(stub, lambda state: state.draining)
            for refused in (
                stub.Generate(generate(1), timeout=30),
                stub.Load(load_request(info, "j"), timeout=30),
            ):
                error = await refusal(refused)
                assert error.reason == Reason.SHUTTING_DOWN
                assert error.retry_after_s is not None
            call.cancel()
        assert await asyncio.to_thread(cluster.worker.wait) == 0


async def test_what_cannot_finish_in_time_gets_one_typed_error(
    tmp_path: Path, redis_url: str
) -> None:
    with run_cluster(tmp_path, redis_url, drain_s="1", announce_s="0") as cluster:
        info = await cluster.import_model(DEMO_MODEL, "demo")
        async with connect(cluster.worker.grpc) as stub:
            await load(stub, load_request(info, "i", slots=1, context_tokens_max=1024))
            calls = [aiter(stub.Generate(generate(1000), timeout=60)) for _ in range(2)]
            await anext(calls[0])  # the other one waits
            cluster.worker.terminate()
            for call in calls:
                error = await refusal(call)
                assert error.code == "UNAVAILABLE"
                assert error.reason == Reason.SHUTTING_DOWN
        assert await asyncio.to_thread(cluster.worker.wait) == 0
        no_trace_of_trouble(cluster)


def test_a_worker_that_is_stopped_before_it_serves_exits_0(tmp_path: Path, redis_url: str) -> None:
    worker = launch("worker", tmp_path, {"redis_url": redis_url})
    try:
        while not any(event["message"] == "starting" for event in worker.events()):
            assert worker.popen.poll() is None
            time.sleep(0.01)
        worker.terminate()
        assert worker.wait() == 0
        assert "Traceback" not in worker.log()
    finally:
        worker.end()


async def test_a_worker_is_in_the_registry_while_it_serves(fresh: Cluster, redis_url: str) -> None:
    redis = connect_redis(SecretStr(redis_url))
    registry = Registry(redis)
    (facts,) = await registry.list(ServiceKind.WORKER)
    assert (facts.node_id, facts.address) == (NODE, fresh.worker.grpc)
    async with connect(fresh.worker.grpc) as stub:
        state = await describe(stub)
        assert state.worker_id == facts.service_id == fresh.worker.service_id
        assert (state.node_id, state.address) == (NODE, fresh.worker.grpc)
    fresh.worker.terminate()
    assert await asyncio.to_thread(fresh.worker.wait) == 0
    assert await registry.list(ServiceKind.WORKER) == ()
    await redis.aclose()


async def test_without_its_store_manager_a_worker_says_so(fresh: Cluster) -> None:
    info = await fresh.import_model(DEMO_MODEL, "demo")
    async with connect(fresh.worker.grpc) as stub:
        fresh.storemgr.popen.kill()
        fresh.storemgr.popen.wait()
        error = await refusal(stub.Load(load_request(info, "i"), timeout=30))
        assert error.code == "UNAVAILABLE"
        assert error.reason == Reason.STORE_UNREACHABLE
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(pb2.CheckRequest(model=info.ref), timeout=30)
        assert from_rpc_error(refused.value).reason == Reason.STORE_UNREACHABLE
        state = await describe(stub)
        assert state.devices[0].free_bytes == state.devices[0].memory_bytes


async def test_damaged_weights_are_found_and_leave_nothing(fresh: Cluster) -> None:
    info = await fresh.import_model(DEMO_MODEL, "demo")
    (stored,) = fresh.storemgr_folder.rglob("model.safetensors")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.unlink()  # it may be a link to the source
    stored.write_bytes(content)
    async with connect(fresh.worker.grpc) as stub:
        error = await refusal(stub.Load(load_request(info, "i"), timeout=30))
        assert error.code == "DATA_LOSS"
        assert "model.safetensors" in error.message or error.reason != Reason.DATA_LOSS
        state = await describe(stub)
        assert list(state.instances) == []
        assert state.devices[0].free_bytes == state.devices[0].memory_bytes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRISK_WORKER_DEVICES", "cpu:0=lots"),
        ("BRISK_WORKER_THREADS", "0"),
        ("BRISK_WORKER_TREADS", "1"),
        ("BRISK_WORKER_REDIS_URL", "redis://127.0.0.1:1/0"),
    ],
)
def test_a_wrong_setting_is_named_at_once_and_exits_2(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.worker"],
        env={"PATH": "/usr/bin:/bin", name: value, "BRISK_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert name.removeprefix("BRISK_WORKER_") in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    for line in done.stderr.splitlines()[:-1]:
        json.loads(line)
