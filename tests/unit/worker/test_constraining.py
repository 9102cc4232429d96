"""An answer under a constraint is valid whatever the model says; a bad constraint is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from services.common.constraint import Constraint, ConstraintKind
from services.common.errors import InternalError, InvalidArgumentError, Reason
from services.common.sampling import Sampling
from services.worker.constraining import COMPILED_MAX, Constrainer, Guide
from services.worker.sampler import Sampler
from tests.unit.worker.backends import byte_fallback, byte_level, with_end

TOKENIZERS = {"byte-level": with_end(byte_level()), "byte-fallback": with_end(byte_fallback())}
SPARE = 3  # tokens that the model has and its tokenizer has not
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "\u00e9"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema(value: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(value))


def regex(text: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, text=text)


def grammar(text: str) -> Constraint:
    return Constraint(kind=ConstraintKind.GRAMMAR, text=text)


class House:
    """A tokenizer with a constrainer, and a model that says anything."""

    def __init__(self, name: str) -> None:
        self.tokenizer = TOKENIZERS[name]
        self.end = self.tokenizer.eos_token_id
        self.vocabulary = len(self.tokenizer) + SPARE
        ends = {self.end, self.vocabulary - 1}
        self.constrainer = Constrainer(self.tokenizer, vocabulary=self.vocabulary, ends=ends)

    def token(self, name: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(name)
        assert isinstance(found, int)
        return found

    def sampler(
        self, constraint: Constraint, seed: int, delivered: tuple[int, ...] = ()
    ) -> Sampler:
        return Sampler.of(
            Sampling(seed=seed), (), delivered=delivered, guide=self.constrainer.guide(constraint)
        )

    def logits(self, seed: int, position: int) -> np.ndarray:
        random = np.random.default_rng((seed, position))
        logits = random.normal(scale=2.0, size=self.vocabulary).astype(np.float32)
        logits[self.end] += 2.0  # so that answers come to an end
        return logits

    def answer(self, constraint: Constraint, seed: int, tokens_max: int = 400) -> list[int]:
        """Return what a random model says until it ends, the end left out."""
        sampler = self.sampler(constraint, seed)
        tokens: list[int] = []
        for position in range(tokens_max):
            token = sampler.choose(self.logits(seed, position), position).token_id
            if token in (self.end, self.vocabulary - 1):
                return tokens
            tokens.append(token)
        raise AssertionError("the answer does not end")

    def text(self, constraint: Constraint, seed: int) -> str:
        return str(self.tokenizer.decode(self.answer(constraint, seed)))


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def house(request: pytest.FixtureRequest) -> House:
    return House(request.param)


@pytest.mark.parametrize("seed", range(6))
def test_every_answer_is_valid_against_the_schema(house: House, seed: int) -> None:
    answer = json.loads(house.text(schema(SCHEMA), seed))
    assert answer.keys() == {"name", "age", "tags"}
    assert isinstance(answer["name"], str)
    assert len(answer["name"]) <= 6
    assert isinstance(answer["age"], int)
    assert 0 <= answer["age"] <= 150
    assert set(answer["tags"]) <= {"a", "\u00e9"}
    assert len(answer["tags"]) <= 2


@pytest.mark.parametrize("seed", range(4))
def test_every_answer_matches_the_whole_expression(house: House, seed: int) -> None:
    pattern = r"(yes|no|\u20ac[0-9]{1,3})!?"
    assert re.fullmatch(pattern, house.text(regex(pattern), seed))


@pytest.mark.parametrize(
    "text",
    [
        'start: "[" NUMBER ("," NUMBER)* "]"\nNUMBER: /[0-9]{1,4}/',
        'root ::= "[" number ("," number)* "]"\nnumber ::= [0-9] [0-9]? [0-9]?',
    ],
    ids=["lark", "gbnf"],
)
def test_every_answer_is_a_sentence_of_the_grammar(house: House, text: str) -> None:
    for seed in range(3):
        assert all(isinstance(each, int) for each in json.loads(house.text(grammar(text), seed)))


def test_the_answer_may_end_with_any_of_the_models_ends(house: House) -> None:
    guide = house.constrainer.guide(regex("a"))
    logits = np.zeros(house.vocabulary, dtype=np.float32)
    guide.adjust(logits)
    a = house.token("a")
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [a]
    guide.note(a)
    logits = np.zeros(house.vocabulary, dtype=np.float32)
    guide.adjust(logits)
    assert set(np.flatnonzero(np.isfinite(logits))) == {house.end, house.vocabulary - 1}
    guide.note(house.end)  # ends it, and is no token of the grammar's


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_an_answer_taken_up_elsewhere_stays_within_its_constraint(house: House, cut: int) -> None:
    tokens = house.answer(schema(SCHEMA), 11)
    other = House("byte-level" if house.tokenizer is TOKENIZERS["byte-level"] else "byte-fallback")
    resumed = other.sampler(schema(SCHEMA), 11, tuple(tokens[:cut]))
    for position in range(cut, len(tokens)):
        chosen = resumed.choose(other.logits(11, position), position).token_id
        assert chosen == tokens[position]


def test_tokens_delivered_that_break_the_constraint_are_refused(house: House) -> None:
    wrong = tuple(house.tokenizer.encode("b", add_special_tokens=False)[-1:])
    with pytest.raises(InvalidArgumentError) as refused:
        house.sampler(regex("a+"), 0, wrong)
    assert refused.value.reason == Reason.INVALID_CONSTRAINT


def test_a_model_that_can_say_nothing_allowed_fails_its_sequence(house: House) -> None:
    logits = np.full(house.vocabulary, -np.inf, dtype=np.float32)
    logits[house.tokenizer.convert_tokens_to_ids("b")] = 1.0
    with pytest.raises(InternalError, match="no token that the constraint allows"):
        house.sampler(regex("a+"), 0).choose(logits, 0)


def test_a_constraint_is_compiled_once_and_few_are_kept() -> None:
    house = House("byte-level")
    compiled = 0
    compile_one = house.constrainer._compile  # noqa: SLF001 - counts what is costly

    def counting(constraint: Constraint) -> object:
        nonlocal compiled
        compiled += 1
        return compile_one(constraint)

    house.constrainer._compile = counting  # type: ignore[assignment,method-assign]  # noqa: SLF001
    for _ in range(3):
        house.constrainer.guide(regex("a"))
    assert compiled == 1
    for number in range(COMPILED_MAX):
        house.constrainer.guide(regex(f"a{{{number + 1}}}"))
    house.constrainer.guide(regex("a"))
    assert compiled == 2 + COMPILED_MAX


def test_two_sequences_of_one_constraint_do_not_know_of_each_other(house: House) -> None:
    first, second = (house.constrainer.guide(regex("ab")) for _ in range(2))
    first.note(house.token("a"))
    assert allowed(house, first) != allowed(house, second)


def allowed(house: House, guide: Guide) -> list[int]:
    logits = np.zeros(house.vocabulary, dtype=np.float32)
    guide.adjust(logits)
    return np.flatnonzero(np.isfinite(logits)).tolist()


BAD: dict[str, Callable[[], Constraint]] = {
    "no expression": lambda: regex("a(b"),
    "look-around": lambda: regex("(?=a)b"),
    "no grammar": lambda: grammar("start: nowhere"),
    "neither form": lambda: grammar("%%%"),
    "no type": lambda: schema({"type": "strange"}),
    "unknown keyword": lambda: schema({"not": {"type": "string"}}),
    "nowhere to refer to": lambda: schema({"$ref": "#/$defs/nowhere"}),
    "nothing is valid": lambda: schema(False),  # noqa: FBT003
    "too much at once": lambda: grammar("start: " + "|".join(f'"{i}"' for i in range(9000))),
    "too much memory": lambda: regex("a?" * 32_000),
    "refers for ever": lambda: schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "too deep for a stack": lambda: schema(
        {
            "$ref": "#/$defs/0",
            "$defs": {
                str(i): {"properties": {"a": {"$ref": f"#/$defs/{i + 1}"}}} for i in range(900)
            }
            | {"900": {}},
        }
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compiled_is_refused_with_a_reason_of_its_own(name: str) -> None:
    house = House("byte-level")
    with pytest.raises(InvalidArgumentError) as refused:
        house.constrainer.guide(BAD[name]())
    assert refused.value.reason == Reason.INVALID_CONSTRAINT
    assert len(refused.value.message) < 400
    assert refused.value.message.isprintable()
    assert house.text(regex("yes"), 0) == "yes"  # the next one is none the worse
