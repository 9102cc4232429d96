"""Measure how fast many sequences are decoded together, by Brisk and by transformers.

Sequences of unequal length come at once, with the same weights for every way; the ways take turns
in a shuffled order. One thread each, as a worker has by default. Beside the rates: what a step of
Brisk costs over a bare loop around the model, and what exact decoding costs.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from bench.engine_ways import Timing, WayError, Work, bare_steps_ms, open_ways
from bench.processes import leave_on_sigterm
from bench.report import Mark, Report, Series, publish, this_run
from services.common.log import configure_logging

COUNTS, COUNTS_QUICK = (1, 4, 16, 64), (1, 4, 16)
ROUNDS, ROUNDS_QUICK = 5, 1
PEERS = ("generate", "continuous batching")
LOOP_COUNT, LOOP_PROMPT, LOOP_TOKENS = 16, 32, 32
OVERHEAD_MAX = 10.0  # per cent
AHEAD, NOT_BEHIND = 1.0, 0.95  # of several sequences, and of a single one, where noise decides
METHOD = (
    "Random weights, fp32, greedy. Prompts of 16 to 64 tokens and answers of 16 to 48, drawn once "
    "and the same for every way. A rate counts the tokens of the answers from the moment in which "
    "all sequences come to the last token; `generate` pads prompts on the left and goes on until "
    "the longest answer is done. One process, one thread. The bare loop calls `forward` with a "
    "cache for sequences of equal length and takes the likeliest token, nothing else."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to decode with."""

    label: str
    config: PretrainedConfig


LLAMA = Subject(
    label="Llama, 29 M",
    config=LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
)
OPT = Subject(label="OPT-125M", config=OPTConfig())
SUBJECTS = {"llama": LLAMA, "opt": OPT}


@dataclass(slots=True, kw_only=True)
class Results:
    """What was measured of one model."""

    rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    gaps_ms: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    bare_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    unequal: set[str] = field(default_factory=set)  # ways whose tokens were not those of Brisk

    def add(self, way: str, count: int, timing: Timing) -> None:
        """Keep one run's rate, and the median of its gaps."""
        self.rates.setdefault((way, count), []).append(timing.tokens_per_s)
        self.gaps_ms.setdefault((way, count), []).append(statistics.median(timing.gaps_ms))

    def ratio(self, way: str, peer: str, count: int) -> float:
        """Return how many times as fast as its peer a way is, by medians."""
        return statistics.median(self.rates[way, count]) / statistics.median(
            self.rates[peer, count]
        )

    @property
    def overhead_percent(self) -> float:
        """Return what a step takes longer than the bare loop's, of the latter."""
        bare, step = statistics.median(self.bare_ms), statistics.median(self.step_ms)
        return (step / bare - 1) * 100


def work_for(count: int, vocabulary: int) -> Work:
    """Return sequences of unequal length, the same each time."""
    draw = random.Random(count)  # noqa: S311 - the same in every run of this program
    prompts = tuple(
        tuple(draw.randrange(3, vocabulary) for _ in range(draw.randint(16, 64)))
        for _ in range(count)
    )
    return Work(prompts=prompts, tokens=tuple(draw.randint(16, 48) for _ in range(count)))


def equal_work(vocabulary: int) -> Work:
    """Return sequences of equal length, as the bare loop needs them."""
    draw = random.Random(1)  # noqa: S311 - the same in every run of this program
    prompts = tuple(
        tuple(draw.randrange(3, vocabulary) for _ in range(LOOP_PROMPT)) for _ in range(LOOP_COUNT)
    )
    return Work(prompts=prompts, tokens=(LOOP_TOKENS,) * LOOP_COUNT)


