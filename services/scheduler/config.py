"""What a scheduler can be told: `BRISK_SCHEDULER_<FIELD>`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.common.config import ServiceConfig


class SchedulerConfig(ServiceConfig):
    """Settings of one scheduler."""

    service: ClassVar[str] = "scheduler"

    waiters_max: int = Field(default=2048, ge=1, le=100_000)  # requests that wait for an instance
    watchers_max: int = Field(default=1024, ge=1, le=100_000)  # open route watches
    learning_s: float = Field(default=3.0, ge=0.0, le=60.0)  # before "there is no worker"
    load_s_max: float = Field(default=1800.0, gt=0.0, le=86_400.0)  # longest load of a model
