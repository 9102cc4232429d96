"""A specification is refused with limit and value, or completed from what the model supports."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.common.errors import InvalidArgumentError, Reason
from services.common.model import ModelInfo, ModelRef
from services.common.names import parse_model_name
from services.scheduler.deployment import Deployment, Spec, SpecWish, check_wish, settle
from services.scheduler.starts import unknown

MODEL = ModelInfo(
    ref=ModelRef(name=parse_model_name("tiny"), revision="0011223344556677"),
    architecture="LlamaForCausalLM",
    dtype="F32",
    weight_bytes=1_000_000,
    parameters=250_000,
    context_tokens_max=4096,
    kv_bytes_per_token=64,
)


def deployed(spec: Spec, model: ModelInfo = MODEL) -> Deployment:
    created_at = datetime(2026, 1, 1, tzinfo=UTC)
    return Deployment(name=model.ref.name, model=model, spec=spec, created_at=created_at)


def test_what_is_left_open_gets_the_defaults() -> None:
    assert settle(SpecWish(), MODEL) == Spec(keep_alive_s=300.0, slots=4, context_tokens_max=4096)


def test_what_is_given_is_kept() -> None:
    wish = SpecWish(keep_alive_s=0.0, slots=256, context_tokens_max=1)
    assert settle(wish, MODEL) == Spec(keep_alive_s=0.0, slots=256, context_tokens_max=1)


@pytest.mark.parametrize(
    ("slots", "context", "tokens"),
    [(4, 1024, 4096), (4, 60_000, 60_000), (1, 60_000, 60_000), (32, 60_000, 65_536)],
)
def test_an_instance_has_room_for_one_sequence_of_full_length(
    slots: int, context: int, tokens: int
) -> None:
    model = replace(MODEL, context_tokens_max=context)
    spec = settle(SpecWish(slots=slots), model)
    cache_bytes = deployed(spec, model).device_bytes - model.weight_bytes
    assert cache_bytes == tokens * model.kv_bytes_per_token


def test_a_negative_keep_alive_means_for_ever() -> None:
    assert settle(SpecWish(keep_alive_s=-1.0), MODEL).keep_alive_s is None


def test_a_model_that_states_no_context_gets_a_modest_one() -> None:
    silent = replace(MODEL, context_tokens_max=0)
    assert settle(SpecWish(), silent).context_tokens_max == 2048
    assert settle(SpecWish(context_tokens_max=9000), silent).context_tokens_max == 9000


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (SpecWish(slots=0), "slots must be between 1 and 256. Given: 0"),
        (SpecWish(slots=257), "slots must be between 1 and 256. Given: 257"),
        (SpecWish(context_tokens_max=0), "context_tokens_max must be at least 1. Given: 0"),
        (SpecWish(context_tokens_max=4097), "at most 4096, which tiny supports. Given: 4097"),
        (SpecWish(keep_alive_s=math.nan), "keep_alive must be at most 31536000 s. Given: nan s"),
        (SpecWish(keep_alive_s=math.inf), "Given: inf s"),
        (SpecWish(keep_alive_s=31536001.0), "Given: 3.1536e+07 s"),
    ],
)
def test_a_bad_specification_is_refused_with_limit_and_value(wish: SpecWish, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        settle(wish, MODEL)
    assert words in refusal.value.message
    assert refusal.value.reason == Reason.INVALID_SPEC


def test_what_needs_no_model_is_checked_without_one() -> None:
    check_wish(SpecWish(slots=1, context_tokens_max=10**6, keep_alive_s=5.0))
    with pytest.raises(InvalidArgumentError):
        check_wish(SpecWish(slots=0))


def test_an_instance_takes_weights_and_cache_for_at_most_2048_tokens_a_slot() -> None:
    spec = Spec(keep_alive_s=None, slots=2, context_tokens_max=100)
    assert deployed(spec).device_bytes == 1_000_000 + 2 * 100 * 64
    long = replace(spec, context_tokens_max=4096)
    assert deployed(long).device_bytes == 1_000_000 + 2 * 2048 * 64


def test_only_the_keep_alive_can_change_under_an_instance() -> None:
    spec = Spec(keep_alive_s=None, slots=2, context_tokens_max=100)
    before = deployed(spec)
    assert before.serves_like(deployed(replace(spec, keep_alive_s=1.0)))
    assert not before.serves_like(deployed(replace(spec, slots=3)))
    assert not before.serves_like(deployed(replace(spec, context_tokens_max=99)))
    newer = replace(MODEL, ref=replace(MODEL.ref, revision="ff"))
    assert not before.serves_like(deployed(spec, newer))
    assert not before.serves_like(deployed(spec, replace(MODEL, weight_bytes=7)))


def test_of_very_many_names_only_those_that_begin_alike_are_compared() -> None:
    many = [*(f"other-{n}" for n in range(600)), "llama-small"]
    assert "did you mean llama-small" in unknown("lama-small", many).message
    few = ["xllama-small"]
    assert "did you mean xllama-small" in unknown("llama-small", few).message
    assert "did you mean" not in unknown("llama-small", [*few, *many[:-1]]).message
