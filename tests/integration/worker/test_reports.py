"""A worker finds the leading scheduler by its lease, and tells it every change at once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from brisk.common.v1 import placement_pb2
from brisk.scheduler.v1 import scheduler_service_pb2 as pb2
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as pb2_grpc
from brisk.worker.v1 import worker_service_pb2 as worker_pb2
from pydantic import SecretStr

from services.common.errors import Reason, UnavailableError
from services.common.keys import LEADER_LEASE
from services.common.lease import LeaderIdentity
from services.common.redis_client import connect as connect_redis
from services.common.server import INTERNAL_LIMITS, create_server
from tests.integration.worker.house import Cluster, connect, load, load_request, run_cluster
from tests.models import DEMO_MODEL

READY = placement_pb2.INSTANCE_STATE_READY


class Leader(pb2_grpc.SchedulerServiceServicer):
    """Hears reports; refuses them while it does not lead."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[placement_pb2.WorkerState] = asyncio.Queue()
        self.leads = True

    async def ReportWorker(  # noqa: N802
        self, request: pb2.ReportWorkerRequest, context: object
    ) -> pb2.ReportWorkerResponse:
        if not self.leads:
            raise UnavailableError("not me", reason=Reason.NOT_LEADER, retry_after_s=0.1)
        self.heard.put_nowait(request.state)
        return pb2.ReportWorkerResponse()

    async def ReportDemand(  # noqa: N802
        self, request: pb2.ReportDemandRequest, context: object
    ) -> pb2.ReportDemandResponse:
        raise NotImplementedError

    async def until(self, what: str, value: object) -> placement_pb2.WorkerState:
        """Return the first report whose only instance, if any, has this value."""
        async with asyncio.timeout(20):
            while True:
                state = await self.heard.get()
                if [getattr(each, what) for each in state.instances] == [value]:
                    return state

    def Acquire(self, request: object, context: object) -> AsyncIterator[pb2.AcquireResponse]:  # noqa: N802
        raise NotImplementedError

    def Release(self, request: object, context: object) -> pb2.ReleaseResponse:  # noqa: N802
        raise NotImplementedError

    def WatchRoutes(  # noqa: N802
        self, request: object, context: object
    ) -> AsyncIterator[pb2.WatchRoutesResponse]:
        raise NotImplementedError


async def start(leader: Leader) -> tuple[grpc.aio.Server, str]:
    name = pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name
    server = create_server(
        "127.0.0.1:0", limits=INTERNAL_LIMITS, reflection=False, service_names=(name,)
    )
    pb2_grpc.add_SchedulerServiceServicer_to_server(leader, server.server)
    await server.start_serving()
    return server.server, server.address


@pytest.fixture
def fresh(tmp_path: Path, redis_url: str) -> Iterator[Cluster]:
    """Return a node of the test's own."""
    with run_cluster(tmp_path, redis_url) as cluster:
        yield cluster


async def test_the_leader_hears_of_every_change_at_once_and_of_a_new_leader_too(
    fresh: Cluster, redis_url: str
) -> None:
    redis = connect_redis(SecretStr(redis_url))
    first, second = Leader(), Leader()
    server, address = await start(first)
    other_server, other_address = await start(second)
    await redis.set(LEADER_LEASE, LeaderIdentity(scheduler_id="s1", address=address).to_json())
    info = await fresh.import_model(DEMO_MODEL, "demo")
    async with connect(fresh.worker.grpc) as stub:
        async with asyncio.timeout(20):
            state = await first.heard.get()
        assert (state.worker_id, state.address) == (fresh.worker.service_id, fresh.worker.grpc)
        began_s = asyncio.get_running_loop().time()
        await load(stub, load_request(info, "i"))
        ready = await first.until("state", READY)
        assert asyncio.get_running_loop().time() - began_s < 5
        assert ready.sequence > state.sequence
        assert ready.devices[0].free_bytes < state.devices[0].free_bytes
        # The leader loses its lease to another, which the worker finds by itself.
        first.leads = False
        leads = LeaderIdentity(scheduler_id="s2", address=other_address)
        await redis.set(LEADER_LEASE, leads.to_json())
        await second.until("state", READY)
        await stub.Unload(worker_pb2.UnloadRequest(instance_id="i", leader_epoch=1), timeout=30)
        fresh.worker.terminate()
        async with asyncio.timeout(20):
            while not (await second.heard.get()).draining:
                pass
    assert await asyncio.to_thread(fresh.worker.wait) == 0
    await server.stop(0)
    await other_server.stop(0)
    await redis.aclose()
