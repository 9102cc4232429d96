"""A URL that leads out of what it names, or carries a secret, is refused before all reading."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidArgumentError
from services.common.source_names import own_name
from services.storemgr.remotes.locations import (
    HttpLocation,
    HubLocation,
    Location,
    S3Location,
    parse_place,
)


@pytest.mark.parametrize(
    ("url", "place", "text"),
    [
        ("s3://b-1/a/b", S3Location(bucket="b-1", prefix="a/b/", weights=None), "s3://b-1/a/b/"),
        ("s3://bucket", S3Location(bucket="bucket", prefix="", weights=None), "s3://bucket/"),
        (
            "s3://bucket/a/m.safetensors",
            S3Location(bucket="bucket", prefix="a/", weights="m.safetensors"),
            "s3://bucket/a/m.safetensors",
        ),
        (
            "HTTPS://Example.org:8443/m%20x/",
            HttpLocation(
                scheme="https", host="example.org", port=8443, path="/m%20x/", weights=None
            ),
            "https://example.org:8443/m%20x/",
        ),
        (
            "http://[::1]/m",
            HttpLocation(scheme="http", host="::1", port=80, path="/m/", weights=None),
            "http://[::1]/m/",
        ),
        ("hf://gpt2", HubLocation(repository="gpt2", revision=None), "hf://gpt2"),
        (
            "hf://facebook/opt-125m@refs/pr/1",
            HubLocation(repository="facebook/opt-125m", revision="refs/pr/1"),
            "hf://facebook/opt-125m@refs/pr/1",
        ),
    ],
)
def test_a_url_becomes_a_place_and_the_same_url_again(url: str, place: Location, text: str) -> None:
    found = parse_place(url)
    assert found == place
    assert not isinstance(found, Path)
    assert found.text == text
    assert parse_place(text) == place


def test_a_file_url_is_a_folder() -> None:
    assert parse_place("file:///srv/models/a%20b") == Path("/srv/models/a b")
    assert parse_place("file://localhost/srv") == Path("/srv")
    assert parse_place("/srv/models") == Path("/srv/models")


@pytest.mark.parametrize(
    "url",
    [
        "models/tiny",
        "ftp://host/x",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "s3://",
        "s3://a",
        "s3://bucket/../other",
        "s3://bucket/a/%2e%2e/b",
        "s3://bucket/a%2fb",
        "s3://bucket/a%00b",
        "s3://bucket/a\tb",
        "s3://key:secret@bucket/a",
        "s3://bucket/.safetensors",
        "http://user:secret@host/x",
        "http://host/x?token=secret",
        "http://host/x#part",
        "http://host/x?",
        "http:///x",
        "http://host:0/x",
        "http://host:99999/x",
        "http://ho st/x",
        "http://host/é",
        "hf://",
        "hf://a/b/c",
        "hf://../etc",
        "hf://a/..",
        "hf://a/b@",
        "hf://a/b@../../x",
        "hf://a/b@x y",
        "file://elsewhere/srv",
        "file://relative",
        "file:///srv/%00",
    ],
)
def test_what_is_no_sound_place_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        parse_place(url)
    assert refusal.value.reason == "INVALID_SOURCE"
    assert "secret" not in refusal.value.message or "may be secret" in refusal.value.message


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/srv/models/tiny", "tiny"),
        ("/srv/models/tiny/", "tiny"),
        ("/cache/models--facebook--opt-125m/snapshots/0123abcd", "facebook/opt-125m"),
        ("file:///srv/models/ti%6Ey", "tiny"),
        ("s3://bucket/models/tiny/", "tiny"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/models/tiny/model.safetensors", "tiny"),
        ("https://host/models/tiny", "tiny"),
        ("hf://facebook/opt-125m@main", "facebook/opt-125m"),
        ("hf://gpt2", "gpt2"),
    ],
)
def test_a_model_is_called_as_its_source_is(source: str, name: str) -> None:
    assert own_name(source) == name
