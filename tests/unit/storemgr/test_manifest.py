"""brisk.json comes back as it was written, and a revision depends on content alone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.names import ModelName
from services.storemgr.facts import ModelFacts
from services.storemgr.folder import FileKind
from services.storemgr.manifest import (
    CHUNK_BYTES,
    Manifest,
    StoredFile,
    decode_manifest,
    encode_manifest,
    is_revision,
    revision_of,
)
from services.storemgr.refusal import MalformedError

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    dtype="F32",
    weight_bytes=1,
    parameters=2,
    tensors=3,
    context_tokens_max=4,
    kv_bytes_per_token=5,
)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

SIZES = st.integers(0, 3 * CHUNK_BYTES)
CHECKSUMS = st.integers(0, 2**32 - 1)


@st.composite
def stored_files(draw: st.DrawFn) -> tuple[StoredFile, ...]:
    names = draw(st.sets(st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True), max_size=5))
    files = []
    for name in sorted(names):
        size = draw(SIZES)
        chunks = -(-size // CHUNK_BYTES)
        checksums = draw(st.lists(CHECKSUMS, min_size=chunks, max_size=chunks))
        files.append(
            StoredFile(
                name=name,
                kind=draw(st.sampled_from(FileKind)),
                size_bytes=size,
                modified_ns=draw(st.integers(0, 2**62)),
                checksums=tuple(checksums),
            )
        )
    return tuple(files)


def manifest_of(*files: StoredFile) -> Manifest:
    return Manifest(
        name=ModelName("org/name"),
        revision=revision_of(files),
        imported_at=NOON,
        facts=FACTS,
        files=files,
        is_stored_form=True,
    )


FILE = StoredFile(
    name="model.safetensors",
    kind=FileKind.WEIGHTS,
    size_bytes=CHUNK_BYTES + 1,
    modified_ns=7,
    checksums=(1, 2),
)
SUPPORT = replace(FILE, name="config.json", kind=FileKind.SUPPORT, size_bytes=3, checksums=(9,))


@given(stored_files())
def test_what_was_written_is_read_back(files: tuple[StoredFile, ...]) -> None:
    manifest = manifest_of(*files)
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_revision_is_16_hexadecimal_digits() -> None:
    assert is_revision(revision_of([FILE]))
    assert not is_revision("../../../../etc/x")
    assert not is_revision(revision_of([FILE]).upper() + "X")
    assert not is_revision("")


@pytest.mark.parametrize(
    "other",
    [
        replace(FILE, name="other.safetensors"),
        replace(FILE, size_bytes=CHUNK_BYTES + 2),
        replace(FILE, checksums=(1, 3)),
        replace(FILE, checksums=(2, 1)),
    ],
    ids=["name", "size", "checksum", "order of chunks"],
)
def test_other_content_has_another_revision(other: StoredFile) -> None:
    assert revision_of([other]) != revision_of([FILE])


def test_time_and_order_do_not_change_the_revision() -> None:
    touched = replace(FILE, modified_ns=8)
    assert revision_of([SUPPORT, touched]) == revision_of([FILE, SUPPORT])


def test_the_revision_never_changes_between_releases() -> None:
    assert revision_of([FILE, SUPPORT]) == "40a978cff7346524"


def test_facts_come_out_as_the_cluster_s_model_info() -> None:
    manifest = manifest_of(SUPPORT, FILE)
    info = manifest.info
    assert (info.ref.name, info.ref.revision) == ("org/name", manifest.revision)
    assert (info.weight_bytes, info.parameters) == (1, 2)
    assert (info.context_tokens_max, info.kv_bytes_per_token) == (4, 5)
    assert manifest.file_bytes == CHUNK_BYTES + 4
    assert manifest.weights == (FILE,)


def test_times_may_have_any_zone() -> None:
    manifest = manifest_of(FILE)
    text = encode_manifest(manifest).decode().replace("12:00:00+00:00", "13:00:00+01:00")
    assert decode_manifest(text.encode()).imported_at - NOON == timedelta(0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 3}, "has version 3, known are 1 to 2"),
        ({"name": "../x"}, "model name must"),
        ({"name": 1}, "a number as name"),
        ({"revision": "0123456789abcdef"}, "not that of its files"),
        ({"imported_at": "yesterday"}, "no time in imported_at"),
        ({"imported_at": "2026-11-21T12:00:00"}, "a time without zone"),
        ({"model": []}, "a list as model"),
        ({"model": {}}, "null as architecture"),
        ({"files": [1]}, "there must be '{'"),
    ],
)
def test_a_manifest_of_another_make_is_refused(change: dict[str, object], problem: str) -> None:
    document = json.loads(encode_manifest(manifest_of(FILE))) | change
    with pytest.raises(MalformedError) as refusal:
        decode_manifest(json.dumps(document).encode())
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "../x"}, "whose name is none of a file in its folder"),
        ({"name": ".x"}, "a file called '.x'"),
        ({"kind": "code"}, "kind 'code'"),
        ({"size_bytes": 1}, "2 checksums for model.safetensors, 1 bytes"),
        ({"modified_ns": "now"}, "a string as modified_ns"),
    ],
)
def test_a_manifest_with_an_impossible_file_is_refused(
    change: dict[str, object], problem: str
) -> None:
    document = json.loads(encode_manifest(manifest_of(FILE)))
    document["files"][0] |= change
    with pytest.raises(MalformedError) as refusal:
        decode_manifest(json.dumps(document).encode())
    assert problem in str(refusal.value)


def test_two_files_of_one_name_are_refused() -> None:
    document = json.loads(encode_manifest(manifest_of(FILE)))
    document["files"] *= 2
    with pytest.raises(MalformedError, match=r"lists model\.safetensors twice"):
        decode_manifest(json.dumps(document).encode())


def test_files_out_of_order_are_refused() -> None:
    document = json.loads(encode_manifest(manifest_of(SUPPORT, FILE)))
    document["files"].reverse()
    with pytest.raises(MalformedError, match="not in order"):
        decode_manifest(json.dumps(document).encode())
