"""The worker without the wire: exact books, whatever is loaded, left, cancelled or cut off."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest

from services.common.errors import (
    AbortedError,
    BriskError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import (
    FinishReason,
    ModelRef,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
)
from services.common.names import ModelName
from services.common.placement import InstanceState
from services.common.prompt import Prompt, TextPrompt, TokensPrompt
from services.common.sampling import Sampling
from services.worker.engine import DeviceEngine
from services.worker.instances import Instances
from services.worker.plan import TokenLimits
from services.worker.ports import Loaded, LoadOrder, Started
from services.worker.residency import Ledger
from services.worker.serving import Produced
from tests.unit.worker.doubles import CountingDecoder, until

MEMORY = 1000
MODEL = ModelRef(name=ModelName("m"), revision="0" * 16)
LOADED = Loaded(report=StartReport(cold=True, source=Tier.SSD), bytes_read=600)


class Codec:
    """Encodes to one token per character, when the test lets it."""

    def __init__(self) -> None:
        self.may_encode = threading.Event()
        self.encoded = 0

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        assert isinstance(prompt, TextPrompt)
        assert self.may_encode.wait(10)
        self.encoded += 1
        return (1,) * len(prompt.text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


class Starter:
    """Starts counting models when the test lets it."""

    def __init__(self) -> None:
        self.decoders: list[CountingDecoder] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.has_begun = asyncio.Event()
        self.cleaning_took_turns = 0  # how long giving up takes
        self.cleaned = 0
        self.fails: BriskError | None = None
        self.codec: Codec | None = None

    async def check(self, model: ModelRef) -> None:
        raise AssertionError(model)

    async def start(self, order: LoadOrder, progress: Callable[[StartProgress], None]) -> Started:
        self.has_begun.set()
        progress(StartProgress(phase=StartPhase.LOAD, bytes_done=1, bytes_total=2))
        try:
            await self.may_end.wait()
        finally:
            for _ in range(self.cleaning_took_turns):
                await asyncio.sleep(0)
            self.cleaned += 1
        if self.fails is not None:
            raise self.fails
        decoder = CountingDecoder()
        self.decoders.append(decoder)
        return Started(
            decoder=decoder,
            codec=self.codec,
            limits=TokenLimits(
                vocabulary=100,
                context_tokens_max=50,
                kv_bytes_per_token=4,
                kv_bytes=order.memory_bytes - 600,
            ),
            eos_token_ids=frozenset({99}),
            loaded=LOADED,
        )


class House:
    """A worker with one device of 1000 bytes; an instance takes 800, 200 of them for keys."""

    def __init__(self, executor: ThreadPoolExecutor, engine: DeviceEngine) -> None:
        self.starter = Starter()
        self.engine = engine
        self.ledger = Ledger({"cpu:0": MEMORY})
        self.instances = Instances(
            ledger=self.ledger,
            engines={"cpu:0": engine},
            starter=self.starter,
            text_executor=executor,
            waiting_max=2,
        )

    @property
    def free(self) -> int:
        self.ledger.audit()
        return self.ledger.devices()[0].free_bytes

    def order(self, instance_id: str = "i", memory_bytes: int = 800) -> LoadOrder:
        return LoadOrder(
            instance_id=instance_id,
            deployment="d",
            model=MODEL,
            device_id="cpu:0",
            slots=2,
            context_tokens_max=50,
            memory_bytes=memory_bytes,
        )

    async def load(self, order: LoadOrder | None = None, epoch: int = 1) -> Loaded:
        async with aclosing(self.instances.load(order or self.order(), epoch)) as events:
            seen = [event async for event in events]
        assert isinstance(seen[-1], Loaded)
        return seen[-1]

    def generate(
        self, prompt: tuple[int, ...] = (1,), instance_id: str = "i", **sampling: object
    ) -> AsyncIterator[Produced]:
        chosen = Sampling(temperature=0.0, **sampling)  # type: ignore[arg-type]
        return self.instances.generate(instance_id, "r", TokensPrompt(ids=prompt), chosen)

    async def tokens(self, *args: object, **kwargs: object) -> list[int]:
        stream = self.generate(*args, **kwargs)  # type: ignore[arg-type]
        return [token async for each in stream for token in each.chunk.token_ids]

    async def until_idle(self) -> None:
        serving = self.instances.residents["i"].serving
        assert serving is not None
        await serving.sequences.wait_idle()


async def text_of(stream: AsyncIterator[Produced]) -> tuple[tuple[int, ...], str]:
    """Return the prompt's tokens and the whole text."""
    produced = [each async for each in stream]
    return produced[0].prompt_tokens, "".join(each.chunk.text for each in produced)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    engine = DeviceEngine("cpu:0")
    engine.start()
    with ThreadPoolExecutor(1) as executor:
        house = House(executor, engine)
        yield house
        await house.instances.close()
        for decoder in house.starter.decoders:
            decoder.allowed.release(1_000_000)
        assert await asyncio.to_thread(engine.close, 10)


