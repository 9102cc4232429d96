"""Settings from the environment, refused as a whole when one is wrong.

A service reads `BRISK_<SERVICE>_<FIELD>`; what all services share may also come as `BRISK_<FIELD>`.
A malformed value and an unknown name are refused alike, naming the variable. Only this module and
`variables` read the environment. A field's docstring is what `--help` says about it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
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
from services.common.names import parse_id, shorten
from services.common.variables import KnownVariables

_PORT_MAX: Final = 65535
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}", re.ASCII)
_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def split_listen(listen: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[v6]:port". Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _PORT_MAX:
        raise ValueError(f"must be host:port with a port of 0 to {_PORT_MAX}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def split_advertise(advertise: str) -> tuple[str, int | None]:
    """Return host and port of "host", "host:port", "[v6]" or "[v6]:port". Raises ValueError."""
    host, port = advertise.removeprefix("[").removesuffix("]"), None
    if not advertise.endswith("]") and (advertise.startswith("[") or advertise.count(":") == 1):
        host, port = split_listen(advertise)
    if not _HOST.fullmatch(host) or host in _WILDCARDS or port == 0:
        raise ValueError("must be a host that others reach us by, or host:port")
    return host, port


def reachable_address(host: str, port: int, advertise: str | None = None) -> str:
    """Return "host:port" as others reach what listens on `host` and `port`.

    All interfaces become what the host's own name stands for, or the name where that is no address
    that another host could use. `advertise` wins over both.
    """
    shown = _own_address(host) if host in _WILDCARDS else host
    if advertise is not None:
        shown, mapped = split_advertise(advertise)
        port = port if mapped is None else mapped
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def _own_address(wildcard: str) -> str:
    """Return our host's address; in a container nobody else may know it by name."""
    name = socket.gethostname()
    family = socket.AF_INET if "." in wildcard else socket.AF_UNSPEC
    try:
        found = socket.getaddrinfo(name, None, family=family, type=socket.SOCK_STREAM)
    except OSError:
        return name
    addresses = (ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found)
    usable = (each for each in addresses if not each.is_loopback and not each.is_link_local)
    return str(next(usable, name))


def _checked_listen(given: str) -> str:
    split_listen(given)
    return given


def _checked_optional_listen(given: str) -> str:
    return _checked_listen(given) if given else given


def _checked_advertise(given: str) -> str:
    split_advertise(given)
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


Advertise = Annotated[str, AfterValidator(_checked_advertise)]
Listen = Annotated[str, AfterValidator(_checked_listen)]
OptionalListen = Annotated[str, AfterValidator(_checked_optional_listen)]  # empty: not at all
RedisUrl = Annotated[SecretStr, AfterValidator(_checked_redis_url)]
NodeId = Annotated[str, AfterValidator(_checked_node_id)]


class ServiceConfig(BaseSettings):
    """What every service can be told. A service subclasses it and sets `service`."""

    model_config = SettingsConfigDict(
        frozen=True,
        enable_decoding=False,  # values are plain text, never JSON; validators parse them
        validate_default=True,
        hide_input_in_errors=True,  # may be a password
        use_attribute_docstrings=True,
    )

    service: ClassVar[str] = "service"
    purpose: ClassVar[str] = ""  # one sentence for `--help`
    shared: ClassVar[frozenset[str]] = frozenset(
        {
            "advertise", "redis_url", "node_id", "log_level", "log_format",
            "reflection", "announce_s", "drain_s", "die_with_parent",
        }
    )  # fmt: skip

    listen: Listen = "127.0.0.1:0"
    """Where it serves gRPC, host:port; port 0 lets the kernel choose."""
    metrics_listen: Listen = "127.0.0.1:0"
    """Where it serves Prometheus' /metrics over HTTP, host:port."""
    advertise: Advertise | None = None
    """What others reach it by: a name or address, with :port if theirs differs from ours. Unset:
    the host it listens on, or for 0.0.0.0 and [::] this host's own address."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis, which all services share."""
    node_id: NodeId = Field(default_factory=socket.gethostname)
    """The machine that it runs on. Unset: the host's name."""
    ready_file: Path | None = None
    """A file to write when it serves, for launchers."""
    log_level: LogLevel = "info"
    """The least important lines that it logs."""
    log_format: LogFormat = "auto"
    """How it logs; auto: text on a terminal, else JSON."""
    reflection: bool = True
    """Whether tools may ask for its gRPC services and messages."""
    announce_s: float = Field(default=0.2, ge=0.0, le=60.0)
    """Seconds between saying NOT_SERVING and closing the port."""
    drain_s: float = Field(default=30.0, ge=0.0, le=3600.0)
    """Seconds that running calls have to finish when it stops."""
    die_with_parent: bool = False
    """Whether it stops when the process that started it ends."""

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
    def upper(fields: Iterable[str]) -> frozenset[str]:
        return frozenset(field.upper() for field in fields)

    KnownVariables(
        own_prefix=config_class.prefix(),
        own_fields=upper(config_class.model_fields),
        shared_fields=upper(config_class.shared),
        common_fields=upper(ServiceConfig.model_fields),
    ).refuse_unknown()


def _problem(config_class: type[ServiceConfig], setting: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    given = os.environ.get(setting)
    if given is None or setting == config_class.setting("redis_url"):
        return message
    return f"{message}. Given: {shorten(given)}"
