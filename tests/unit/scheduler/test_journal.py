"""Every decision is one log line that names what it is about; what changes nothing is for debug."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from services.common.errors import UnavailableError
from services.scheduler import journal, metrics
from services.scheduler.events import LoadFailed, Tick, WorkersLearned
from tests.unit.scheduler.dialogue import Dialogue


@pytest.fixture
def lines() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as captured:
        yield captured  # type: ignore[misc] # structlog's own mapping type


def played(*told: str) -> Dialogue:
    dialogue = Dialogue(hear=lambda event, done: journal.write(1, event, done, 0.001))
    for line in told:
        dialogue.answer(line)
    return dialogue


def test_a_decision_is_one_line_with_its_ids(lines: list[dict[str, object]]) -> None:
    played(
        "0.0 learned",
        "0.0 worker w1 cpu:0=100",
        "0.0 put alpha 40",
        "1.0 acquire r1 alpha",
        "1.1 progress i1-1 load 1/2",
    )
    told = [(line["kind"], line["log_level"]) for line in lines]
    assert told == [
        ("WorkersLearned", "info"),
        ("WorkerReported", "debug"),
        ("DeploymentPut", "info"),
        ("AcquireRequested", "info"),
        ("LoadProgressed", "debug"),
    ]
    assert all(line["epoch"] == 1 for line in lines)
    assert lines[1]["worker"] == "w1"
    assert lines[2]["deployment"] == "alpha"
    asked = lines[3]
    assert (asked["request"], asked["deployment"]) == ("r1", "alpha")
    assert asked["actions"] == [
        {"do": "TellProgress", "requests": 1, "phase": "placement"},
        {
            "do": "StartLoad",
            "instance": "i1-1",
            "deployment": "alpha",
            "revision": "1",
            "worker": "w1",
            "device": "cpu:0",
            "memory_bytes": 40,
        },
    ]


def test_each_kind_of_action_is_told(lines: list[dict[str, object]]) -> None:
    played(
        "0.0 learned",
        "0.0 worker w1 cpu:0=100",
        "0.0 put alpha 40",
        "0.0 put beta 90",
        "1.0 acquire r1 alpha",
        "1.0 acquire r2 beta",
        "1.0 loaded i1-1",
        "1.0 release r1",
        "1.1 worker w1 | i1-1 idle 0",
        "1.2 unloaded i1-1",
        "1.3 cancel r2",
        "1.4 acquire r3 nothing",
    )
    told = {action["do"] for line in lines for action in line["actions"]}  # type: ignore[attr-defined] # a list of dicts
    assert told == {
        "TellProgress",
        "StartLoad",
        "CancelLoad",
        "StartUnload",
        "Grant",
        "Refuse",
        "RouteUp",
        "RouteDown",
    }


def test_a_failure_is_told_with_its_reason(lines: list[dict[str, object]]) -> None:
    event = LoadFailed(now_s=0.0, instance_id="i1", error=UnavailableError("it went away"))
    journal.write(1, event, (), 0.0)
    assert (lines[0]["reason"], lines[0]["error"]) == ("UNAVAILABLE", "it went away")


def test_a_tick_without_effect_is_for_debug(lines: list[dict[str, object]]) -> None:
    journal.write(1, Tick(now_s=0.0), (), 0.0)
    journal.write(1, WorkersLearned(now_s=0.0), (), 0.0)
    assert [line["log_level"] for line in lines] == ["debug", "info"]


def test_the_gauges_follow_the_state() -> None:
    dialogue = played(
        "0.0 learned",
        "0.0 worker w1 cpu:0=100",
        "0.0 put alpha 40",
        "0.0 put beta 90",
        "1.0 acquire r1 alpha",
        "1.0 acquire r2 beta",
        "1.0 acquire r3 beta",
    )
    journal.export(dialogue.state)
    assert metrics.QUEUE_LENGTH._value.get() == 1  # noqa: SLF001 - there is no public way
    assert metrics.WAITERS._value.get() == 3  # noqa: SLF001
    assert metrics.WORKERS._value.get() == 1  # noqa: SLF001
    assert metrics.DEPLOYMENTS._value.get() == 2  # noqa: SLF001
    assert metrics.INSTANCES.labels("loading")._value.get() == 1  # noqa: SLF001
