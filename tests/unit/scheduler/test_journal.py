"""Every decision is one log line that names what it is about; what changes nothing is for debug."""

import logging
from collections.abc import Iterator
from typing import Any

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
    told_of: list[dict[str, Any]] = asked["actions"]  # type: ignore[assignment] # as it is
    why, rest = told_of[0], told_of[1:]
    assert (why["do"], why["placement"], why["candidates"]) == ("Explain", "p1-1", 1)
    assert why["chosen"]["device"] == "w1/cpu:0"
    assert why["chosen"]["start_ms"] > 0.0
    assert rest == [
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
        "Explain",
        "Outcome",
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


def test_how_far_off_predictions_were_is_counted_by_phase_and_tier() -> None:
    def count(phase: str) -> float:
        (metric,) = metrics.ESTIMATE_ERROR_SECONDS.labels(phase, "ssd").collect()
        return sum(float(each.value) for each in metric.samples if each.name.endswith("_count"))

    before = [count(phase) for phase in ("transfer", "init", "start")]
    played(
        "0.0 learned",
        "0.0 worker w1 cpu:0=100",
        "0.0 put alpha 40",
        "1.0 acquire r1 alpha",
        "6.0 loaded i1-1 load=9 init=0.25",
    )
    assert [count(phase) for phase in ("transfer", "init", "start")] == [x + 1 for x in before]


def test_at_debug_level_a_line_holds_the_whole_decision(
    lines: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(journal.LOGGER)
    monkeypatch.setattr(logger, "isEnabledFor", lambda _level: True)

    played("0.0 learned", "1.0 acquire r1 nothing")

    assert lines[1]["input"]["request_id"] == "r1"  # type: ignore[index] # a dict
    assert lines[1]["output"][0]["is"] == "Refuse"  # type: ignore[index] # a list
