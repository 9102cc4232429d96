"""A service starts with exactly the settings it was given, or refuses naming the wrong one."""

import os
import socket
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import BeforeValidator, Field, ValidationError

from services.common.config import (
    ServiceConfig,
    load_config,
    print_config,
    reachable_address,
    split_listen,
)
from services.common.errors import ConfigError


def _split(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(given.split(",")) if isinstance(given, str) else given


class DemoConfig(ServiceConfig):
    service: ClassVar[str] = "demo"
    slots: int = Field(default=4, ge=1, le=8)
    devices: Annotated[tuple[str, ...], BeforeValidator(_split)] = ("cpu:0",)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith("BRISK_"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_defaults_are_loopback_and_kernel_chosen_ports() -> None:
    config = load_config(DemoConfig)
    assert (config.listen, config.metrics_listen) == ("127.0.0.1:0", "127.0.0.1:0")
    assert (config.slots, config.drain_s, config.ready_file) == (4, 30.0, None)


def test_settings_come_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BRISK_DEMO_SLOTS", "7")
    environment.setenv("BRISK_DEMO_READY_FILE", "/run/ready")
    environment.setenv("BRISK_DEMO_REFLECTION", "false")
    environment.setenv("BRISK_DEMO_NODE_ID", "123")  # plain text, never JSON
    environment.setenv("BRISK_DEMO_DEVICES", "cpu:0=2GiB,cpu:1=1GiB")
    config = load_config(DemoConfig)
    assert (config.slots, config.ready_file) == (7, Path("/run/ready"))
    assert config.devices == ("cpu:0=2GiB", "cpu:1=1GiB")
    assert (config.reflection, config.node_id) == (False, "123")


def test_a_shared_setting_reaches_every_service_and_its_own_wins(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("BRISK_LOG_LEVEL", "debug")
    environment.setenv("BRISK_NODE_ID", "node-a")
    environment.setenv("BRISK_DEMO_NODE_ID", "node-b")
    config = load_config(DemoConfig)
    assert (config.log_level, config.node_id) == ("debug", "node-b")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("BRISK_DEMO_SLOTS", "many", "valid integer"),
        ("BRISK_DEMO_SLOTS", "", "valid integer"),
        ("BRISK_DEMO_SLOTS", "9", "less than or equal to 8"),
        ("BRISK_DEMO_DRAIN_S", "-1", "greater than or equal to 0"),
        ("BRISK_DRAIN_S", "nan", "less than or equal to 3600"),
        ("BRISK_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("BRISK_DEMO_LOG_FORMAT", "xml", "'auto', 'json' or 'text'"),
        ("BRISK_DEMO_LISTEN", "7480", "must be host:port"),
        ("BRISK_DEMO_LISTEN", "127.0.0.1:65536", "must be host:port"),
        ("BRISK_DEMO_METRICS_LISTEN", ":80", "must be host:port"),
        ("BRISK_NODE_ID", "a b", "node id must have"),
        ("BRISK_DIE_WITH_PARENT", "perhaps", "valid boolean"),
    ],
)
def test_a_malformed_setting_is_refused_by_its_name_with_the_given_value(
    environment: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_config(DemoConfig)
    assert caught.value.setting == name
    assert problem in caught.value.problem
    assert f"Given: {value!r}" in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("BRISK_DEMO_SLOT", "; did you mean BRISK_DEMO_SLOTS?"),
        ("BRISK_DEMO_", ""),
        ("BRISK_DEMO_ZZZ", ""),
        ("BRISK_DEMO_SLOTS__X", "; did you mean BRISK_DEMO_SLOTS?"),
        ("brisk_demo_slots", "; did you mean BRISK_DEMO_SLOTS?"),
    ],
)
def test_an_unknown_setting_is_refused_by_its_name(
    environment: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    environment.setenv(name, "1")
    with pytest.raises(ConfigError) as caught:
        load_config(DemoConfig)
    assert (caught.value.setting, caught.value.problem) == (name, f"unknown setting{hint}")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("BRISK_REDIS_URLL", "; did you mean BRISK_REDIS_URL?"),
        ("BRISK_WORKR_LISTEN", "; did you mean BRISK_WORKER_LISTEN?"),
        ("BRISK_DEM_SLOTS", "; did you mean BRISK_DEMO_SLOTS?"),
        ("BRISK_LISTEN", "; did you mean BRISK_DEMO_LISTEN?"),  # not shared: whose would it be?
        ("BRISK_ENDPIONT", "; did you mean BRISK_ENDPOINT?"),
        ("brisk_log_level", "; did you mean BRISK_LOG_LEVEL?"),
        ("BRISK_FOO", ""),
        ("BRISK_", ""),
    ],
)
def test_a_variable_that_nobody_reads_is_refused_by_its_name(
    environment: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    environment.setenv(name, "1")
    with pytest.raises(ConfigError) as caught:
        load_config(DemoConfig)
    assert (caught.value.setting, caught.value.problem) == (name, f"unknown setting{hint}")


def test_others_settings_are_none_of_our_business(environment: pytest.MonkeyPatch) -> None:
    for name in (
        "BRISK_ROUTER_ANYTHING",
        "BRISK_STOREMGR_DATA_DIR",
        "BRISK_DATA_DIR",
        "BRISK_ENDPOINT",
        "BRISK_CUDA_DRIVER",
        "BRISK_NATIVE_REQUIRED",
        "BRISKET",
    ):
        environment.setenv(name, "1")
    assert load_config(DemoConfig).slots == 4


@pytest.mark.parametrize("name", ["BRISK_REDIS_URL", "BRISK_DEMO_REDIS_URL"])
def test_a_refused_redis_url_is_named_but_never_shown(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, "http://:hunter2@host")
    with pytest.raises(ConfigError, match="must start with redis://") as caught:
        load_config(DemoConfig)
    assert caught.value.setting == name
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(caught.value.__cause__)


def test_the_password_is_masked_wherever_the_settings_are_shown(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("BRISK_REDIS_URL", "redis://:hunter2@127.0.0.1:6379/0")
    config = load_config(DemoConfig)
    assert "hunter2" not in f"{print_config(config)} {config!r} {config}"
    assert config.redis_url.get_secret_value().count("hunter2") == 1


def test_a_setting_is_named_after_where_it_came_from(environment: pytest.MonkeyPatch) -> None:
    assert DemoConfig.setting("listen") == "BRISK_DEMO_LISTEN"
    assert DemoConfig.setting("redis_url") == "BRISK_REDIS_URL"
    environment.setenv("BRISK_DEMO_REDIS_URL", "redis://x")
    assert DemoConfig.setting("redis_url") == "BRISK_DEMO_REDIS_URL"


def test_settings_do_not_change_while_a_service_runs() -> None:
    with pytest.raises(ValidationError):
        load_config(DemoConfig).slots = 2


def test_addresses_are_split_and_joined_for_both_families() -> None:
    assert split_listen("localhost:80") == ("localhost", 80)
    assert split_listen("[::1]:0") == ("::1", 0)
    assert reachable_address("127.0.0.1", 5) == "127.0.0.1:5"
    assert reachable_address("::1", 5) == "[::1]:5"


Found = list[tuple[object, ...]]


def _host(environment: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make this host node-7, whose name stands for `addresses`."""

    def find(name: str, _port: None, *, family: int, type: int) -> Found:  # noqa: A002 - theirs
        assert (name, type) == ("node-7", socket.SOCK_STREAM)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        v4 = [each for each in addresses if ":" not in each]
        chosen = v4 if family == socket.AF_INET else addresses
        return [(family, type, 0, "", (each, 0)) for each in chosen]

    environment.setattr("socket.gethostname", lambda: "node-7")
    environment.setattr("socket.getaddrinfo", find)


@pytest.mark.parametrize(
    ("wildcard", "addresses", "shown"),
    [
        ("0.0.0.0", ["127.0.1.1", "fd00::5", "10.1.2.3"], "10.1.2.3:5"),  # noqa: S104 - the point
        ("::", ["::1", "fe80::1%eth0", "fd00::5"], "[fd00::5]:5"),
        ("0.0.0.0", ["127.0.1.1"], "node-7:5"),  # noqa: S104 - what others look up may be better
        ("0.0.0.0", [], "node-7:5"),  # noqa: S104
    ],
)
def test_all_interfaces_are_reached_by_the_hosts_own_address_or_else_its_name(
    environment: pytest.MonkeyPatch, wildcard: str, addresses: list[str], shown: str
) -> None:
    _host(environment, *addresses)
    assert reachable_address(wildcard, 5) == shown


@pytest.mark.parametrize(
    ("advertise", "shown"),
    [
        ("worker-3", "worker-3:5"),
        ("worker-3.pods:7000", "worker-3.pods:7000"),
        ("10.0.0.9", "10.0.0.9:5"),
        ("fd00::9", "[fd00::9]:5"),
        ("[fd00::9]", "[fd00::9]:5"),
        ("[fd00::9]:7000", "[fd00::9]:7000"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - never bound
def test_what_is_advertised_wins(
    environment: pytest.MonkeyPatch, host: str, advertise: str, shown: str
) -> None:
    environment.setenv("BRISK_ADVERTISE", advertise)
    assert reachable_address(host, 5, load_config(DemoConfig).advertise) == shown


@pytest.mark.parametrize(
    "advertise",
    ["", "0.0.0.0", "::", "[::]:80", "host:0", "host:", "a b", "http://host", "host:99999"],  # noqa: S104
)
def test_what_nobody_could_reach_is_not_advertised(
    environment: pytest.MonkeyPatch, advertise: str
) -> None:
    environment.setenv("BRISK_DEMO_ADVERTISE", advertise)
    with pytest.raises(ConfigError) as caught:
        load_config(DemoConfig)
    assert caught.value.setting == "BRISK_DEMO_ADVERTISE"
