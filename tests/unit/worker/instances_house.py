"""A worker without the wire, on an engine that counts, for the tests of its instances."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from services.common.constraint import Constraint
from services.common.errors import (
    BriskError,
)
from services.common.model import (
    ModelRef,
    StartPhase,
    StartProgress,
    StartReport,
    Tier,
)
from services.common.names import ModelName
from services.common.prompt import Prompt, TextPrompt, TokensPrompt
from services.common.sampling import Sampling
from services.worker.adjustments import Adjustment
from services.worker.engine import DeviceEngine
from services.worker.instances import Instances
from services.worker.plan import TokenLimits
from services.worker.ports import Loaded, LoadOrder, Started
from services.worker.residency import Ledger
from services.worker.serving import Produced
from tests.unit.worker.doubles import CountingDecoder

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

    def piece(self, token_id: int) -> bytes:
        return self.decode((token_id,)).encode()

    def constrain(
        self, constraint: Constraint, *, vocabulary: int, eos_token_ids: frozenset[int]
    ) -> Adjustment:
        raise constraint.refused("this codec constrains nothing")


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
        self.takes: int | None = None  # bytes instead of those ordered
        self.codec: Codec | None = None

    async def check(self, model: ModelRef) -> None:
        raise AssertionError(model)

    async def start(
        self,
        order: LoadOrder,
        progress: Callable[[StartProgress], None],
        resize: Callable[[int], None],
    ) -> Started:
        self.has_begun.set()
        if self.takes is not None:
            resize(self.takes)
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
            grammar_executor=executor,
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
