"""The phases of a start add up to the time that the caller waited."""

import pytest

from services.common.model import PhaseDuration, StartPhase, StartReport, Tier
from services.router.start import Milestones, report

SCHEDULERS = StartReport(
    cold=True,
    source=Tier.SSD,
    phases=(
        PhaseDuration(phase=StartPhase.QUEUE, duration_s=0.1),
        PhaseDuration(phase=StartPhase.PLACEMENT, duration_s=0.2),
        PhaseDuration(phase=StartPhase.LOAD, duration_s=0.7),
    ),
)


def test_a_warm_start_has_queue_and_first_token() -> None:
    warm = report(start=None, waited_s=0.25, first_token_s=0.5)
    assert not warm.cold
    assert warm.source is Tier.DEVICE
    assert [(p.phase, p.duration_s) for p in warm.phases] == [
        (StartPhase.QUEUE, 0.25),
        (StartPhase.FIRST_TOKEN, 0.5),
    ]


def test_a_cold_start_keeps_the_schedulers_phases_and_ends_with_the_first_token() -> None:
    cold = report(start=SCHEDULERS, waited_s=1.0, first_token_s=0.5)
    assert cold.cold
    assert cold.source is Tier.SSD
    assert [p.phase for p in cold.phases] == [
        StartPhase.QUEUE,
        StartPhase.PLACEMENT,
        StartPhase.LOAD,
        StartPhase.FIRST_TOKEN,
    ]
    assert sum(p.duration_s for p in cold.phases) == pytest.approx(1.5)


def test_time_that_the_scheduler_did_not_see_was_spent_in_a_queue() -> None:
    cold = report(start=SCHEDULERS, waited_s=1.75, first_token_s=0.25)
    assert cold.phases[0].duration_s == pytest.approx(0.85)
    assert sum(p.duration_s for p in cold.phases) == pytest.approx(2.0)


def test_no_phase_is_negative_when_the_start_had_begun_before_the_request() -> None:
    joined = report(start=SCHEDULERS, waited_s=0.3, first_token_s=0.1)
    assert joined.phases[0].duration_s == pytest.approx(0.1)


def test_an_instance_that_was_ready_after_all_is_a_warm_start() -> None:
    ready = StartReport(cold=False, source=Tier.DEVICE)
    assert not report(start=ready, waited_s=0.1, first_token_s=0.1).cold


def test_a_request_that_waited_for_a_start_stays_cold_when_it_ends_up_elsewhere() -> None:
    milestones = Milestones()
    milestones.seated(SCHEDULERS)
    milestones.seated(None)
    assert milestones.report().cold
