"""A leader stopped for longer than its lease lasts is succeeded, and fenced when it wakes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from services.common.errors import Reason
from tests.fakes.store_server import run_store
from tests.fakes.worker_server import run_worker
from tests.integration.scheduler.house import run_scheduler, until

LEASE_S = 6.0


async def test_a_leader_that_was_stopped_gives_way_and_does_no_harm_when_it_goes_on(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url) as worker,
        run_scheduler(redis_url, tmp_path) as first,
    ):
        await until(first.leads)
        await first.deploy("/m/alpha")
        before = await first.acquired("r1", "alpha")
        async with run_scheduler(redis_url, tmp_path) as second:
            first.process.send_signal(signal.SIGSTOP)
            stopped_s = time.monotonic()
            await until(second.leads, within_s=3.0 * LEASE_S)
            assert time.monotonic() - stopped_s > 0.5 * LEASE_S, "it took the lease of a leader"
            knows = await second.acquired("r2", "alpha")
            assert knows.instance_id == before.instance_id, "the instance was started twice"
            first.process.send_signal(signal.SIGCONT)
            late = await first.acquired("r3", "alpha")
            assert late.error is not None
            assert late.error.reason == Reason.NOT_LEADER
            assert await second.leads()
            assert await second.models() == ["alpha"]
            assert len(worker.loads) == 1
