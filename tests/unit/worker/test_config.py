"""A worker refuses devices that it does not understand, and knows how much memory it may use."""

import pytest

from services.common.config import load_config
from services.common.errors import ConfigError
from services.common.memory import memory_limit_bytes
from services.worker.config import WorkerConfig, parse_devices


def test_devices_and_budgets_are_read_in_order() -> None:
    assert list(parse_devices("cpu:1=512MiB,cpu:0=2GiB,cpu:2=5").items()) == [
        ("cpu:1", 512 * 2**20),
        ("cpu:0", 2 * 2**30),
        ("cpu:2", 5),
    ]


@pytest.mark.parametrize(
    "devices",
    [
        "",
        "cpu:0",
        "cpu:0=",
        "cpu:0=0",
        "cpu:0=0GiB",
        "cpu:0=1.5GiB",
        "cpu:0=-1GiB",
        "cpu:0=1GB",
        "cpu:0=1gib",
        "cpu=1GiB",
        "gpu:0=1GiB",
        "cpu:x=1GiB",
        "cpu:0=1GiB,",
        "cpu:0=1GiB,cpu:0=2GiB",
        " cpu:0=1GiB",
        "cpu:0=1GiB, cpu:1=1GiB",
        "cpu:\u0661=1GiB",
        ",".join(f"cpu:{index}=1GiB" for index in range(17)),
    ],
)
def test_any_other_text_is_refused_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    monkeypatch.setenv("BRISK_WORKER_DEVICES", devices)
    with pytest.raises(ConfigError) as refused:
        load_config(WorkerConfig)
    assert refused.value.setting == "BRISK_WORKER_DEVICES"


def test_the_default_is_one_device_with_a_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BRISK_WORKER_DEVICES", raising=False)
    budgets = load_config(WorkerConfig).budgets
    assert list(budgets) == ["cpu:0"]
    assert budgets["cpu:0"] == int(memory_limit_bytes() * 0.6)


def test_devices_from_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISK_WORKER_DEVICES", "cpu:0=2GiB,cpu:1=512MiB")
    assert load_config(WorkerConfig).budgets == {"cpu:0": 2**31, "cpu:1": 2**29}
