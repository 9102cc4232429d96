"""Promise: the demo model can be made again: from a seed, after an interruption, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts import make_demo_model
from scripts.make_demo_model import (
    LICENCES,
    CorpusError,
    Plan,
    Training,
    batch,
    encode,
    new_model,
    read_corpus,
    save_model,
    train_tokenizer,
)
from tests.models import reference_greedy

LICENCE = "You may copy this  text,\nas  it is.\n\n   Nothing is   promised. Clause {number}.\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "licences"
    folder.mkdir()
    for number, name in enumerate(LICENCES):
        (folder / name).write_text(LICENCE.format(number=number) * 40)
    return folder


@pytest.fixture
def plan(tmp_path: Path, corpus: Path) -> Plan:
    return Plan(steps=6, seconds=math.inf, seed=1, out=tmp_path / "model", corpus=corpus)


def training_of(plan: Plan) -> Training:
    texts = read_corpus(plan.corpus)
    tokenizer = train_tokenizer(texts)
    return Training(plan, new_model(tokenizer, plan.seed), encode(tokenizer, texts))


def weights_of(training: Training) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in training.model.parameters()]


def test_paragraphs_come_on_one_line_each(corpus: Path) -> None:
    first = read_corpus(corpus)[0].split("\n\n")
    assert first[:2] == ["You may copy this text, as it is.", first[1]]
    assert first[1].startswith("Nothing is promised. Clause 0.")


def test_a_missing_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no folder .*nowhere.*base-files.*--corpus.*GPL-1"):
        read_corpus(tmp_path / "nowhere")


def test_a_missing_licence_is_named(corpus: Path) -> None:
    (corpus / "BSD").unlink()
    with pytest.raises(CorpusError, match="lacks BSD"):
        read_corpus(corpus)


def test_the_program_exits_with_2_and_one_line_where_the_texts_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "model")]
    assert make_demo_model.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_training_lowers_the_loss_and_repeats_from_its_seed(plan: Plan) -> None:
    first, second = training_of(plan), training_of(plan)
    first.run()
    second.run()
    pairs = zip(weights_of(first), weights_of(second), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    again = batch(first.ids, 0, plan.seed)
    with torch.no_grad():
        after = float(first.model(input_ids=again, labels=again).loss)
        fresh = training_of(plan).model
        before = float(fresh(input_ids=again, labels=again).loss)
    assert after < before - 0.1


def test_an_interrupted_run_goes_on_to_the_same_weights(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training_of(plan)
    whole.run()
    half = training_of(plan)
    half.plan = replace(plan, checkpoint_s=0.0)  # saves after each step
    with monkeypatch.context() as patch:
        patch.setattr(make_demo_model, "report", stop_at_step(4))
        with pytest.raises(KeyboardInterrupt):
            half.run()
    rest = training_of(plan)
    rest.run()
    pairs = zip(weights_of(whole), weights_of(rest), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert whole.loss == pytest.approx(rest.loss)


def stop_at_step(number: int) -> Callable[[Training], None]:
    def report(training: Training) -> None:
        if training.step == number:
            training.save()
            raise KeyboardInterrupt

    return report


def test_a_checkpoint_of_another_seed_is_not_used(plan: Plan) -> None:
    one = training_of(plan)
    one.step = 3
    one.save()
    same, other = training_of(plan), training_of(replace(plan, seed=2))
    same.resume()
    other.resume()
    assert (same.step, other.step) == (3, 0)


def test_the_saved_folder_loads_and_says_what_it_is(plan: Plan) -> None:
    texts = read_corpus(plan.corpus)
    tokenizer = train_tokenizer(texts)
    plan.out.mkdir()
    (plan.out / "stale").write_text("gone after saving")
    save_model(new_model(tokenizer, 1), tokenizer, plan.out, 0.25, 6)
    assert not (plan.out / "stale").exists()
    assert reference_greedy(plan.out, [5, 6], 3, ignore_eos=True)
    loaded = AutoTokenizer.from_pretrained(plan.out)
    messages = [{"role": "user", "content": "You "}, {"role": "assistant", "content": "may"}]
    assert loaded.apply_chat_template(messages, tokenize=False) == "You may"
    assert (loaded.bos_token_id, loaded.eos_token_id) == (0, 1)
    assert AutoModelForCausalLM.from_pretrained(plan.out).config.max_position_embeddings == 1024
    card = (plan.out / "README.md").read_text()
    assert "memorised on purpose" in card
    assert "loss 0.25" in card
    assert "{" not in card
