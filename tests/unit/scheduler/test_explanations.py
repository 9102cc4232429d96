"""What is kept of a start is found by any of its names, and never grows without bound."""

from services.common.model import Tier
from services.scheduler import explanations
from services.scheduler.actions import Explain
from services.scheduler.choice import Candidate, Choice, Estimate, Way
from services.scheduler.explanations import Explanations
from services.scheduler.first_fit import DeviceKey
from tests.unit.scheduler.dialogue import Dialogue

GRANT = "ask-1." + "0123456789abcdef"  # as a router names the grant for the request ask-1


def explained(*told: str) -> Explanations:
    kept = Explanations()
    dialogue = Dialogue(hear=lambda event, done: kept.note(event.now_s, done))
    for line in told:
        dialogue.answer(line)
    return kept


STARTED = (
    "0.0 learned",
    "0.0 worker w1 cpu:0=100",
    "0.0 worker w2 cpu:0=100",
    "0.0 put alpha 40",
    f"1.0 acquire {GRANT} alpha",
    "6.0 loaded i1-1 load=4.5 init=0.5",
)


def test_a_start_is_found_by_request_grant_instance_and_placement() -> None:
    kept = explained(*STARTED)
    found = kept.find("p1-1")
    assert found is not None
    assert kept.find("ask-1") is found
    assert kept.find("i1-1") is found
    assert kept.find("nothing") is None
    assert found.deployment == "alpha"
    assert list(found.served) == ["ask-1"]
    (choice,) = found.choices
    assert choice.at_s == 1.0
    assert choice.choice.chosen is not None
    assert choice.choice.chosen.device.worker_id == "w1"
    assert len(choice.choice.considered) == 2
    (attempt,) = found.attempts
    assert (attempt.instance_id, attempt.ordered_s, attempt.ended_s) == ("i1-1", 1.0, 6.0)
    assert attempt.report is not None
    assert attempt.expected.estimate.total_ms > 4000


def test_a_failed_load_is_kept_with_its_reason() -> None:
    found = explained(*STARTED[:-1], "2.0 failed i1-1 broken").find("ask-1")
    assert found is not None
    assert [each.reason for each in found.attempts] == ["ENGINE_FAILED"]
    assert found.attempts[0].report is None


def test_a_later_request_is_found_by_the_start_of_its_instance() -> None:
    kept = explained(*STARTED, "7.0 acquire other alpha")
    found = kept.find("other")
    assert found is kept.find("ask-1")
    assert found is not None
    assert not found.served["other"].cold


def test_old_starts_and_names_are_forgotten() -> None:
    kept = Explanations()
    candidate = Candidate(
        Way.FREE, DeviceKey("n", "w", "d"), Tier.SSD, Estimate(0.0, 0.0, 1.0, 1.0)
    )
    for number in range(explanations.PLACEMENTS_MAX + 10):
        told = Explain(
            placement_id=f"p{number}",
            deployment="a",
            request_ids=tuple(f"r{number}-{each}" for each in range(9)),
            choice=Choice(candidate, (candidate,)),
        )
        kept.note(float(number), (told,))
    assert kept.find("p9") is None
    assert kept.find("r9-0") is None
    assert kept.find("p10") is not None
    newest = f"r{explanations.PLACEMENTS_MAX + 9}-8"
    assert kept.find(newest) is not None


def test_of_very_many_decisions_the_first_and_the_newest_stay() -> None:
    kept = Explanations()
    for number in range(100):
        device = DeviceKey("n", f"w{number}", "d")
        candidate = Candidate(Way.WAIT, device, Tier.SSD, Estimate(1.0, 0.0, 1.0, 1.0))
        told = Explain(placement_id="p", deployment="a", request_ids=(), choice=Choice(candidate))
        kept.note(float(number), (told,))
    found = kept.find("p")
    assert found is not None
    times = [each.at_s for each in found.choices]
    assert len(times) == explanations.CHOICES_MAX
    assert (times[0], times[-1]) == (0.0, 99.0)
