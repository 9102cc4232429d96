"""The connection to a router: channel options, the endpoint, request ids."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

import grpc

from brisk_client.errors import InvalidRequestError

REQUEST_ID_KEY = "x-request-id"

# A peer that hangs is noticed by the ping timeout; without it gRPC takes a minute. BDP probing
# off keeps the window small, so that a slow reader slows the server down instead of filling
# memory. Reconnects are quick because a local router is back within a second.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name: the limit of one attempt
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_PORT_MAX = 65_535
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def parse_endpoint(text: str) -> str:
    """Return `text` if it is "host:port" (or "[v6]:port"); raise InvalidRequestError otherwise."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 0 < int(match.group(1)) <= _PORT_MAX:
        raise InvalidRequestError(
            f"endpoint {text[:80]!r} is not of the form host:port, for example 127.0.0.1:7480",
            reason="INVALID_ENDPOINT",
        )
    return text


def open_channel(endpoint: str) -> grpc.aio.Channel:
    """Return a channel to `endpoint`. Connects with the first call; must run in an event loop."""
    return grpc.aio.insecure_channel(parse_endpoint(endpoint), options=OPTIONS)


def new_request_id() -> str:
    """Return a fresh id for one request."""
    return uuid.uuid4().hex


def parse_request_id(text: str) -> str:
    """Return `text` if it can serve as a request id; raise InvalidRequestError otherwise."""
    if not _REQUEST_ID.fullmatch(text):
        raise InvalidRequestError(
            f"request id {text[:80]!r} is not 1..64 characters of [A-Za-z0-9._-]"
        )
    return text


def metadata(request_id: str) -> Sequence[tuple[str, str]]:
    """Return the metadata that every call carries."""
    return ((REQUEST_ID_KEY, request_id),)
