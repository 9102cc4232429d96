"""Virtual time goes forward, and equal times keep the order in which they were asked for."""

from sim.agenda import Agenda


def test_what_is_due_happens_in_order_and_the_rest_waits() -> None:
    agenda, seen = Agenda(), list[tuple[float, str]]()

    def note(name: str) -> None:
        seen.append((agenda.now_s, name))

    agenda.at(2.0, note, "late")
    agenda.at(1.0, note, "first")
    agenda.at(1.0, note, "second")
    agenda.at(9.0, note, "never")
    agenda.run(5.0)
    assert seen == [(1.0, "first"), (1.0, "second"), (2.0, "late")]
    assert agenda.now_s == 5.0
    assert agenda.done == 3
    assert len(agenda) == 1


def test_what_happens_may_ask_for_more() -> None:
    agenda, seen = Agenda(), list[float]()

    def again() -> None:
        seen.append(agenda.now_s)
        if len(seen) < 3:
            agenda.later(0.5, again)

    agenda.later(0.5, again)
    agenda.run(10.0)
    assert seen == [0.5, 1.0, 1.5]
