"""The engine's promises: sequences take turns, one that fails or leaves harms nobody else."""

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from services.common.errors import Reason, UnavailableError
from services.common.sampling import Sampling
from services.worker.engine import DeviceEngine
from services.worker.roster import STEP_TOKENS_FIRST, STEP_TOKENS_MAX
from services.worker.sampler import choose
from tests.unit.worker.doubles import CountingDecoder, ListSink, job

WAIT_S = 10.0


@pytest.fixture
def engine() -> Iterator[DeviceEngine]:
    engine = DeviceEngine("cpu:0")
    engine.start()
    yield engine
    assert engine.close(WAIT_S)


@pytest.fixture
def decoder(engine: DeviceEngine) -> CountingDecoder:
    decoder = CountingDecoder()
    engine.load("i", decoder)
    return decoder


def settled(engine: DeviceEngine) -> None:
    """Return when the engine has obeyed all orders given before."""
    obeyed = threading.Event()
    engine.unload("none", obeyed.set)
    assert obeyed.wait(WAIT_S)


def test_a_sequence_is_shown_its_prompt_once_and_then_each_token(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    sink = ListSink()
    engine.add(job("a", (5, 6, 7), tokens=3, sink=sink))
    assert sink.ended.wait(WAIT_S)
    assert sink.tokens == [8, 9, 10]
    assert decoder.shown == [(5, 6, 7), (8,), (9,)]
    assert sink.error is None


def test_a_long_prompt_is_shown_in_bounded_steps(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    sink = ListSink()
    prompt = tuple(index % 50 for index in range(STEP_TOKENS_FIRST + STEP_TOKENS_MAX + 3))
    engine.add(job("a", prompt, tokens=1, sink=sink))
    assert sink.ended.wait(WAIT_S)
    assert [len(shown) for shown in decoder.shown] == [STEP_TOKENS_FIRST, STEP_TOKENS_MAX, 3]
    assert sink.tokens == [prompt[-1] + 1]


def test_sequences_take_turns_one_step_each(engine: DeviceEngine, decoder: CountingDecoder) -> None:
    decoder.is_gated = True
    sinks = [ListSink() for _ in range(3)]
    for start, sink in enumerate(sinks):
        engine.add(job(f"s{start}", (start * 20,), tokens=4, sink=sink))
    decoder.allowed.release(12)
    for sink in sinks:
        assert sink.ended.wait(WAIT_S)
    by_turn = [shown[0] // 20 for shown in decoder.shown]
    assert by_turn[-9:] == [0, 1, 2] * 3  # the first may have begun before the others came


def test_a_cancelled_sequence_is_freed_within_one_step(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    decoder.is_gated = True
    sink = ListSink()
    open_at_end: list[int] = []
    sink.at_end = lambda: open_at_end.append(decoder.open_strands)
    engine.add(job("a", tokens=1000, sink=sink))
    decoder.allowed.release(3)
    while len(decoder.shown) < 3:
        assert sink.has_token.wait(WAIT_S)
    engine.cancel("a")
    decoder.allowed.release(1)  # the step under way, at most
    assert sink.ended.wait(WAIT_S)
    assert len(decoder.shown) <= 4
    assert open_at_end == [0]  # freed before it was said
    assert sink.ends == 1


def test_cancelling_what_is_not_there_is_fine(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    engine.cancel("nobody")
    sink = ListSink()
    engine.add(job("a", sink=sink))
    assert sink.ended.wait(WAIT_S)
    engine.cancel("a")
    settled(engine)
    assert sink.ends == 1


@pytest.mark.parametrize("way", ["raises", "nan"])
def test_a_failing_sequence_leaves_its_neighbours_alone(
    engine: DeviceEngine, decoder: CountingDecoder, way: str
) -> None:
    setattr(decoder, "fails_after" if way == "raises" else "is_nan_after", 12)
    doomed, healthy = ListSink(), ListSink()
    engine.add(job("doomed", (10,), tokens=9, sink=doomed))
    engine.add(job("healthy", (50,), tokens=9, sink=healthy))
    assert healthy.ended.wait(WAIT_S)
    assert doomed.ended.wait(WAIT_S)
    assert healthy.tokens == list(range(51, 60))
    assert healthy.error is None
    assert doomed.tokens == [11, 12]
    assert doomed.error is not None
    assert doomed.error.reason == Reason.ENGINE_FAILED
    assert "own words" not in doomed.error.message
    assert decoder.open_strands == 0
    after = ListSink()
    engine.add(job("after", sink=after))
    assert after.ended.wait(WAIT_S)
    assert after.error is None


def test_a_client_that_does_not_read_pauses_only_itself(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    slow, quick = ListSink(room=2), ListSink()
    engine.add(job("slow", (10,), tokens=5, sink=slow))
    engine.add(job("quick", (50,), tokens=30, sink=quick))
    assert quick.ended.wait(WAIT_S)
    settled(engine)
    assert slow.tokens == [11, 12]
    assert not slow.ended.is_set()
    slow.room = 100
    engine.wake()
    assert slow.ended.wait(WAIT_S)
    assert slow.tokens == [11, 12, 13, 14, 15]


def test_a_paused_sequence_can_be_cancelled(engine: DeviceEngine, decoder: CountingDecoder) -> None:
    sink = ListSink(room=1)
    engine.add(job("a", sink=sink))
    assert sink.has_token.wait(WAIT_S)
    engine.cancel("a", UnavailableError("gone"))
    assert sink.ended.wait(WAIT_S)
    assert isinstance(sink.error, UnavailableError)
    assert decoder.open_strands == 0


def test_an_unloaded_model_is_freed_before_it_is_said(engine: DeviceEngine) -> None:
    decoder = CountingDecoder()
    gone = weakref.ref(decoder)
    engine.load("i", decoder)
    sink = ListSink()
    engine.add(job("a", tokens=3, sink=sink))
    assert sink.ended.wait(WAIT_S)
    circle: list[object] = [decoder]
    circle.append(circle)  # as modules of a model may
    del decoder, circle
    was_alive: list[bool] = []
    done = threading.Event()

    def on_done() -> None:
        was_alive.append(gone() is not None)
        done.set()

    gc.disable()
    try:
        engine.unload("i", on_done)
        assert done.wait(WAIT_S)
    finally:
        gc.enable()
    assert was_alive == [False]


def test_a_model_is_not_kept_alive_while_the_engine_waits(engine: DeviceEngine) -> None:
    decoder = CountingDecoder()
    gone = weakref.ref(decoder)
    engine.load("i", decoder)
    settled(engine)
    done = threading.Event()
    del decoder
    assert gone() is not None
    engine.unload("i", done.set)
    assert done.wait(WAIT_S)
    assert gone() is None


def test_a_sequence_for_a_model_that_left_is_told_so(engine: DeviceEngine) -> None:
    sink = ListSink()
    engine.add(job("a", instance_id="gone", sink=sink))
    assert sink.ended.wait(WAIT_S)
    assert sink.error is not None
    assert sink.error.reason == Reason.INSTANCE_GONE


def test_unloading_ends_the_sequences_of_that_model_only(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    other = CountingDecoder()
    engine.load("other", other)
    first, second = ListSink(room=1), ListSink(room=1)
    engine.add(job("a", sink=first))
    engine.add(job("b", instance_id="other", sink=second))
    assert first.has_token.wait(WAIT_S)
    assert second.has_token.wait(WAIT_S)
    done = threading.Event()
    engine.unload("i", done.set)
    assert done.wait(WAIT_S)
    assert first.error is not None
    assert first.error.reason == Reason.INSTANCE_GONE
    assert not second.ended.is_set()
    second.room = 100
    engine.wake()
    assert second.ended.wait(WAIT_S)
    assert second.error is None


def test_closing_tells_every_sequence_and_ends_the_thread() -> None:
    engine = DeviceEngine("cpu:0")
    engine.start()
    engine.load("i", CountingDecoder())
    sink = ListSink(room=1)
    engine.add(job("a", sink=sink))
    assert sink.has_token.wait(WAIT_S)
    assert engine.close(WAIT_S)
    assert sink.error is not None
    assert sink.error.reason == Reason.SHUTTING_DOWN


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_tells_whoever_watches() -> None:
    class Broken(ListSink):
        def has_room(self) -> bool:
            raise OSError("not even a sequence's fault")

    engine = DeviceEngine("cpu:0")
    engine.start()
    engine.load("i", CountingDecoder())
    engine.add(job("a", sink=Broken()))
    with pytest.raises(OSError, match="not even"):
        engine.death.result(WAIT_S)
    assert engine.close(WAIT_S)


def test_the_noise_of_a_token_belongs_to_the_number_of_tokens_before_it(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    sampling = Sampling(seed=5, temperature=2.0)
    sink = ListSink()
    engine.add(job("a", (3, 4), tokens=6, sink=sink, sampling=sampling))
    assert sink.ended.wait(WAIT_S)
    last, expected = 4, []
    for position in range(2, 8):
        last = choose(CountingDecoder().follows(last), sampling, position)
        expected.append(last)
    assert sink.tokens == expected


def test_equal_seeds_draw_equally_whatever_the_neighbours(
    engine: DeviceEngine, decoder: CountingDecoder
) -> None:
    sampling = Sampling(seed=5, temperature=2.0)

    def run(*tickets: str) -> list[list[int]]:
        sinks = [ListSink() for _ in tickets]
        for ticket, sink in zip(tickets, sinks, strict=True):
            engine.add(job(ticket, (3,), tokens=20, sink=sink, sampling=sampling))
        for sink in sinks:
            assert sink.ended.wait(WAIT_S)
        return [sink.tokens for sink in sinks]

    (alone,) = run("alone")
    assert run("x", "y", "z") == [alone, alone, alone]