def measure(subject: Subject, counts: tuple[int, ...], rounds: int) -> Results:
    """Measure all ways on one model. Raises WayError."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        subject.config, dtype=torch.float32
    )
    model.train(mode=False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    vocabulary = subject.config.vocab_size
    results = Results()
    order = random.Random(1)  # noqa: S311 - the same in every run of this program
    with ExitStack() as stack:
        ways = open_ways(model, stack)
        for way in ways.values():  # what is made lazily, and what is learned of the speed
            way.run(work_for(2, vocabulary))
        for number in range(rounds):
            for count in counts:
                work = work_for(count, vocabulary)
                timings: dict[str, Timing] = {}
                for name in order.sample(list(ways), len(ways)):
                    timings[name] = ways[name].run(work)
                    results.add(name, count, timings[name])
                    rate = timings[name].tokens_per_s
                    print(
                        f"{subject.label} {number + 1}/{rounds} {count} {name}: {rate:.1f} tok/s",
                        file=sys.stderr,
                        flush=True,
                    )
                right = timings["Brisk"].tokens
                results.unequal |= {name for name in ways if timings[name].tokens != right}
            equal = equal_work(vocabulary)
            results.bare_ms += bare_steps_ms(model, equal)
            results.step_ms += ways["Brisk"].run(equal).gaps_ms
    return results


def report(found: dict[str, Results]) -> Report:
    """Return the report on all models."""
    series, marks, notes = [], [], []
    for label, results in found.items():
        for (way, count), values in results.rates.items():
            name = f"{label}, {count} sequences, {way}"
            series.append(Series(label=name, unit="tok/s", values=tuple(values)))
            gaps = tuple(results.gaps_ms[way, count])
            series.append(Series(label=f"{name}, between tokens", unit="ms", values=gaps))
        for name, steps in (("bare loop", results.bare_ms), ("Brisk", results.step_ms)):
            series.append(
                Series(
                    label=f"{label}, step of {LOOP_COUNT}, {name}", unit="ms", values=tuple(steps)
                )
            )
        marks += _marks(label, results)
        costs = ", ".join(
            f"{1 / results.ratio('Brisk, exact', 'Brisk', count):.2f} times the time at {count}"
            for way, count in results.rates
            if way == "Brisk"
        )
        notes.append(f"{label}, exact decoding: {costs} sequences.")
        odd = ", ".join(sorted(results.unequal)) or "no way"
        notes.append(f"{label}: tokens unlike Brisk's in some run came from {odd}.")
    return Report(
        name="engine",
        title="Many sequences decoded together",
        method=METHOD,
        series=tuple(series),
        marks=tuple(marks),
        notes=tuple(notes),
        run=this_run(("torch", "transformers", "numpy"), {}),
    )


def _marks(label: str, results: Results) -> list[Mark]:
    marks = []
    for way, count in results.rates:
        if way == "Brisk":
            for peer in PEERS:
                name = f"{label}, {count} sequences, Brisk's rate over that of {peer}"
                limit = AHEAD if count > 1 else NOT_BEHIND
                ratio = results.ratio("Brisk", peer, count)
                marks.append(Mark(name=name, value=ratio, unit="times", limit=limit, is_floor=True))
    name = f"{label}, {LOOP_COUNT} sequences, a step's time over that of the bare loop's"
    overhead = results.overhead_percent
    marks.append(Mark(name=name, value=overhead, unit="%", limit=OVERHEAD_MAX))
    return marks


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 0 if all marks are met, 1 if one is missed, 2 if nothing ran."""
    parser = argparse.ArgumentParser(
        description="Measure how fast many sequences are decoded together.",
        epilog="A full run takes about an hour on an idle machine and writes docs/benchmarks/.",
    )
    parser.add_argument("--quick", action="store_true", help="the small model once, no page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--runs", type=int, choices=range(1, 101), metavar="N", help="rounds")
    parser.add_argument("--model", choices=SUBJECTS, action="append", help="only this one (all)")
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    configure_logging("bench", level="warning", form="text")
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    chosen = ["llama"] if options.quick else options.model or list(SUBJECTS)
    counts = COUNTS_QUICK if options.quick else COUNTS
    rounds = options.runs or (ROUNDS_QUICK if options.quick else ROUNDS)
    try:
        found = {SUBJECTS[name].label: measure(SUBJECTS[name], counts, rounds) for name in chosen}
    except WayError as error:
        print(f"engine: could not measure: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return publish(report(found), as_json=options.json, document=not options.quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
