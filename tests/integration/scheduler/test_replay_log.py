"""A real scheduler's log replays to the same decisions, and explains each of its starts."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from brisk.control.v1 import control_service_pb2 as control_pb2

from services.common.errors import Reason
from services.common.status import from_rpc_error
from services.scheduler.replay import replay
from tests.fakes.store_server import run_store
from tests.fakes.worker_server import run_worker
from tests.integration.scheduler.house import CALL_S, run_scheduler, until


async def test_a_run_is_explained_and_its_log_decides_the_same_again(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url) as worker,
        run_scheduler(redis_url, tmp_path) as scheduler,
    ):
        await until(scheduler.leads)
        for name in ("alpha", "beta", "gamma"):
            await scheduler.deploy(f"/m/{name}")
        for number, name in enumerate(("alpha", "beta", "gamma", "alpha", "beta")):
            got = await scheduler.acquired(f"r{number}", name)
            await scheduler.release(f"r{number}")
            request = control_pb2.ExplainRequest(id=f"r{number}")
            told = await scheduler.control.Explain(request, timeout=CALL_S)
            assert told.deployment == name
            assert told.choices[0].chosen.worker_id == worker.worker_id
            assert got.instance_id in [each.instance_id for each in told.attempts]
            assert f"r{number}" in [each.request_id for each in told.served]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await scheduler.control.Explain(control_pb2.ExplainRequest(id="who"), timeout=CALL_S)
        assert from_rpc_error(refused.value).reason == Reason.PLACEMENT_NOT_FOUND
        log = scheduler.log
    told_again = replay(log.splitlines())
    assert told_again.difference is None, told_again.difference
    assert told_again.reigns == 1
    assert told_again.decisions >= 25
