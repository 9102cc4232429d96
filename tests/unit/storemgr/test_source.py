"""A source is an absolute path and a valid name; anything else is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidArgumentError
from services.storemgr.source import PATH_BYTES_MAX, parse_source


@pytest.mark.parametrize(
    ("path", "given", "name"),
    [
        ("/models/tiny", "", "tiny"),
        ("/models/tiny/", "", "tiny"),
        ("/models/tiny", "org/other", "org/other"),
        ("/cache/models--org--name/snapshots/0a1b2c", "", "org/name"),
        ("/cache/models--gpt2/snapshots/0a1b2c", "", "gpt2"),
        ("/cache/models--org--name/blobs/0a1b2c", "", "0a1b2c"),
    ],
)
def test_a_model_is_called_as_asked_or_as_its_folder(path: str, given: str, name: str) -> None:
    source = parse_source(path, given)
    assert (source.name, source.place) == (name, Path(path))


@pytest.mark.parametrize(
    ("path", "name", "reason", "problem"),
    [
        ("", "", "INVALID_SOURCE", "must be set"),
        ("models/tiny", "", "INVALID_SOURCE", "must be absolute"),
        ("./tiny", "", "INVALID_SOURCE", "must be absolute"),
        ("~/tiny", "", "INVALID_SOURCE", "must be absolute"),
        ("/models/\0tiny", "", "INVALID_SOURCE", "must not contain NUL"),
        ("/" + "x" * PATH_BYTES_MAX, "", "INVALID_SOURCE", "at most 4096 bytes. Given: 4097"),
        ("/", "", "INVALID_NAME", "must not be empty"),
        ("/models/mein modell", "", "INVALID_NAME", "mein modell"),
        ("/models/tiny", "../../etc", "INVALID_NAME", "model name"),
        ("/models/tiny", "a\0b", "INVALID_NAME", "model name"),
        ("/models/tiny", "x" * 10_000, "INVALID_NAME", "at most 96"),
        ("/models/tiny", "tiny\u202e", "INVALID_NAME", "model name"),
        ("/cache/models--a--b--c/snapshots/0", "", "INVALID_NAME", "--"),
    ],
)
def test_a_source_that_is_none_is_refused(path: str, name: str, reason: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        parse_source(path, name)
    assert refusal.value.reason == reason
    assert problem in refusal.value.message
