"""gRPC channels with house settings, and a bounded pool of them.

Every call through them carries the request id of the task that makes it. The deadline is the
caller's to pass: `timeout=deadline.remaining_s(at_most=...)` on every call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc

from services.common.boundary import REQUEST_ID_KEY
from services.common.clock import monotonic_s
from services.common.errors import ResourceExhaustedError
from services.common.log import bound_request_id
from services.common.server import (
    INTERNAL_LIMITS,
    KEEPALIVE_MS,
    KEEPALIVE_TIMEOUT_MS,
    METADATA_BYTES_MAX,
    METADATA_BYTES_SOFT_MAX,
    PING_TIMEOUT_MS,
)

POOL_CHANNELS_MAX: Final = 1024
POOL_IDLE_S: Final = 300.0
_RECONNECT_MS_MIN: Final = 100
_RECONNECT_MS_MAX: Final = 2_000
_CONNECT_MS_MAX: Final = 5_000  # one attempt; a busy machine may need more than the back-off

Metadata = tuple[tuple[str, str | bytes], ...]

_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", INTERNAL_LIMITS.message_bytes_max),
    ("grpc.max_send_message_length", INTERNAL_LIMITS.message_bytes_max),
    ("grpc.max_metadata_size", METADATA_BYTES_SOFT_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.http2.bdp_probe", 0),  # keeps a slow reader's backlog at 90 KB instead of 4 MB
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # without it a hang shows after 60 s
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # retries are decided where it is known what was delivered
    ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS_MIN),
    ("grpc.min_reconnect_backoff_ms", _CONNECT_MS_MAX),  # despite its name: an attempt's limit
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
    ("grpc.use_local_subchannel_pool", 1),  # a closed channel takes its connection with it
]


def outgoing_metadata() -> Metadata:
    """Return what a call made now carries: the request id of this task, if there is one."""
    request_id = bound_request_id()
    return () if request_id is None else ((REQUEST_ID_KEY, request_id),)


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel to `address`; `await channel.close()` it. Connects on first use."""
    return _HouseChannel(grpc.aio.insecure_channel(address, options=_OPTIONS))


class _HouseChannel(grpc.aio.Channel):
    """Adds outgoing metadata to every call.

    An interceptor could too, but would put another task and generator under each stream.
    """

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        await self._inner.close()
        return None

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - gRPC's signature
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Callable(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Callable(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Callable(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Callable(self._inner.stream_stream(*args, **kwargs))


class _Callable:
    """One method of a stub."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        given = tuple(metadata or ())
        if not any(key == REQUEST_ID_KEY for key, _ in given):
            given += outgoing_metadata()
        return self._inner(*args, metadata=given, **kwargs)


@dataclass(slots=True, kw_only=True)
class _Pooled:
    channel: grpc.aio.Channel
    users: int = 0
    left_at_s: float = 0.0


class ChannelPool:
    """One channel per address, shared by all its users and closed when none is left for a while."""

    def __init__(
        self, *, channels_max: int = POOL_CHANNELS_MAX, idle_s: float = POOL_IDLE_S
    ) -> None:
        self._channels_max = channels_max
        self._idle_s = idle_s
        self._pooled: dict[str, _Pooled] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._pooled)

    @contextmanager
    def use(self, address: str) -> Iterator[grpc.aio.Channel]:
        """Hold the channel to `address` for the block, calls included.

        Raises ResourceExhaustedError if all channels that the pool may have are in use.
        """
        pooled = self._pooled.get(address) or self._open(address)
        pooled.users += 1
        try:
            yield pooled.channel
        finally:
            pooled.users -= 1
            pooled.left_at_s = monotonic_s()

    async def close(self) -> None:
        """Close all channels; calls under way are cancelled."""
        for address in tuple(self._pooled):
            self._close_soon(address)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _open(self, address: str) -> _Pooled:
        self._close_idle()
        if len(self._pooled) >= self._channels_max:
            raise ResourceExhaustedError(f"more than {self._channels_max} peers at a time")
        pooled = self._pooled[address] = _Pooled(channel=open_channel(address))
        return pooled

    def _close_idle(self) -> None:
        """Close channels left long ago, and if there is no room, the one left longest."""
        idle = sorted(
            (pooled.left_at_s, address)
            for address, pooled in self._pooled.items()
            if pooled.users == 0
        )
        now_s = monotonic_s()
        for left_at_s, address in idle:
            if now_s - left_at_s >= self._idle_s or len(self._pooled) >= self._channels_max:
                self._close_soon(address)

    def _close_soon(self, address: str) -> None:
        task = asyncio.ensure_future(self._pooled.pop(address).channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
