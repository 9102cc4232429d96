"""The router's settings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.common.config import Listen, ServiceConfig


class RouterConfig(ServiceConfig):
    """`BRISK_ROUTER_<FIELD>`."""

    service: ClassVar[str] = "router"

    listen: Listen = "127.0.0.1:7480"
    requests_max: int = Field(default=1024, ge=1, le=65_536)  # in flight, waiting ones included
    queue_max: int = Field(default=256, ge=1, le=65_536)  # of one model, waiting for slot or start
    moves_max: int = Field(default=3, ge=0, le=16)  # instances that may turn one request away
    silence_s_max: float = Field(default=30.0, gt=0.0, le=3600.0)  # between a stream's messages
    leader_wait_s: float = Field(default=8.0, ge=0.0, le=300.0)  # an election takes up to 7 s
    request_s_default: float = Field(default=600.0, gt=0.0, le=86_400.0)  # if a client sets none
    control_s_default: float = Field(default=3600.0, gt=0.0, le=86_400.0)  # imports take long
