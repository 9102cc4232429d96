"""Each line is one JSON object that carries its request's id, whoever wrote it."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from services.common.log import (
    LogFormat,
    LogLevel,
    bind_request_id,
    bound_request_id,
    configure_logging,
    get_logger,
)
from services.common.names import parse_request_id

log = get_logger("services.demo")  # as modules do: before anything is configured
FIRST, SECOND = parse_request_id("r-1"), parse_request_id("r-2")


class Stderr:
    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def text(self) -> str:
        return self._capture.readouterr().err

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.contextvars.clear_contextvars()
    yield Stderr(capsys)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def set_up(level: LogLevel = "info", form: LogFormat = "auto") -> None:
    configure_logging("demo", level=level, form=form)


def test_an_event_is_one_json_line_that_begins_with_when_and_what(stderr: Stderr) -> None:
    set_up()
    log.info("worker lost", worker="w-1", text="two\nlines")
    (line,) = stderr.lines()
    assert list(line)[:4] == ["timestamp", "level", "service", "message"]
    assert line["message"] == "worker lost"
    assert (line["service"], line["level"], line["logger"]) == ("demo", "info", "services.demo")
    assert (line["worker"], line["text"]) == ("w-1", "two\nlines")


def test_the_request_id_is_in_every_line_libraries_included(stderr: Stderr) -> None:
    set_up()
    bind_request_id(FIRST)
    log.info("ours")
    logging.getLogger("somebody.else").warning("theirs: %d", 7, extra={"data": 1})
    ours, theirs = stderr.lines()
    assert ours["request_id"] == theirs["request_id"] == "r-1"
    assert (theirs["message"], theirs["data"], theirs["service"]) == ("theirs: 7", 1, "demo")


async def test_requests_in_parallel_keep_their_own_ids(stderr: Stderr) -> None:
    set_up()
    both_bound = asyncio.Barrier(2)

    async def request(request_id: Any) -> None:
        bind_request_id(request_id)
        await both_bound.wait()
        await asyncio.create_task(inner())

    async def inner() -> None:
        log.info("deep inside", bound=bound_request_id())

    async with asyncio.TaskGroup() as group:
        group.create_task(request(FIRST))
        group.create_task(request(SECOND))
    lines = stderr.lines()
    assert sorted(line["request_id"] for line in lines) == ["r-1", "r-2"]
    assert all(line["bound"] == line["request_id"] for line in lines)
    assert bound_request_id() is None


def test_a_traceback_stays_within_its_line(stderr: Stderr) -> None:
    set_up()
    try:
        dict[str, int]()["the cause"]
    except KeyError:
        log.exception("call failed")
    (line,) = stderr.lines()
    assert "KeyError: 'the cause'" in line["exception"]
    assert line["level"] == "error"


def test_what_is_below_the_level_is_left_out(stderr: Stderr) -> None:
    set_up(level="warning")
    log.info("quiet")
    log.warning("loud")
    assert [line["message"] for line in stderr.lines()] == ["loud"]


def test_libraries_talk_only_of_trouble_even_when_we_debug(stderr: Stderr) -> None:
    set_up(level="debug")
    log.debug("ours")
    logging.getLogger("grpc._cython").info("theirs")
    assert [line["message"] for line in stderr.lines()] == ["ours"]


def test_what_json_cannot_say_is_still_logged(stderr: Stderr) -> None:
    set_up()
    log.info("odd", value={1, 2}, raw=b"\xff", text="\ud800")
    (line,) = stderr.lines()
    assert line["message"] == "odd"


def test_text_is_for_people(stderr: Stderr) -> None:
    set_up(form="text")
    log.info("worker lost", worker="w-1")
    text = stderr.text()
    assert "worker lost" in text
    assert "worker=w-1" in text
    assert not text.startswith("{")
