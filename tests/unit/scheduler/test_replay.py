"""A log is enough to decide again: the same events, read from JSON, give the same actions."""

import json
from pathlib import Path

import pytest

from services.scheduler import actions, events
from services.scheduler.codec import (
    decode,
    decode_event,
    encode,
    encode_actions,
    encode_event,
)
from services.scheduler.estimates import Priors
from services.scheduler.replay import BEGUN, DECIDED, replay
from services.scheduler.state import Limits
from tests.unit.scheduler.cluster import NAMES, Cluster
from tests.unit.scheduler.dialogue import Dialogue, blocks

FOLDER = Path(__file__).parents[2] / "scenarios" / "scheduler"


def begun() -> str:
    return json.dumps(
        {
            "message": BEGUN,
            "epoch": 1,
            "term": 0,
            "now_s": 0.0,
            "limits": encode(Limits()),
            "priors": encode(Priors()),
        }
    )


def line(event: events.Event, done: tuple[actions.Action, ...]) -> str:
    return json.dumps(
        {"message": DECIDED, "input": encode_event(event), "output": encode_actions(done)}
    )


def played(seed: int, steps: int) -> list[str]:
    """Return the log of a random game."""
    cluster = Cluster(seed)
    lines = [begun()]
    cluster.hear = lambda event, done: lines.append(line(event, done))
    for name in NAMES:
        cluster.put(name)
    cluster.add_worker()
    for _ in range(steps):
        cluster.step()
        cluster.run(cluster.now_s + cluster.random.expovariate(2.0))
    return lines


def test_every_event_of_every_dialogue_survives_json() -> None:
    seen: dict[str, events.Event] = {}

    def check(event: events.Event, _done: tuple[actions.Action, ...]) -> None:
        text = json.dumps(encode_event(event), allow_nan=False)
        back = decode_event(json.loads(text))
        assert type(back) is type(event)
        assert encode_event(back) == encode_event(event)
        if not hasattr(event, "error"):  # errors are compared by their fields
            assert back == event
        seen[type(event).__name__] = event

    for path in sorted(FOLDER.glob("*.txt")):
        dialogue = Dialogue(hear=check)
        for _, told, _ in blocks(path.read_text(encoding="utf-8")):
            for each in told:
                dialogue.answer(each)
    assert len(seen) >= 16


def test_limits_and_priors_survive_json() -> None:
    limits, priors = Limits(turn_s=7.5, window=3), Priors(init_s=9.0)
    assert decode(Limits, json.loads(json.dumps(encode(limits)))) == limits
    assert decode(Priors, json.loads(json.dumps(encode(priors)))) == priors


@pytest.mark.parametrize("seed", range(4))
def test_a_games_log_replays_to_the_same_decisions(seed: int) -> None:
    lines = played(seed, steps=80)
    told = replay(["not ours", '{"message": "other"}', *lines, "{}"])
    assert told.difference is None
    assert told.decisions == len(lines) - 1
    assert told.reigns == 1


def test_a_decision_that_comes_out_differently_is_found() -> None:
    lines = played(1, steps=40)
    at = next(n for n, each in enumerate(lines) if "StartLoad" in each)
    lines[at] = lines[at].replace('"device_id": "cpu:', '"device_id": "gpu:')
    told = replay(lines)
    assert told.difference is not None
    assert told.difference.number == at - 1
    assert told.decisions == at - 1


def test_what_was_never_logged_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind"):
        decode_event({"is": "Surprise"})
    with pytest.raises(TypeError):
        encode(object())
