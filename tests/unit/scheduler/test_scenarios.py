"""Each dialogue in tests/scenarios/scheduler promises what the core does in one situation."""

from pathlib import Path

import pytest

from tests.unit.scheduler.dialogue import run

FOLDER = Path(__file__).parents[2] / "scenarios" / "scheduler"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_core_answers_as_written(path: Path) -> None:
    for comments, told, expected, answered in run(path.read_text(encoding="utf-8")):
        assert answered == expected, "\n".join([*comments, *told])


def test_there_are_dialogues() -> None:
    assert len(FILES) >= 16


def test_the_same_events_give_the_same_actions() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert run(text) == run(text)
