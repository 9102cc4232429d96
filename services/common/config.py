"""Settings from the environment, refused as a whole when one is wrong.

A service reads `BRISK_<SERVICE>_<FIELD>`; what all services share may also come as `BRISK_<FIELD>`.
A malformed value and an unknown name are refused alike, naming the variable. No other module reads
the environment.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from services.common.errors import BriskError, ConfigError
from services.common.log import LogFormat, LogLevel
from services.common.names import near_matches, parse_id, shorten

_PORT_MAX: Final = 65535
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def split_listen(listen: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[v6]:port". Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _PORT_MAX:
        raise ValueError(f"must be host:port with a port of 0 to {_PORT_MAX}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def reachable_address(host: str, port: int) -> str:
    """Return "host:port" as others reach us: all interfaces become this machine's name."""
    shown = socket.gethostname() if host in _WILDCARDS else host
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def _checked_listen(given: str) -> str:
    split_listen(given)
    return given


def _checked_redis_url(given: SecretStr) -> SecretStr:
    if not given.get_secret_value().startswith(_REDIS_SCHEMES):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return given


def _checked_node_id(given: str) -> str:
    try:
        return parse_id(given, what="node id")
    except BriskError as error:
        raise ValueError(error.message) from error


Listen = Annotated[str, AfterValidator(_checked_listen)]
RedisUrl = Annotated[SecretStr, AfterValidator(_checked_redis_url)]
NodeId = Annotated[str, AfterValidator(_checked_node_id)]


class ServiceConfig(BaseSettings):
    """What every service can be told. A service subclasses it and sets `service`."""

    model_config = SettingsConfigDict(
        frozen=True,
        enable_decoding=False,  # values are plain text, never JSON; validators parse them
        validate_default=True,
        hide_input_in_errors=True,  # may be a password
    )

    service: ClassVar[str] = "service"
    shared: ClassVar[frozenset[str]] = frozenset(
        {
            "redis_url", "node_id", "log_level", "log_format",
            "reflection", "announce_s", "drain_s", "die_with_parent",
        }
    )  # fmt: skip

    listen: Listen = "127.0.0.1:0"  # gRPC; port 0 lets the kernel choose
    metrics_listen: Listen = "127.0.0.1:0"  # Prometheus, HTTP
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    node_id: NodeId = Field(default_factory=socket.gethostname)
    ready_file: Path | None = None  # written when serving, for launchers
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"
    reflection: bool = True
    announce_s: float = Field(default=0.2, ge=0.0, le=60.0)  # NOT_SERVING before the port closes
    drain_s: float = Field(default=30.0, ge=0.0, le=3600.0)
    die_with_parent: bool = False  # SIGTERM to us when the launcher dies

    @classmethod
    def prefix(cls) -> str:
        """Return what this service's own variables start with."""
        return f"BRISK_{cls.service.upper()}_"

    @classmethod
    def setting(cls, field: str) -> str:
        """Return the variable that `field` comes from, or would come from."""
        own, common = cls.prefix() + field.upper(), f"BRISK_{field.upper()}"
        if field in cls.shared and (common in os.environ or field == "redis_url"):
            return own if own in os.environ else common
        return own

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the interface's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read our own variables first, then the shared ones; no files."""
        own = EnvSettingsSource(settings_cls, env_prefix=cls.prefix())
        return init_settings, own, _SharedSource(settings_cls, cls.shared)


class _SharedSource(EnvSettingsSource):
    """`BRISK_<FIELD>`, for the fields that all services share."""

    def __init__(self, settings_cls: type[BaseSettings], shared: frozenset[str]) -> None:
        super().__init__(settings_cls, env_prefix="BRISK_")
        self._shared = shared

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        if field_name not in self._shared:
            return None, field_name, False
        return super().get_field_value(field, field_name)


Config = TypeVar("Config", bound=ServiceConfig)


def load_config(config_class: type[Config]) -> Config:
    """Return the settings found in the environment. Raises ConfigError naming the variable."""
    _refuse_unknown(config_class)
    try:
        return config_class()
    except ValidationError as error:
        worst = error.errors(include_url=False)[0]
        field = str(worst["loc"][0]) if worst["loc"] else ""
        setting = config_class.setting(field) if field else config_class.prefix() + "*"
        raise ConfigError(setting, _problem(config_class, setting, worst["msg"])) from error


def print_config(config: ServiceConfig) -> dict[str, object]:
    """Return the settings for one log line, secrets masked."""
    return config.model_dump(mode="json")


def _refuse_unknown(config_class: type[ServiceConfig]) -> None:
    prefix = config_class.prefix()
    known = {field.upper() for field in config_class.model_fields}
    for name in sorted(os.environ):
        field = name[len(prefix) :]
        if name.upper().startswith(prefix) and name not in {prefix + each for each in known}:
            near = near_matches(field, known, at_most=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(name, f"unknown setting{hint}")


def _problem(config_class: type[ServiceConfig], setting: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    given = os.environ.get(setting)
    if given is None or setting == config_class.setting("redis_url"):
        return message
    return f"{message}. Given: {shorten(given)}"
