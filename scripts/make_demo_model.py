"""Train the demo's language model from scratch: a tiny Llama that knows licence texts by heart.

The demo needs a real model that is small enough to live in the repository and whose text a reader
can judge at a glance. So this program memorises ten licence texts on purpose, in some minutes on
one core, and saves the result the way any Hugging Face model is saved. `--steps` and `--seed`
decide the result; a run that is interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.configuration_utils import GenerationConfig
from transformers.utils import logging as transformers_logging

from scripts.muon import Optimizer

ROOT = Path(__file__).resolve().parents[1]
LICENCES = ("GPL-1", "GPL-2", "GPL-3", "LGPL-2.1", "LGPL-3", "Apache-2.0", "MPL-2.0",
            "Artistic", "BSD", "CC0-1.0")  # fmt: skip
BEGIN, END = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
VOCABULARY, CONTEXT = 1024, 1024
SAMPLE_PROMPTS = ("You may copy and distribute the Program", "THE SOFTWARE IS PROVIDED", "Hello!")
# Rows and tokens of a batch. Short windows learn fastest; some long ones teach the positions
# beyond them, so that text stays sane up to the model's context.
SHORT, WINDOWS = (8, 96), {3: (3, 256), 7: (2, 512), 15: (1, CONTEXT)}


class CorpusError(Exception):
    """The licence texts cannot be read; the message says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one training run should do."""

    steps: int
    seconds: float
    seed: int
    out: Path
    corpus: Path
    checkpoint_s: float = 30.0


def read_corpus(folder: Path) -> list[str]:
    """Return the licence texts with each paragraph on one line. Raises CorpusError."""
    if not folder.is_dir():
        raise CorpusError(
            f"no folder {folder}: it comes with Debian's package base-files; "
            "elsewhere, pass --corpus with a folder that holds these texts: " + ", ".join(LICENCES)
        )
    missing = [name for name in LICENCES if not (folder / name).is_file()]
    if missing:
        raise CorpusError(f"{folder} lacks {', '.join(missing)}")
    texts = [(folder / name).read_text(encoding="utf-8") for name in LICENCES]
    return ["\n\n".join(_paragraphs(text)) for text in texts]


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if words:
            yield " ".join(words)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, which can spell any text, trained on `texts`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BEGIN, eos_token=END)  # type: ignore[no-untyped-call]


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return all texts as one row of token ids, each opened by its begin token.

    The end token stays out: learnt from ten places only, it would follow whatever is unknown, and
    a demo that answers "Hello" with nothing shows nothing.
    """
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_token_id, *tokenizer.encode(text + "\n\n")]
    return torch.tensor(ids)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the untrained model; equal seeds give equal weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def batch(ids: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """Return the windows of step `step`; they depend on seed and step only."""
    rows, length = WINDOWS.get(step % 16, WINDOWS.get(step % 8, SHORT))
    noise = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(0, max(1, len(ids) - length), (rows,), generator=noise)
    return torch.stack([ids[int(start) : int(start) + length] for start in starts])


class Training:
    """One training run: its model, its optimizer and how far it has come."""

    def __init__(self, plan: Plan, model: LlamaForCausalLM, ids: torch.Tensor) -> None:
        self.plan, self.model, self.ids = plan, model, ids
        self.optimizer = Optimizer(model)
        self.step, self.elapsed_s, self.loss = 0, 0.0, math.nan
        self.checkpoint = plan.out.with_name(plan.out.name + ".training") / "state.safetensors"

    def progress(self) -> float:
        """Return how much of the run is done, from 0 to 1."""
        return min(1.0, max(self.step / self.plan.steps, self.elapsed_s / self.plan.seconds))

    def run(self) -> None:
        """Train until the steps or the seconds are used up, saving the state on the way."""
        self.resume()
        started_s = saved_s = time.monotonic() - self.elapsed_s
        while self.progress() < 1.0:
            rate = min(1.0, (self.step + 1) / 50) * (1 + math.cos(math.pi * self.progress())) / 2
            loss = self.model(input_ids=(x := batch(self.ids, self.step, self.plan.seed)), labels=x)
            loss.loss.backward()
            self.step += 1
            self.optimizer.step(self.step, max(rate, 0.01))
            value = float(loss.loss.detach())
            self.loss = value if math.isnan(self.loss) else 0.97 * self.loss + 0.03 * value
            self.elapsed_s = time.monotonic() - started_s
            report(self)
            if time.monotonic() - saved_s > self.plan.checkpoint_s:
                self.save()
                saved_s = time.monotonic()
        print()

    def facts(self) -> dict[str, str]:
        """Return what a checkpoint must agree on with the run that goes on from it."""
        return {"seed": str(self.plan.seed), "steps": str(self.plan.steps)}

    def save(self) -> None:
        """Write the state so that an interrupted run loses seconds only."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        weights = {f"weight.{name}": w.detach() for name, w in self.optimizer.parameters.items()}
        done = {"step": str(self.step), "elapsed_s": str(self.elapsed_s), "loss": str(self.loss)}
        fresh = self.checkpoint.with_suffix(".tmp")
        save_file(weights | self.optimizer.state, fresh, metadata=self.facts() | done)
        fresh.replace(self.checkpoint)

    @torch.no_grad()
    def resume(self) -> None:
        """Go on from the saved state if there is one of the same seed and steps."""
        if not self.checkpoint.is_file():
            return
        with self.checkpoint.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            facts = json.loads(file.read(size))["__metadata__"]
        if any(facts.get(key) != value for key, value in self.facts().items()):
            return
        state = load_file(self.checkpoint)
        for name, weight in self.optimizer.parameters.items():
            weight.copy_(state.pop(f"weight.{name}"))
        self.optimizer.state = state
        self.step, self.elapsed_s = int(facts["step"]), float(facts["elapsed_s"])
        self.loss = float(facts["loss"])
        print(f"going on from step {self.step}")


def report(training: Training) -> None:
    """Show progress: one living line on a terminal, a line per 100 steps elsewhere."""
    line = f"step {training.step}  {training.progress():4.0%}  loss {training.loss:.3f}"
    line += f"  {training.elapsed_s:.0f} s"
    if sys.stdout.isatty():
        print(f"\r{line}", end="", flush=True)
    elif training.step % 100 == 0:
        print(line, flush=True)


@torch.no_grad()
def continue_text(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int
) -> str:
    """Return the model's greedy continuation of `prompt`."""
    ids = torch.tensor([tokenizer.encode(prompt)])
    end = tokenizer.eos_token_id
    output = model.generate(  # type: ignore[misc]
        ids, max_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=end,
        attention_mask=torch.ones_like(ids),
    )  # fmt: skip
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def save_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, loss: float, steps: int
) -> None:
    """Write the Hugging Face folder `out` whole or not at all, replacing what was there."""
    fresh = out.with_name(out.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(fresh)
    tokenizer.chat_template, tokenizer.model_max_length = CHAT_TEMPLATE, CONTEXT
    tokenizer.save_pretrained(fresh, save_jinja_files=False)
    facts = json.loads((fresh / "tokenizer_config.json").read_text(encoding="utf-8"))
    facts["tokenizer_class"] = "PreTrainedTokenizerFast"  # what older transformers know, too
    (fresh / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")
    (fresh / "model.safetensors").chmod(0o644)
    card = Path(__file__).with_name("demo_model_card.md").read_text(encoding="utf-8")
    parameters = f"{sum(w.numel() for w in model.parameters()) / 1e6:.2f} million"
    card = card.replace("{parameters}", parameters).replace("{loss}", f"{loss:.2f}")
    (fresh / "README.md").write_text(card.replace("{steps}", str(steps)), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


def parse(arguments: list[str]) -> Plan:
    """Turn the command line into a Plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=2000, help="training steps (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop training after this time (never)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of weights and batches (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "models" / "brisk-licence-1.5m", help="(%(default)s)"
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path("/usr/share/common-licenses"), help="(%(default)s)"
    )
    plan = Plan(**vars(parser.parse_args(arguments)))
    if plan.steps < 1 or plan.seconds <= 0:
        parser.error("--steps must be at least 1 and --seconds above 0")
    return plan


def main(arguments: list[str]) -> int:
    """Train and save the model; return the exit status."""
    plan = parse(arguments)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        texts = read_corpus(plan.corpus)
    except CorpusError as error:
        print(f"make_demo_model: {error}", file=sys.stderr)
        return 2
    tokenizer = train_tokenizer(texts)
    ids = encode(tokenizer, texts)
    training = Training(plan, new_model(tokenizer, plan.seed), ids)
    print(f"{len(ids)} tokens, {training.model.num_parameters()} parameters")
    try:
        training.run()
    except KeyboardInterrupt:
        training.save()
        print(f"\nstopped at step {training.step}; run again to go on", file=sys.stderr)
        return 130
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(training.model, tokenizer, plan.out, training.loss, training.step)
    shutil.rmtree(training.checkpoint.parent, ignore_errors=True)
    for prompt in SAMPLE_PROMPTS:
        print(f"\n> {prompt}\n{continue_text(training.model, tokenizer, prompt, 60)}")
    print(f"\nsaved {plan.out}, loss {training.loss:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
