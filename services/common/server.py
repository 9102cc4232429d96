"""The gRPC server with house settings: health, reflection and one boundary around every call.

The settings were measured on loopback; each one that surprises says what it is for. Liveness is
decided by the application, gRPC's keepalive is the second line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from services.common.boundary import Boundary
from services.common.config import reachable_address, split_listen
from services.common.errors import ConfigError

KEEPALIVE_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000
PING_TIMEOUT_MS: Final = 5_000
METADATA_BYTES_SOFT_MAX: Final = 8 * 1024
METADATA_BYTES_MAX: Final = 16 * 1024
_HEALTH_WATCH: Final = "/grpc.health.v1.Health/Watch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server takes on. The number of calls lies above the service's own admission."""

    message_bytes_max: int
    rpcs_max: int


PUBLIC_LIMITS: Final = ServerLimits(message_bytes_max=1024 * 1024, rpcs_max=2048)
INTERNAL_LIMITS: Final = ServerLimits(message_bytes_max=4 * 1024 * 1024, rpcs_max=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class HouseServer:
    """A server that is bound to its port but not started; `lifecycle.serve` starts it."""

    server: grpc.aio.Server
    health: Any  # grpc_health's asyncio servicer, which has no types
    port: int
    address: str  # where others reach it, "host:port"
    service_names: tuple[str, ...]
    draining: asyncio.Event = field(default_factory=asyncio.Event)  # endless streams end on it

    async def start_serving(self) -> None:
        """Open for calls and say SERVING."""
        for name in ("", *self.service_names):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.server.start()

    async def announce_leaving(self) -> None:
        """Say NOT_SERVING and go on answering, so that callers leave in time."""
        await self.health.enter_graceful_shutdown()

    async def drain(self, drain_s: float) -> None:
        """Refuse new calls, end endless streams, let others finish within `drain_s`."""
        self.draining.set()
        await self.server.stop(grace=drain_s)


def create_server(
    listen: str,
    *,
    limits: ServerLimits,
    reflection: bool,
    service_names: Sequence[str],
    endless_methods: Collection[str] = (),
    setting: str = "LISTEN",
    advertise: str | None = None,
) -> HouseServer:
    """Return a server bound to `listen`; add servicers to `.server` before it serves.

    `endless_methods` are paths of streams without an end of their own, for example
    "/brisk.scheduler.v1.SchedulerService/WatchRoutes": a drain ends them with UNAVAILABLE
    (SHUTTING_DOWN) instead of waiting for them. `advertise` is what others reach us by, if it is
    not what we listen on. Needs a running event loop. Raises ConfigError
    naming `setting` if the port is taken or the host unknown.
    """
    host, _ = split_listen(listen)
    draining = asyncio.Event()
    server = grpc.aio.server(
        interceptors=(Boundary(draining, frozenset({_HEALTH_WATCH, *endless_methods})),),
        options=_options(limits),
        maximum_concurrent_rpcs=limits.rpcs_max,
    )
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ConfigError(
            setting, f"cannot listen on {listen}: the port is taken or the host is not ours"
        ) from error
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if reflection:
        names = (*service_names, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
        grpc_reflection.enable_server_reflection(names, server)
    return HouseServer(
        server=server,
        health=health_servicer,
        port=port,
        address=reachable_address(host, port, advertise),
        service_names=tuple(service_names),
        draining=draining,
    )


def _options(limits: ServerLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second process would share the port unnoticed
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.max_metadata_size", METADATA_BYTES_SOFT_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.http2.bdp_probe", 0),  # keeps a slow reader's backlog at 90 KB instead of 4 MB
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # without it a hang shows after 60 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_TIMEOUT_MS),
    ]
