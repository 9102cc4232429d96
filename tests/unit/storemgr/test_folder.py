"""Only the model's own files are taken, only regular ones, and links only if they end at one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.common.errors import InvalidArgumentError
from services.storemgr import folder as folder_module
from services.storemgr.folder import INDEX, FileKind, read_whole, survey
from services.storemgr.refusal import MalformedError
from tests.broken_models import WEIGHTS, good_folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return good_folder(tmp_path / "good")


def names(folder: Path) -> list[str]:
    return [file.name for file in survey(folder)]


def refusal_of(folder: Path) -> str:
    with pytest.raises(InvalidArgumentError) as refusal:
        survey(folder)
    assert refusal.value.reason == "INVALID_MODEL"
    assert str(folder) not in refusal.value.message
    return refusal.value.message


def test_only_the_model_s_files_are_taken(good: Path) -> None:
    wanted = [
        "added_tokens.json", "chat_template.jinja", "generation_config.json", "merges.txt",
        "special_tokens_map.json", "spiece.model", "vocab.json",
    ]  # fmt: skip
    unwanted = [
        "README.md", ".gitattributes", "brisk.json", "evil.py", "modeling_x.py", "optimizer.pt",
        "pytorch_model.bin", "pytorch_model.bin.index.json", "trainer_state.json", "tf_model.h5",
        "training_args.bin", ".hidden.model", "notes.txt", "adapter_model.safetensors",
    ]  # fmt: skip
    for name in wanted + unwanted:
        (good / name).write_text("{}")
    (good / "onnx").mkdir()
    assert names(good) == sorted(
        [*wanted, "config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
    )


def test_weights_and_others_are_told_apart(good: Path) -> None:
    kinds = {file.name: file.kind for file in survey(good)}
    assert kinds.pop(WEIGHTS) is FileKind.WEIGHTS
    assert set(kinds.values()) == {FileKind.SUPPORT}


def test_a_single_weight_file_may_have_any_name(good: Path) -> None:
    (good / WEIGHTS).rename(good / "tiny.safetensors")
    assert "tiny.safetensors" in names(good)


def test_shards_are_those_that_the_index_names(good: Path) -> None:
    (good / WEIGHTS).rename(good / "one.safetensors")
    (good / "two.safetensors").touch()
    (good / "unnamed.safetensors").touch()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (good / INDEX).write_text(json.dumps(index))
    weights = {name for name in names(good) if ".safetensors" in name}
    assert weights == {"one.safetensors", "two.safetensors", INDEX}


def test_a_folder_without_a_config_is_refused(good: Path) -> None:
    (good / "config.json").unlink()
    assert refusal_of(good) == "config.json is missing"


def test_a_shard_that_the_index_names_and_nobody_has_is_refused(good: Path) -> None:
    (good / WEIGHTS).rename(good / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (good / INDEX).write_text(json.dumps(index))
    assert refusal_of(good) == f"two.safetensors is missing though {INDEX} names it"


def test_several_weight_files_that_nothing_joins_are_refused(good: Path) -> None:
    (good / WEIGHTS).rename(good / "one.safetensors")
    (good / "two.safetensors").touch()
    assert refusal_of(good).startswith("model.safetensors.index.json is missing: 2 weight files")


def test_links_are_followed_as_the_hugging_face_cache_has_them(good: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    for file in good.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    files = survey(snapshot)
    assert [file.name for file in files] == names(good)
    assert all(file.path.parent == good for file in files)


def test_a_link_to_nothing_is_refused(good: Path) -> None:
    (good / "tokenizer.json").unlink()
    (good / "tokenizer.json").symlink_to("gone")
    assert refusal_of(good) == "tokenizer.json vanished, or is a symbolic link to nothing"


def test_a_link_to_itself_is_refused(good: Path) -> None:
    (good / "tokenizer.json").unlink()
    (good / "tokenizer.json").symlink_to("tokenizer.json")
    assert "tokenizer.json is no regular file" in refusal_of(good)


@pytest.mark.parametrize("target", ["/dev/zero", "/"])
def test_a_link_to_a_device_or_folder_is_refused(good: Path, target: str) -> None:
    (good / WEIGHTS).unlink()
    (good / WEIGHTS).symlink_to(target)
    assert refusal_of(good) == "model.safetensors is not a regular file"


def test_a_pipe_is_refused_and_nobody_waits_for_it(good: Path) -> None:
    (good / "tokenizer.json").unlink()
    os.mkfifo(good / "tokenizer.json")
    assert refusal_of(good) == "tokenizer.json is not a regular file"
    with pytest.raises(MalformedError, match="not a regular file"):
        read_whole(good / "tokenizer.json", bytes_max=10)


def test_a_link_put_in_the_place_of_a_file_is_not_followed(good: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(good / "config.json")
    with pytest.raises(OSError, match="symbolic links"):
        read_whole(tmp_path / "link", bytes_max=10_000)


def test_large_files_beside_the_weights_are_refused(good: Path) -> None:
    os.truncate(good / "tokenizer.json", folder_module.SUPPORT_BYTES_MAX + 1)
    assert "tokenizer.json has 67108865 bytes, the limit is 67108864" in refusal_of(good)


def test_many_files_beside_the_weights_are_refused(good: Path) -> None:
    for number in range(folder_module.SUPPORT_FILES_MAX):
        (good / f"template-{number}.jinja").touch()
    assert "has 67 files beside the weights, the limit is 64" in refusal_of(good)


def test_a_folder_of_very_many_entries_is_refused(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "ENTRIES_MAX", 3)
    assert refusal_of(good) == "the folder has more than 3 entries"


def test_names_that_are_not_utf_8_are_passed_over(good: Path) -> None:
    with (Path(os.fsdecode(os.fsencode(good) + b"/\xff.jinja"))).open("w"):
        assert "\udcff.jinja" not in names(good)


def test_reading_stops_at_the_limit(good: Path) -> None:
    assert read_whole(good / "config.json", bytes_max=10_000).startswith(b"{")
    with pytest.raises(MalformedError, match="the limit is 10"):
        read_whole(good / "config.json", bytes_max=10)
