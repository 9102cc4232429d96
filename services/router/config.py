"""The router's settings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.common.config import Listen, OptionalListen, ServiceConfig


class RouterConfig(ServiceConfig):
    """`BRISK_ROUTER_<FIELD>`."""

    service: ClassVar[str] = "router"
    purpose: ClassVar[str] = (
        "The router: takes requests from applications and operators, finds each one an instance\n"
        "of its model, and streams the tokens back."
    )

    listen: Listen = "127.0.0.1:7480"
    """Where it serves gRPC, host:port; port 0 lets the kernel choose."""
    http_listen: OptionalListen = "127.0.0.1:7481"
    """Where it serves OpenAI's HTTP API, host:port; empty turns it off."""
    http_connections_max: int = Field(default=2048, ge=1, le=65_536)
    """HTTP connections open at a time; more are refused."""
    http_body_bytes_max: int = Field(default=2 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """Longest body in bytes of an HTTP request."""
    http_read_s_max: float = Field(default=20.0, gt=0.0, le=3600.0)
    """Seconds within which the head of an HTTP request must arrive, and then its body."""
    requests_max: int = Field(default=1024, ge=1, le=65_536)
    """Requests in flight, waiting ones included; more are refused."""
    queue_max: int = Field(default=256, ge=1, le=65_536)
    """Requests of one model that wait for a slot or a start; more are refused."""
    moves_max: int = Field(default=3, ge=0, le=16)
    """Instances that a request may be turned away from before its first token."""
    silence_s_max: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Longest gap in seconds between two messages of a worker's stream."""
    unread_s_max: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Seconds for which a client may leave what it is sent unread, once all buffers are full."""
    leader_wait_s: float = Field(default=8.0, ge=0.0, le=300.0)
    """Seconds for which a cold request looks for a leader; an election takes about 6."""
    request_s_default: float = Field(default=600.0, gt=0.0, le=86_400.0)
    """Deadline in seconds of a request that brings none."""
    control_s_default: float = Field(default=3600.0, gt=0.0, le=86_400.0)
    """Deadline in seconds of an operator's call that brings none; imports take long."""
