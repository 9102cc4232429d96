"""The router: `python -m services.router`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import Final

from redis.asyncio import Redis

from services.common.channel import ChannelPool
from services.common.clock import wall_clock
from services.common.keys import ServiceKind
from services.common.leader import LeaderLocator
from services.common.lifecycle import Ready, run_service, serve
from services.common.metrics import start_metrics
from services.common.names import new_id
from services.common.redis_client import connect_or_refuse
from services.common.registry import Registration, ServiceFacts
from services.common.server import HouseServer, ServerLimits, create_server
from services.router.adapters import GrpcCatalog, GrpcScheduler, GrpcWorkers
from services.router.admission import Admission
from services.router.config import RouterConfig
from services.router.control import ControlForwarder
from services.router.demand import report_demand
from services.router.dispatch import Dispatcher
from services.router.farewell import Farewell
from services.router.front import Front
from services.router.http.app import OpenAiFace
from services.router.http.body import Bodies
from services.router.http.server import HttpLimits, HttpServer, create_http_server
from services.router.metrics import export_gauges
from services.router.relay import RelayConfig
from services.router.routes import RouteTable
from services.router.service import (
    CONTROL_METHODS,
    SERVICE_NAMES,
    InferenceServicer,
    add_to_server,
)
from services.router.watch import watch_routes

# Above the longest prompt, so that one that is a little too long is refused by name and size.
_MESSAGE_BYTES_MAX: Final = 2 * 1024 * 1024
_OTHER_RPCS_MAX: Final = 1024  # control, health, reflection; and our own refusals, with a reason
_FAREWELL_S: Final = 0.5  # between our own word to the last streams and gRPC's cut


async def main(config: RouterConfig) -> None:
    """Open what the router needs, serve, close it in reverse."""
    async with AsyncExitStack() as stack:
        redis = await connect_or_refuse(config.redis_url, setting=config.setting("redis_url"))
        stack.push_async_callback(redis.aclose)
        metrics = start_metrics(
            config.metrics_listen,
            setting=config.setting("metrics_listen"),
            advertise=config.advertise,
        )
        stack.callback(metrics.close)
        router_id = new_id("router")
        pool = ChannelPool()
        stack.push_async_callback(pool.close)
        locator = LeaderLocator(redis)
        scheduler = GrpcScheduler(pool, locator, router_id)
        front = _front(config, scheduler, GrpcWorkers(pool))
        stack.push_async_callback(front.dispatcher.aclose)
        export_gauges(front.admission, front.dispatcher.table)
        server = _server(config)
        add_to_server(
            server.server, InferenceServicer(front), _control(config, locator, pool, front.farewell)
        )

        async def leave() -> None:
            front.farewell.begin(max(0.0, config.announce_s + config.drain_s - _FAREWELL_S))

        http = _http(config, front, GrpcCatalog(pool, locator))
        await serve(
            server,
            _registration(config, redis, server, router_id, metrics.address).run(),
            watch_routes(scheduler, front.dispatcher, front.workers),
            report_demand(scheduler, front.dispatcher),
            announce_s=config.announce_s,
            drain_s=config.drain_s,
            before_drain=leave,
            ready=Ready(
                path=config.ready_file,
                service=config.service,
                service_id=router_id,
                metrics_address=metrics.address,
                http_address=http.address if http else None,
            ),
            beside=(http,) if http else (),
        )


def _front(config: RouterConfig, scheduler: GrpcScheduler, workers: GrpcWorkers) -> Front:
    admission = Admission(requests_max=config.requests_max, queue_max=config.queue_max)
    return Front(
        admission=admission,
        farewell=Farewell(),
        dispatcher=Dispatcher(
            table=RouteTable(),
            scheduler=scheduler,
            admission=admission,
            leader_wait_s=config.leader_wait_s,
        ),
        workers=workers,
        relay=RelayConfig(moves_max=config.moves_max, silence_s_max=config.silence_s_max),
        request_s_default=config.request_s_default,
        unread_s_max=config.unread_s_max,
    )


def _http(config: RouterConfig, front: Front, catalog: GrpcCatalog) -> HttpServer | None:
    if not config.http_listen:
        return None
    bodies = Bodies(bytes_max=config.http_body_bytes_max, read_s_max=config.http_read_s_max)
    return create_http_server(
        config.http_listen,
        OpenAiFace(front, catalog, bodies).app(),
        limits=HttpLimits(
            connections_max=config.http_connections_max, head_s_max=config.http_read_s_max
        ),
        setting=config.setting("http_listen"),
        advertise=config.advertise,
    )


def _server(config: RouterConfig) -> HouseServer:
    return create_server(
        config.listen,
        limits=ServerLimits(
            message_bytes_max=_MESSAGE_BYTES_MAX, rpcs_max=config.requests_max + _OTHER_RPCS_MAX
        ),
        reflection=config.reflection,
        service_names=SERVICE_NAMES,
        setting=config.setting("listen"),
        advertise=config.advertise,
    )


def _control(
    config: RouterConfig, locator: LeaderLocator, pool: ChannelPool, farewell: Farewell
) -> ControlForwarder:
    return ControlForwarder(
        methods=CONTROL_METHODS,
        locator=locator,
        pool=pool,
        farewell=farewell,
        request_s_default=config.control_s_default,
    )


def _registration(
    config: RouterConfig, redis: Redis, server: HouseServer, router_id: str, metrics_address: str
) -> Registration:
    facts = ServiceFacts(
        kind=ServiceKind.ROUTER,
        service_id=router_id,
        node_id=config.node_id,
        address=server.address,
        metrics_address=metrics_address,
        started_at=wall_clock(),
    )
    return Registration(redis, facts)


if __name__ == "__main__":
    sys.exit(run_service(RouterConfig, main, sys.argv[1:]))
