"""The error tree is what its module says, and each class maps to one gRPC code."""

import grpc
import pytest

from services.common import errors
from services.common.errors import BriskError, ConfigError, NotFoundError, Reason

CLASSES = BriskError.__subclasses__()


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_in_the_docstring_shows_every_class_with_its_code(kind: type[BriskError]) -> None:
    lines = (errors.__doc__ or "").splitlines()
    assert any(kind.__name__ in line and kind.code in line.split() for line in lines)


@pytest.mark.parametrize("kind", CLASSES)
def test_codes_are_grpc_codes_and_the_default_reason_is_the_code(kind: type[BriskError]) -> None:
    assert kind.code in grpc.StatusCode.__members__
    assert kind("message").reason == kind.code == Reason(kind.code)


def test_no_two_classes_share_a_code() -> None:
    assert len({kind.code for kind in CLASSES}) == len(CLASSES) == 10


def test_reasons_are_their_own_names() -> None:
    assert all(reason.name == reason.value for reason in Reason)


def test_an_error_keeps_what_it_was_given() -> None:
    given = {"needed_bytes": "7"}
    error = NotFoundError("gone", reason="A_NEWER_REASON", retry_after_s=2.5, metadata=given)
    given["needed_bytes"] = "8"
    assert str(error) == error.message == "gone"
    assert (error.reason, error.retry_after_s) == ("A_NEWER_REASON", 2.5)
    assert error.metadata == {"needed_bytes": "7"}


def test_a_config_error_names_its_setting() -> None:
    error = ConfigError("BRISK_ROUTER_LISTEN", "port is taken")
    assert (error.setting, str(error)) == (
        "BRISK_ROUTER_LISTEN",
        "BRISK_ROUTER_LISTEN: port is taken",
    )
    assert not isinstance(error, BriskError)
