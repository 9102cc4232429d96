"""A reminder comes once, when it is due, at the earliest time asked for."""

from services.scheduler.timers import Kind, Timers


def drained(timers: Timers, now_s: float) -> list[tuple[Kind, str]]:
    found = []
    while (due := timers.pop_due(now_s)) is not None:
        found.append(due)
    return found


def test_reminders_come_in_order_when_due() -> None:
    timers = Timers()
    timers.push(3.0, Kind.GRANT, "b")
    timers.push(1.0, Kind.UNLOAD, "a")
    timers.push(9.0, Kind.SILENCE, "c")
    assert timers.next_s() == 1.0
    assert drained(timers, 5.0) == [(Kind.UNLOAD, "a"), (Kind.GRANT, "b")]
    assert timers.next_s() == 9.0
    assert drained(timers, 8.9) == []


def test_a_later_reminder_for_the_same_is_not_needed() -> None:
    timers = Timers()
    timers.push(1.0, Kind.GRANT, "a")
    timers.push(2.0, Kind.GRANT, "a")
    assert drained(timers, 5.0) == [(Kind.GRANT, "a")]
    assert timers.next_s() is None


def test_an_earlier_reminder_replaces_the_pending_one() -> None:
    timers = Timers()
    timers.push(2.0, Kind.GRANT, "a")
    timers.push(1.0, Kind.GRANT, "a")
    assert timers.next_s() == 1.0
    assert drained(timers, 1.0) == [(Kind.GRANT, "a")]
    assert timers.next_s() is None
    assert drained(timers, 5.0) == []


def test_an_outdated_reminder_is_skipped_when_it_comes_up() -> None:
    timers = Timers()
    timers.push(2.0, Kind.GRANT, "a")
    timers.push(1.0, Kind.GRANT, "a")
    timers.push(3.0, Kind.GRANT, "b")
    assert drained(timers, 5.0) == [(Kind.GRANT, "a"), (Kind.GRANT, "b")]


def test_what_was_reminded_of_may_be_asked_for_again() -> None:
    timers = Timers()
    timers.push(1.0, Kind.GRANT, "a")
    assert drained(timers, 1.0) == [(Kind.GRANT, "a")]
    timers.push(4.0, Kind.GRANT, "a")
    assert drained(timers, 4.0) == [(Kind.GRANT, "a")]
