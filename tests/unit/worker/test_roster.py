"""A step's promises: everybody gets a turn, the oldest never waits for a younger one's memory."""

import pytest

from services.common.errors import Reason
from services.worker.ports import Job
from services.worker.roster import STEP_TOKENS_FIRST, STEP_TOKENS_MAX, STEP_TOKENS_MIN, Pace, Roster
from tests.unit.worker.doubles import VOCABULARY, CountingDecoder, ListSink, job


class House:
    def __init__(self, decoder: CountingDecoder) -> None:
        self.decoder = decoder
        self.roster = Roster(decoder)
        self.begun = 0

    def begin(self, first: int, *, prompt: int = 1, tokens: int = 5, room: int = 1000) -> ListSink:
        sink = ListSink(room=room)
        ids = tuple((first + index) % VOCABULARY for index in range(prompt))
        self.add(job(f"s{self.begun}", ids, tokens=tokens, sink=sink))
        return sink

    def add(self, job: Job) -> None:
        self.begun += 1
        self.roster.begin(job, self.begun)

    def step(self) -> bool:
        turns = self.roster.plan()
        for each in turns:
            self.roster.run(each)
        return bool(turns)

    def finish(self) -> None:
        while self.step():
            pass


def counted(first: int, tokens: int) -> list[int]:
    return [(first + 1 + index) % VOCABULARY for index in range(tokens)]


def test_all_sequences_share_one_step() -> None:
    house = House(CountingDecoder(shares_max=16))
    sinks = [house.begin(start * 10, tokens=3) for start in range(5)]
    house.finish()
    assert house.decoder.steps == [5, 5, 5]
    for start, sink in enumerate(sinks):
        assert sink.tokens == counted(start * 10, 3)


def test_sequences_join_and_leave_at_any_step() -> None:
    house = House(CountingDecoder(shares_max=16))
    first = house.begin(0, tokens=4)
    house.step()
    second = house.begin(10, tokens=2)
    house.finish()
    assert house.decoder.steps == [1, 2, 2, 1]
    assert (first.tokens, second.tokens) == (counted(0, 4), counted(10, 2))


def test_a_long_prompt_does_not_hold_up_those_who_continue() -> None:
    house = House(CountingDecoder(shares_max=16))
    talker = house.begin(0, tokens=4)
    house.step()
    reader = house.begin(10, prompt=STEP_TOKENS_FIRST * 3, tokens=1)
    house.step()
    house.step()
    assert len(talker.tokens) == 3
    shown = [len(each) for each in house.decoder.shown]
    assert shown[1:4] == [1, STEP_TOKENS_FIRST - 1, 1]
    house.finish()
    assert reader.ended.is_set()


def test_prompts_share_what_a_step_may_show_the_oldest_first() -> None:
    house = House(CountingDecoder(shares_max=16))
    house.begin(0, prompt=STEP_TOKENS_FIRST - 8, tokens=1)
    house.begin(10, prompt=20, tokens=1)
    house.begin(20, prompt=20, tokens=1)
    house.step()
    assert [len(each) for each in house.decoder.shown] == [STEP_TOKENS_FIRST - 8, 8]


def test_no_more_are_shown_together_than_the_decoder_takes() -> None:
    house = House(CountingDecoder(shares_max=2))
    for start in range(5):
        house.begin(start * 10, tokens=1)
    house.finish()
    assert house.decoder.steps == [2, 2, 1]


def test_the_youngest_makes_way_and_no_token_comes_twice_or_is_lost() -> None:
    house = House(CountingDecoder(shares_max=16, room=20))
    old = house.begin(0, prompt=2, tokens=16)
    young = house.begin(40, prompt=2, tokens=16)
    house.finish()
    assert old.tokens == counted(1, 16)
    assert young.tokens == counted(41, 16)
    again = [shown for shown in house.decoder.shown if len(shown) > 2]
    assert len(again) == 1  # it was shown all its tokens once more
    assert again[0][:2] == (40, 41)
    assert again[0][-1] == 40 + len(again[0]) - 1


