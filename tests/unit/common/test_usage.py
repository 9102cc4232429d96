"""`--help` says all that a service can be told, from the very class that reads it."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr

from services.common.config import RedisUrl, ServiceConfig
from services.common.lifecycle import EXIT_CONFIG, EXIT_OK, run_service
from services.common.usage import usage
from services.router.config import RouterConfig
from services.scheduler.config import SchedulerConfig
from services.storemgr.config import StoremgrConfig
from services.worker.config import WorkerConfig

CONFIGS = (RouterConfig, SchedulerConfig, WorkerConfig, StoremgrConfig)


class ToyConfig(ServiceConfig):
    service: ClassVar[str] = "toy"
    purpose: ClassVar[str] = "A toy: does nothing."

    size: int = Field(default=4, ge=1, le=8)
    """How large it is."""
    pause_s: float = Field(default=0.5, gt=0.0, le=86_400.0)
    """How long it pauses."""
    redis_url: RedisUrl = SecretStr("redis://toys")
    """Where its friends are."""
    colour: str
    """What it looks like."""


async def never(_config: ServiceConfig) -> None:
    """Be the service that must not begin."""
    pytest.fail("the service began")


@pytest.mark.parametrize(
    "line",
    [
        "usage: python -m services.toy [--help]",
        "A toy: does nothing.",
        "BRISK_TOY_SIZE\n How large it is. Default: 4; 1 to 8.",
        "BRISK_TOY_PAUSE_S\n How long it pauses. Default: 0.5; above 0 to 86400.",
        "BRISK_TOY_REDIS_URL, BRISK_REDIS_URL\n Where its friends are. Default: redis://toys.",
        "BRISK_TOY_COLOUR\n What it looks like. Required.",
        "BRISK_TOY_LOG_FORMAT, BRISK_LOG_FORMAT\n",
        "Default: auto; one of auto, json, text.",
        "Default: true; true or false.",
        "Default: unset.",
    ],
)
def test_a_setting_is_told_with_its_variables_default_and_limits(line: str) -> None:
    assert line in re.sub(r" +", " ", usage(ToyConfig))


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_setting_of_every_service_is_explained(config_class: type[ServiceConfig]) -> None:
    text = usage(config_class)
    assert config_class.purpose in text
    for name, field in config_class.model_fields.items():
        assert f"\n  {config_class.prefix()}{name.upper()}" in text
        assert field.description, name
        assert field.description.split()[0] in text
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_is_printed_and_nothing_is_started(
    capsys: pytest.CaptureFixture[str], argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRISK_TOY_SIZE", "wrong")  # whoever asks may just have been refused
    assert run_service(ToyConfig, never, [argument]) == EXIT_OK
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (usage(ToyConfig), "")


@pytest.mark.parametrize("arguments", [["--port=1"], ["--help", "me"], [""]])
def test_an_unknown_argument_is_refused_by_its_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_service(ToyConfig, never, arguments) == EXIT_CONFIG
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert f"unknown argument {arguments[-1]!r}" in line
    assert "--help" in line
