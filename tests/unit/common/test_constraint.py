"""What cannot be a constraint for any model is refused before a model is started for it."""

import pytest

from services.common.constraint import Constraint, ConstraintKind
from services.common.errors import InvalidArgumentError, Reason
from services.common.sampling import Sampling


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("json_schema", "", "json_schema must have 1 to 65536 bytes. Given: 0"),
        ("regex", "x" * 65_537, "regex must have 1 to 65536 bytes. Given: 65537"),
        ("regex", "\u20ac" * 21_846, "Given: 65538"),
        ("json_schema", "{", "json_schema is not valid JSON"),
        ("json_schema", "[]", "json_schema must be an object, true or false"),
        ("json_schema", '{"a":' * 101 + "1" + "}" * 101, "at most 100 deep. Given: 101"),
        ("regex", "(" * 30_000, "at most 100 deep. Given: 30000"),
        ("grammar", "start: " + "[" * 101, "brackets of grammar must be at most 100 deep"),
    ],
    ids=lambda value: value[:20],
)
def test_a_text_that_can_be_none_is_refused(kind: str, text: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Constraint(kind=ConstraintKind(kind), text=text)
    assert says in refused.value.message
    assert refused.value.reason == Reason.INVALID_CONSTRAINT
    assert refused.value.metadata["parameter"] == kind


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", "{}"),
        ("json_schema", "true"),
        ("json_schema", '{"a":' * 100 + "1" + "}" * 100),
        ("regex", "x" * 65_536),
        ("regex", "()" * 1000),
    ],
    ids=lambda value: value[:20],
)
def test_a_text_within_limits_is_taken(kind: str, text: str) -> None:
    assert Constraint(kind=ConstraintKind(kind), text=text).text == text


def test_a_constraint_decides_where_the_answer_ends() -> None:
    anything = Constraint(kind=ConstraintKind.REGEX, text="a")
    with pytest.raises(InvalidArgumentError, match="ignore_eos must be false with a constraint"):
        Sampling(constraint=anything, ignore_eos=True)
