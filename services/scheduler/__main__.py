"""`python -m services.scheduler`: read the settings, wire the parts, serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

from brisk.control.v1 import control_service_pb2_grpc as control_grpc
from brisk.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc
from redis.asyncio import Redis

from services.common.channel import ChannelPool
from services.common.clock import wall_clock
from services.common.errors import BriskError
from services.common.keys import ServiceKind
from services.common.leader import LeaderLocator
from services.common.lease import LeaderIdentity, LeaderLease
from services.common.lifecycle import Ready, run_service, serve
from services.common.metrics import start_metrics
from services.common.names import new_id
from services.common.redis_client import connect_or_refuse
from services.common.registry import Registration, Registry, ServiceFacts
from services.common.server import INTERNAL_LIMITS, HouseServer, create_server
from services.scheduler import control, service
from services.scheduler.adapters import GrpcStores, GrpcWorkers, RedisRecords, RegistryPeers
from services.scheduler.catalogue import Catalogue
from services.scheduler.config import SchedulerConfig
from services.scheduler.deployments import Deployments
from services.scheduler.election import Election
from services.scheduler.estimates import Priors
from services.scheduler.imports import Chores, Imports
from services.scheduler.shell import Reign
from services.scheduler.state import Limits


async def main(config: SchedulerConfig) -> None:
    """Serve until told to stop."""
    scheduler_id = new_id("scheduler")
    async with AsyncExitStack() as stack:
        redis = await connect_or_refuse(config.redis_url, setting=config.setting("redis_url"))
        stack.push_async_callback(redis.aclose)
        metrics = start_metrics(
            config.metrics_listen,
            setting=config.setting("metrics_listen"),
            advertise=config.advertise,
        )
        stack.callback(metrics.close)
        server = create_server(
            config.listen,
            limits=INTERNAL_LIMITS,
            reflection=config.reflection,
            service_names=(service.SERVICE_NAME, control.SERVICE_NAME),
            endless_methods=service.ENDLESS_METHODS,
            setting=config.setting("listen"),
            advertise=config.advertise,
        )
        identity = LeaderIdentity(scheduler_id=scheduler_id, address=server.address)
        election = _wire(config, redis, identity, server, stack)
        facts = ServiceFacts(
            kind=ServiceKind.SCHEDULER,
            service_id=scheduler_id,
            node_id=config.node_id,
            address=server.address,
            metrics_address=metrics.address,
            started_at=wall_clock(),
        )
        await serve(
            server,
            Registration(redis, facts).run(),
            election.run(),
            announce_s=config.announce_s,
            drain_s=config.drain_s,
            before_drain=election.step_down,
            ready=Ready(
                path=config.ready_file,
                service=config.service,
                service_id=scheduler_id,
                metrics_address=metrics.address,
            ),
        )


def _wire(
    config: SchedulerConfig,
    redis: Redis,
    identity: LeaderIdentity,
    server: HouseServer,
    stack: AsyncExitStack,
) -> Election:
    """Put the parts together and add the servicers; return the part that runs."""
    pool = ChannelPool()
    stack.push_async_callback(pool.close)
    chores = Chores()
    stack.push_async_callback(chores.close)
    workers = GrpcWorkers(pool, load_s_max=config.load_s_max)
    stores = GrpcStores(pool)
    peers = RegistryPeers(Registry(redis))
    deployments = Deployments(RedisRecords(redis))
    election = Election(
        lease=LeaderLease(redis, identity),
        locator=LeaderLocator(redis),
        identity=identity,
        deployments=deployments,
        make_reign=_reigns(config, workers, stores, peers),
    )
    catalogue = Catalogue(
        deployments=deployments,
        imports=Imports(stores=stores, peers=peers, chores=chores),
        workers=workers,
        chores=chores,
    )
    scheduler_grpc.add_SchedulerServiceServicer_to_server(
        service.SchedulerServicer(election), server.server
    )
    control_grpc.add_ControlServiceServicer_to_server(
        control.ControlServicer(
            election=election,
            catalogue=catalogue,
            peers=peers,
            scheduler_id=identity.scheduler_id,
        ),
        server.server,
    )
    return election


def _reigns(
    config: SchedulerConfig, workers: GrpcWorkers, stores: GrpcStores, peers: RegistryPeers
) -> Callable[[int, int, Callable[[], BriskError]], Reign]:
    """Return how to begin a reign."""
    limits = Limits(
        learning_s=config.learning_s,
        waiters_max=config.waiters_max,
        turn_s=config.turn_s,
        reuse_s=config.reuse_s,
    )
    priors = Priors(
        dram_bytes_per_s=config.dram_bytes_per_s,
        ssd_bytes_per_s=config.ssd_bytes_per_s,
        peer_bytes_per_s=config.peer_bytes_per_s,
        remote_bytes_per_s=config.remote_bytes_per_s,
        init_s=config.init_s,
    )

    def begin(epoch: int, term: int, why_over: Callable[[], BriskError]) -> Reign:
        return Reign(
            epoch=epoch,
            term=term,
            workers=workers,
            stores=stores,
            peers=peers,
            limits=limits,
            priors=priors,
            watchers_max=config.watchers_max,
            why_over=why_over,
        )

    return begin


if __name__ == "__main__":
    sys.exit(run_service(SchedulerConfig, main, sys.argv[1:]))
