"""Ways to decode many sequences with one model on this machine's CPU, each timed token by token.

All of them have the same weights, decode greedily and in one process with one thread. Each copy of
the model keeps the attention that its way wants.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria
from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig

from services.common.errors import BriskError
from services.common.sampling import Sampling
from services.worker.decoder import Decoders
from services.worker.engine import DeviceEngine
from services.worker.ports import Job
from services.worker.sampler import Sampler
from services.worker.text import Continuation, Decoded

PAGE = 32  # of continuous batching
STEP_TOKENS = 512  # likewise: prompts and continuations
KV_TOKENS = 16_384
WAIT_S = 600.0
_NEVER = -1  # an end token that no model says


class WayError(Exception):
    """A way did not decode what it was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Sequences that all come at once."""

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]  # how many to continue each with


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What became of it: the tokens, and when each came, in seconds since the start."""

    tokens: tuple[tuple[int, ...], ...]
    times_s: tuple[tuple[float, ...], ...]

    @property
    def tokens_per_s(self) -> float:
        """Return the rate over all sequences until the last one ended."""
        return sum(map(len, self.tokens)) / max(times[-1] for times in self.times_s)

    @property
    def gaps_ms(self) -> list[float]:
        """Return the time between two tokens of a sequence, for all of them."""
        return [
            (after - before) * 1e3 for times in self.times_s for before, after in pairwise(times)
        ]


class Way(Protocol):
    """One way, made for one model."""

    def run(self, work: Work) -> Timing:
        """Decode it all. Raises WayError."""

    def close(self) -> None:
        """Stop what runs in the background."""


class _Sink:
    """Writes down when tokens come. The engine's thread calls it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times_s: list[float] = []
        self.error: BriskError | None = None
        self.ended = threading.Event()

    def has_room(self) -> bool:
        return True

    def put(self, decoded: Decoded) -> None:
        self.tokens.append(decoded.token_id)
        self.times_s.append(perf_counter())

    def end(self, error: BriskError | None, last: Decoded | None = None) -> None:
        if last is not None:
            self.put(last)
        self.error = error
        self.ended.set()


class Brisk:
    """Brisk's engine. Its prefix cache is off: no way shall profit from the round before."""

    def __init__(self, model: PreTrainedModel, *, exact: bool = False) -> None:
        decoders = Decoders(exact=exact, shares_prefixes=False)
        config = model.config
        kv_bytes = 2 * config.num_hidden_layers * config.hidden_size * 4 * KV_TOKENS
        self._engine = DeviceEngine("cpu:0")
        self._engine.start()
        self._engine.load("i", decoders.make(deepcopy(model), kv_bytes))
        self._runs = 0

    def run(self, work: Work) -> Timing:
        """Give the engine all sequences and wait for the last."""
        self._runs += 1
        sinks = [_Sink() for _ in work.prompts]
        began_s = perf_counter()
        for number, (prompt, tokens) in enumerate(zip(work.prompts, work.tokens, strict=True)):
            self._engine.add(self._job(f"{self._runs}.{number}", prompt, tokens, sinks[number]))
        for sink in sinks:
            if not sink.ended.wait(WAIT_S) or sink.error is not None:
                raise WayError(f"a sequence ended with {sink.error}")
        return Timing(
            tokens=tuple(tuple(sink.tokens) for sink in sinks),
            times_s=tuple(tuple(time - began_s for time in sink.times_s) for sink in sinks),
        )

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.close(WAIT_S)

    def _job(self, ticket: str, prompt: tuple[int, ...], tokens: int, sink: _Sink) -> Job:
        return Job(
            ticket=ticket,
            request_id=ticket,
            instance_id="i",
            prompt=prompt,
            tokens_max=len(prompt) + tokens,
            sampler=Sampler.of(Sampling(temperature=0.0), prompt),
            continuation=Continuation(detokenizer=None, max_tokens=tokens),
            sink=sink,
        )


class _Clock(StoppingCriteria):
    """Notes when `generate` has taken a step; stops nothing."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(
        self, input_ids: torch.Tensor, _scores: torch.Tensor, **_options: object
    ) -> torch.Tensor:
        self.times_s.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generate:
    """`generate` on all prompts, padded on the left, until the longest answer is done."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = deepcopy(model)

    def run(self, work: Work) -> Timing:
        """Generate; a sequence's own tokens count, those beyond its length do not."""
        width = max(map(len, work.prompts))
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in work.prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in work.prompts]
        clock = _Clock()
        began_s = perf_counter()
        output = self._model.generate(  # type: ignore[operator]
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=max(work.tokens),
            do_sample=False,
            stopping_criteria=[clock],
        )
        times = [time - began_s for time in clock.times_s]
        rows = output[:, width:].tolist()
        return Timing(
            tokens=tuple(tuple(row[:n]) for row, n in zip(rows, work.tokens, strict=True)),
            times_s=tuple(tuple(times[:n]) for n in work.tokens),
        )

    def close(self) -> None:
        """Nothing runs."""


class Continuous:
    """transformers' continuous batching, with the cache sized by us: by itself it takes it all."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._manager = deepcopy(model).init_continuous_batching(  # type: ignore[operator]
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False, max_new_tokens=1, eos_token_id=_NEVER, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=KV_TOKENS // PAGE,
                max_batch_tokens=STEP_TOKENS,
                allow_block_sharing=False,
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
            ),
        )
        self._manager.start()

    def run(self, work: Work) -> Timing:
        """Give the manager all sequences and wait for the last."""
        began_s = perf_counter()
        names = [
            self._manager.add_request(
                list(prompt), max_new_tokens=tokens, eos_token_id=_NEVER, record_timestamps=True
            )
            for prompt, tokens in zip(work.prompts, work.tokens, strict=True)
        ]
        found: dict[str, Any] = {}
        while len(found) < len(names):
            output = self._manager.get_result(timeout=WAIT_S)
            if output is None or output.error is not None:
                raise WayError(f"continuous batching: {getattr(output, 'error', 'no answer')}")
            found[output.request_id] = output
        outputs = [found[name] for name in names]
        return Timing(
            tokens=tuple(tuple(output.generated_tokens) for output in outputs),
            times_s=tuple(tuple(at - began_s for at in output.timestamps) for output in outputs),
        )

    def close(self) -> None:
        """End the manager's thread."""
        self._manager.stop(block=True)


def bare_steps_ms(model: PreTrainedModel, work: Work) -> list[float]:
    """Return the times of `forward`, called in a loop with a cache and nothing around it.

    All prompts must be equally long. The first step, which sees them, is left out.
    """
    ids = torch.tensor(work.prompts)
    cache = DynamicCache(config=model.config)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(max(work.tokens)):
            began_s = perf_counter()
            logits = model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            times.append((perf_counter() - began_s) * 1e3)
    return times[1:]


def open_ways(model: PreTrainedModel, stack: ExitStack) -> dict[str, Way]:
    """Return all ways by name; the stack closes them."""
    ways: dict[str, Way] = {
        "Brisk": Brisk(model),
        "Brisk, exact": Brisk(model, exact=True),
        "generate": Generate(model),
        "continuous batching": Continuous(model),
    }
    for way in ways.values():
        stack.callback(way.close)
    return ways