async def test_a_load_reserves_shows_progress_and_ends_ready(house: House) -> None:
    house.starter.may_end.clear()
    events = house.instances.load(house.order(), 1)
    progress = await anext(events)
    assert isinstance(progress, StartProgress)
    assert progress.bytes_done == 1
    assert house.free == 200
    assert house.ledger.state_of("i") is InstanceState.LOADING
    house.starter.may_end.set()
    assert await anext(events) == LOADED
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert house.ledger.state_of("i") is InstanceState.READY


async def test_loading_what_is_here_answers_at_once(house: House) -> None:
    await house.load()
    assert await house.load() == LOADED
    assert len(house.starter.decoders) == 1
    assert house.free == 200


async def test_loading_what_is_being_loaded_or_leaving_is_refused(house: House) -> None:
    house.starter.may_end.clear()
    first = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    with pytest.raises(FailedPreconditionError) as refused:
        await house.load()
    assert refused.value.reason == Reason.INSTANCE_BUSY
    house.starter.may_end.set()
    await first
    assert house.free == 200


async def test_two_loads_cannot_have_the_same_memory(house: House) -> None:
    house.starter.may_end.clear()
    first = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    with pytest.raises(ResourceExhaustedError) as refused:
        await house.load(house.order("other", 300))
    assert refused.value.metadata == {"needed_bytes": "300", "available_bytes": "200"}
    house.starter.may_end.set()
    await first


async def test_a_failed_load_leaves_nothing(house: House) -> None:
    house.starter.fails = DataLossError("torn")
    with pytest.raises(DataLossError, match="torn"):
        await house.load()
    assert house.free == MEMORY
    assert house.instances.residents == {}
    house.starter.fails = None
    await house.load()


async def test_a_load_whose_caller_leaves_is_undone_before_its_memory_is_free(
    house: House,
) -> None:
    house.starter.may_end.clear()
    house.starter.cleaning_took_turns = 5
    events = house.instances.load(house.order(), 1)
    await anext(events)
    await events.aclose()
    assert house.starter.cleaned == 1
    assert house.free == MEMORY
    assert house.instances.residents == {}


async def test_a_cancelled_call_undoes_its_load(house: House) -> None:
    house.starter.may_end.clear()
    call = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert house.starter.cleaned == 1
    assert house.free == MEMORY


async def test_a_caller_that_leaves_before_it_took_the_answer_undoes_the_load(
    house: House,
) -> None:
    events = house.instances.load(house.order(), 1)
    while not isinstance(await anext(events), Loaded):
        pass
    await events.aclose()
    assert house.free == MEMORY
    assert house.instances.residents == {}


