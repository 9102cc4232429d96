"""A manifest is believed only as far as it was checked, and checked in bounded time and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from brisk_native import InvalidCheckpointError, Manifest, ManifestFile

from tests.unit.native import loaders, manifests
from tests.unit.native.headers import mutations


def test_a_manifest_says_sizes_and_checksums_by_file(
    loader: loaders.Loader, tmp_path: Path
) -> None:
    other = manifests.file_entry(name="\U0001f600 b", size_bytes=0, crc32c=[], kind="support")
    content = manifests.text(files=[manifests.file_entry(), other], name="model")
    path = tmp_path / "brisk.json"
    path.write_bytes(content)
    expected = Manifest(
        version=2,
        form=1,
        files=(
            ManifestFile(name="a", size_bytes=manifests.CHUNK + 1, crc32c=(0, 1)),
            ManifestFile(name="\U0001f600 b", size_bytes=0, crc32c=()),
        ),
    )
    assert loader.parse_manifest(path) == expected
    assert loader.parse_manifest_bytes(content) == expected


def test_a_manifest_of_the_first_version_has_no_form(loader: loaders.Loader) -> None:
    old = {name: value for name, value in manifests.document(version=1).items() if name != "form"}
    found = loader.parse_manifest_bytes(json.dumps(old).encode())
    assert (found.version, found.form) == (1, 0)


@pytest.mark.parametrize("kind", manifests.BROKEN)
def test_a_broken_manifest_is_refused_by_file_and_reason(
    loader: loaders.Loader, tmp_path: Path, kind: str
) -> None:
    content, words = manifests.BROKEN[kind]
    path = tmp_path / "brisk.json"
    path.write_bytes(content)
    with pytest.raises(InvalidCheckpointError) as raised:
        loader.parse_manifest(path)
    assert raised.value.path == str(path)
    assert words in raised.value.reason
    with pytest.raises(InvalidCheckpointError, match="<memory>"):
        loader.parse_manifest_bytes(content)


@pytest.mark.parametrize("value", manifests.UNKNOWN_VALUES)
def test_what_only_the_writer_knows_is_stepped_over(loader: loaders.Loader, value: str) -> None:
    json.loads(value)
    assert loader.parse_manifest_bytes(manifests.with_value(value)).version == 2


def test_a_manifest_at_its_limits_is_accepted(loader: loaders.Loader) -> None:
    names = ["é" * 127 + "x", *(str(n) for n in range(2047))]
    files = [manifests.file_entry(name=name, size_bytes=0, crc32c=[]) for name in names]
    more = {"x" * 256: 0} | {f"x{n}": 0 for n in range(59)}  # 64 members with the four known ones
    assert len(loader.parse_manifest_bytes(manifests.text(files=files, **more)).files) == 2048


def test_a_manifest_of_more_than_64_mib_is_refused_unread(
    loader: loaders.Loader, tmp_path: Path
) -> None:
    path = tmp_path / "brisk.json"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(InvalidCheckpointError, match="67108865 bytes, the limit is 67108864"):
        loader.parse_manifest(path)


def test_a_link_and_an_absent_manifest_are_the_systems_errors(
    loader: loaders.Loader, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        loader.parse_manifest(tmp_path / "absent")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(OSError, match="symbolic link"):
        loader.parse_manifest(tmp_path / "link")


@pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built on this machine")
@pytest.mark.parametrize("seed", range(20))
def test_both_implementations_judge_alike(seed: int) -> None:
    good = manifests.text(
        files=[manifests.file_entry(kind="x"), manifests.file_entry(name="é")],
        x={"y": [1.5e3, "z\n", None, [True]]},
    )
    for content in mutations(good, seed, count=200):
        assert _judged("native", content) == _judged("python", content), content


def _judged(name: str, content: bytes) -> Manifest | str:
    try:
        return loaders.find(name).parse_manifest_bytes(content)
    except InvalidCheckpointError as error:
        return str(error)