def test_one_that_made_way_comes_before_those_who_came_later() -> None:
    house = House(CountingDecoder(shares_max=16, room=12))
    house.begin(0, prompt=2, tokens=10)
    second = house.begin(20, prompt=2, tokens=9)
    third = house.begin(40, prompt=9, tokens=2)  # has to wait from the start
    ends: list[str] = []
    second.at_end = lambda: ends.append("second")
    third.at_end = lambda: ends.append("third")
    house.finish()
    assert ends == ["second", "third"]
    assert (second.tokens, third.tokens) == (counted(21, 9), counted(48, 2))


def test_a_reader_that_is_behind_makes_way_and_comes_back_when_it_reads() -> None:
    house = House(CountingDecoder(shares_max=16, room=14))
    old = house.begin(0, prompt=2, tokens=12)
    slow = house.begin(40, prompt=2, tokens=6, room=3)
    house.finish()
    assert old.tokens == counted(1, 12)
    assert slow.tokens == counted(41, 3)
    slow.room = 100
    house.finish()
    assert slow.tokens == counted(41, 6)


def test_one_that_does_not_fit_alone_is_told_so() -> None:
    house = House(CountingDecoder(shares_max=16, room=6))
    sink = house.begin(0, prompt=2, tokens=50)
    house.finish()
    assert sink.error is not None
    assert sink.error.reason == Reason.INSUFFICIENT_MEMORY
    assert sink.tokens == counted(1, 5)
    assert house.decoder.open_strands == 0


@pytest.mark.parametrize("way", ["fails_after", "is_nan_after"])
def test_one_that_fails_is_found_among_its_neighbours(way: str) -> None:
    house = House(CountingDecoder(shares_max=16))
    setattr(house.decoder, way, 22)
    sinks = [house.begin(start, tokens=6) for start in (0, 20, 40)]
    house.finish()
    assert [sink.tokens for sink in sinks] == [counted(0, 6), [21, 22], counted(40, 6)]
    assert sinks[1].error is not None
    assert sinks[1].error.reason == Reason.ENGINE_FAILED
    assert sinks[0].error is sinks[2].error is None
    assert house.decoder.unsound == 1


def test_what_fails_only_together_is_done_one_by_one() -> None:
    house = House(CountingDecoder(shares_max=16))
    house.decoder.fails_together = True
    sinks = [house.begin(start, tokens=3) for start in (0, 20)]
    house.finish()
    assert [sink.tokens for sink in sinks] == [counted(0, 3), counted(20, 3)]
    assert all(sink.error is None for sink in sinks)


def test_one_that_leaves_between_plan_and_step_is_not_shown() -> None:
    house = House(CountingDecoder(shares_max=1))
    sinks = [house.begin(start, tokens=3) for start in (0, 20)]
    first, second = house.roster.plan()
    house.roster.run(first)
    assert house.roster.end("s1", None)
    house.roster.run(second)
    assert house.decoder.shown == [(0,)]
    assert sinks[1].ended.is_set()
    assert not house.roster.end("s1", None)


def test_memory_that_nobody_uses_any_more_but_is_held_is_an_error() -> None:
    house = House(CountingDecoder(shares_max=16))
    assert house.decoder.open((1,), 1) is not None
    house.begin(0, tokens=1)
    with pytest.raises(RuntimeError, match="left open"):
        house.finish()


def test_the_pace_follows_what_the_model_can_do_within_bounds() -> None:
    pace = Pace()
    assert pace.tokens == STEP_TOKENS_FIRST
    pace.note(1, 10.0)  # says nothing about prompts
    assert pace.tokens == STEP_TOKENS_FIRST
    pace.note(100, 0.1)
    assert pace.tokens == 250
    for _ in range(50):
        pace.note(100, 100.0)
    assert pace.tokens == STEP_TOKENS_MIN
    for _ in range(50):
        pace.note(2000, 0.0)
    assert pace.tokens == STEP_TOKENS_MAX