async def test_an_older_leader_can_neither_load_nor_unload(house: House) -> None:
    await house.load(epoch=5)
    for call in (
        house.load(house.order("j", 1), epoch=4),
        house.instances.unload("i", 4, only_if_idle=False),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            await call
        assert refused.value.reason == Reason.STALE_EPOCH
    await house.instances.unload("i", 6, only_if_idle=False)
    with pytest.raises(FailedPreconditionError):
        await house.load(epoch=5)
    assert house.free == MEMORY


async def test_generating_gives_each_token_once_with_the_prompt_first(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    produced: list[Produced] = []
    decoder.allowed.release(1)
    async for each in house.generate((3, 4), max_tokens=5):
        produced.append(each)
        decoder.allowed.release(1)
    assert len(produced) == 5  # nobody lagged
    assert produced[0].prompt_tokens == (3, 4)
    assert all(each.prompt_tokens == () for each in produced[1:])
    index = 0
    tokens: list[int] = []
    for each in produced:
        assert each.chunk.first_index == index
        assert each.chunk.token_ids
        index += len(each.chunk.token_ids)
        tokens += each.chunk.token_ids
    assert tokens == [5, 6, 7, 8, 9]
    assert [each.chunk.finish_reason for each in produced[:-1]] == [None] * (len(produced) - 1)
    last = produced[-1].chunk
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 5)


async def test_the_models_end_token_stops_unless_it_is_to_be_ignored(house: House) -> None:
    await house.load()
    assert await house.tokens((97,), max_tokens=9) == [98, 99]
    assert await house.tokens((97,), max_tokens=4, ignore_eos=True) == [98, 99, 0, 1]
    assert await house.tokens((1,), max_tokens=9, stop_token_ids=(3,)) == [2, 3]


async def test_a_sequence_ends_at_the_context_whatever_was_asked_for(house: House) -> None:
    await house.load()
    assert len(await house.tokens((1,) * 40, max_tokens=10_000)) == 10
    with pytest.raises(InvalidArgumentError) as refused:
        await house.tokens((1,) * 50)
    assert refused.value.reason == Reason.PROMPT_TOO_LONG


async def test_a_sampled_sequence_needs_no_seed_of_its_callers(house: House) -> None:
    await house.load()
    stream = house.instances.generate(
        "i", "r", TokensPrompt(ids=(1,)), Sampling(max_tokens=3, temperature=2.0)
    )
    assert sum([len(each.chunk.token_ids) async for each in stream]) == 3


async def test_text_for_a_model_without_tokenizer_is_refused(house: House) -> None:
    await house.load()
    stream = house.instances.generate("i", "r", TextPrompt(text="Hi"), Sampling())
    with pytest.raises(InvalidArgumentError, match="send tokens"):
        await anext(stream)


async def test_an_instance_that_is_not_here_is_gone(house: House) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        await house.tokens(instance_id="nobody")
    assert refused.value.reason == Reason.INSTANCE_GONE


async def test_a_client_that_leaves_frees_its_place_for_the_next(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    stream = house.generate((1,), max_tokens=49)
    decoder.allowed.release(2)
    assert (await anext(stream)).chunk.token_ids[0] == 2
    await stream.aclose()  # type: ignore[attr-defined]
    decoder.allowed.release(1000)
    await house.until_idle()
    assert len(decoder.shown) <= 4
    assert await house.tokens(max_tokens=2) == [2, 3]
    assert decoder.open_strands == 0


async def test_memory_for_keys_limits_who_runs_and_who_never_can(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    large = asyncio.create_task(house.tokens((1,), max_tokens=44))  # 180 of 200 bytes
    small = asyncio.create_task(house.tokens((1,), max_tokens=9))  # 40 bytes: has to wait
    sequences = house.instances.residents["i"].serving.sequences  # type: ignore[union-attr]
    await until(lambda: sequences.waiting >= 1)
    assert sequences.running == 1
    decoder.allowed.release(1000)
    assert len(await large) == 44
    assert len(await small) == 9
    await house.load(house.order("tight", 100 + 100))
    with pytest.raises(ResourceExhaustedError):
        await house.tokens((1,), "tight", max_tokens=1)


async def test_text_is_encoded_off_the_loop_and_comes_back_as_text(house: House) -> None:
    house.starter.codec = codec = Codec()
    await house.load()
    stream = house.instances.generate(
        "i", "r", TextPrompt(text="hi"), Sampling(temperature=0.0, max_tokens=3)
    )
    text = asyncio.create_task(text_of(stream))
    await asyncio.sleep(0)
    codec.may_encode.set()
    assert await text == ((1, 1), "cde")


async def test_an_instance_that_leaves_while_a_prompt_is_encoded_is_gone(house: House) -> None:
    house.starter.codec = codec = Codec()
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=2))  # so that it cannot go at once
    await until(lambda: house.ledger.state_of("i") is InstanceState.READY and not running.done())
    stream = house.instances.generate("i", "r", TextPrompt(text="hi"), Sampling(max_tokens=3))
    late = asyncio.create_task(text_of(stream))
    await asyncio.sleep(0.01)
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=False))
    await until(lambda: house.ledger.state_of("i") is InstanceState.LEAVING)
    codec.may_encode.set()
    with pytest.raises(FailedPreconditionError) as refused:
        await late
    assert refused.value.reason == Reason.INSTANCE_GONE
    decoder.allowed.release(100)
    await running
    await unload


async def test_a_full_queue_refuses_before_any_work(house: House) -> None:
    house.starter.codec = codec = Codec()
    codec.may_encode.set()
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    calls = [asyncio.create_task(house.tokens(max_tokens=2)) for _ in range(4)]
    sequences = house.instances.residents["i"].serving.sequences  # type: ignore[union-attr]
    await until(lambda: sequences.waiting >= 2)
    with pytest.raises(ResourceExhaustedError) as refused:
        await anext(house.instances.generate("i", "r", TextPrompt(text="hi"), Sampling()))
    assert codec.encoded == 0
    assert refused.value.reason == Reason.QUEUE_FULL
    assert refused.value.retry_after_s is not None
    decoder.allowed.release(1000)
    assert await asyncio.gather(*calls) == [[2, 3]] * 4


async def test_unloading_waits_for_sequences_and_takes_no_new_ones(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=5))
    decoder.allowed.release(1)
    await until(lambda: bool(decoder.shown))
    with pytest.raises(FailedPreconditionError) as busy:
        await house.instances.unload("i", 1, only_if_idle=True)
    assert busy.value.reason == Reason.INSTANCE_BUSY
    assert house.ledger.state_of("i") is InstanceState.READY
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=False))
    await until(lambda: house.ledger.state_of("i") is InstanceState.LEAVING)
    with pytest.raises(FailedPreconditionError) as gone:
        await house.tokens()
    assert gone.value.reason == Reason.INSTANCE_GONE
    with pytest.raises(FailedPreconditionError):
        await house.load()
    assert house.free == 200
    assert not unload.done()
    decoder.allowed.release(1000)
    assert await running == [2, 3, 4, 5, 6]
    await unload
    assert house.free == MEMORY


async def test_memory_is_free_only_once_the_device_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.load()
    held: list[Callable[[], None]] = []
    monkeypatch.setattr(house.engine, "unload", lambda _, done: held.append(done))
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=True))
    await until(lambda: bool(held))
    assert house.free == 200
    assert not unload.done()
    held[0]()
    await unload
    assert house.free == MEMORY


async def test_a_cancelled_unload_goes_on(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=2))
    await until(lambda: house.instances.residents["i"].serving.sequences.running >= 1)  # type: ignore[union-attr]
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=False))
    await until(lambda: house.ledger.state_of("i") is InstanceState.LEAVING)
    unload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unload
    again = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=True))
    decoder.allowed.release(1000)
    await running
    await again
    assert house.free == MEMORY


async def test_unloading_what_is_unknown_is_fine(house: House) -> None:
    await house.instances.unload("nobody", 1, only_if_idle=True)
    await house.load()
    await house.instances.unload("i", 1, only_if_idle=True)
    await house.instances.unload("i", 1, only_if_idle=True)
    assert house.free == MEMORY


async def test_unloading_what_is_being_loaded_gives_the_load_up(house: House) -> None:
    house.starter.may_end.clear()
    load = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    await house.instances.unload("i", 1, only_if_idle=False)
    assert house.free == MEMORY
    with pytest.raises(AbortedError):
        await load


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=3))
    await until(lambda: bool(house.instances.residents["i"].serving.sequences.running))  # type: ignore[union-attr]
    await house.instances.drain(60)
    for call in (house.tokens(), house.load(house.order("j", 1)), house.instances.check(MODEL)):
        with pytest.raises(UnavailableError) as refused:
            await call
        assert refused.value.reason == Reason.SHUTTING_DOWN
    decoder.allowed.release(1000)
    assert await running == [2, 3, 4]


async def test_draining_gives_loads_up(house: House) -> None:
    house.starter.may_end.clear()
    load = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    await house.instances.drain(60)
    with pytest.raises(UnavailableError) as refused:
        await load
    assert refused.value.reason == Reason.SHUTTING_DOWN
    assert house.free == MEMORY


async def test_what_does_not_finish_in_time_is_told_so(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = [asyncio.create_task(house.tokens(max_tokens=3)) for _ in range(3)]
    await until(lambda: house.instances.residents["i"].serving.sequences.waiting >= 1)  # type: ignore[union-attr]
    await house.instances.drain(0.0)
    for each in running:
        with pytest.raises(UnavailableError) as refused:
            await each
        assert refused.value.reason == Reason.SHUTTING_DOWN


async def test_the_leader_is_to_be_told_of_every_change(house: House) -> None:
    changed = house.instances.changed

    async def tells(call: object) -> bool:
        changed.clear()
        await call  # type: ignore[misc]
        return changed.is_set()

    assert await tells(house.load())
    assert await tells(house.tokens(max_tokens=2))
    assert await tells(house.instances.unload("i", 1, only_if_idle=True))
    assert await tells(house.instances.drain(0))
