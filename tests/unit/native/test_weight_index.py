"""An index of shards is believed only as far as its files agree, whatever it claims, in no time.

Both implementations say the same, word for word.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from brisk_native import InvalidCheckpointError
from brisk_native._types import INDEX_BYTES_MAX, INDEX_FILES_MAX, INDEX_TENSORS_MAX

from tests.unit.native import loaders
from tests.unit.native.headers import mutations
from tests.unit.native.loaders import Loader

GOOD: Final = '{"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors"}}'


def with_map(weight_map: object) -> str:
    return json.dumps({"weight_map": weight_map})


def with_metadata(text: str) -> str:
    return GOOD.replace('{"total_size": 8}', text)


# What is wrong, the index, and words of the reason.
BROKEN: dict[str, tuple[str, str]] = {
    "no bytes": ("", "at byte 0: there must be '{'"),
    "no end": (GOOD[:-1], "there must be '}'"),
    "a list": ("[]", "there must be '{'"),
    "two documents": (GOOD + "{}", "there must be nothing more"),
    "nested deep": ("[" * 100_000, "there must be '{'"),
    "metadata nested deep": (with_metadata("[" * 100_000), "nested deeper than 8"),
    "metadata without end": (with_metadata("[" + "0," * 300_000 + "0]"), "262144 values of no use"),
    "not UTF-8": (with_map({"a\udcff": "1.safetensors"}), "not JSON in UTF-8"),
    "no map": ('{"metadata": {}}', "has no weight_map"),
    "an empty map": (with_map({}), "has no weight_map"),
    "a map that is a list": (with_map([]), "there must be '{'"),
    "two maps": (GOOD[:-1] + ', "weight_map": {}}', "a name that is there twice"),
    "a tensor twice": (
        '{"weight_map": {"a": "1.safetensors", "\\u0061": "1.safetensors"}}',
        "names one tensor twice",
    ),
    "a nameless tensor": (with_map({"": "1.safetensors"}), "a tensor name of 0 bytes"),
    "a name of 513 bytes": (with_map({"n" * 513: "1.safetensors"}), "a tensor name of 513 bytes"),
    "a number": (with_map({"a": 1}), "there must be a string"),
    "null": (with_map({"a": None}), "there must be a string"),
    "another kind": (with_map({"a": "1.bin"}), "names a file that is no .safetensors file"),
    "another folder": (with_map({"a": "../1.safetensors"}), "names a file that is no"),
    "another place": (with_map({"a": "/1.safetensors"}), "names a file that is no"),
    "a NUL": (with_map({"a": "1\0.safetensors"}), "names a file that is no"),
    "a long file name": (with_map({"a": "1" * 250 + ".safetensors"}), "names a file that is no"),
    "too many files": (
        with_map({str(n): f"{n}.safetensors" for n in range(INDEX_FILES_MAX + 1)}),
        "names more than 1024 files",
    ),
    "too many tensors": (
        with_map(dict.fromkeys(map(str, range(INDEX_TENSORS_MAX + 1)), "1.safetensors")),
        "names more than 196608 tensors",
    ),
}


def reason(loader: Loader, text: bytes) -> str:
    with pytest.raises(InvalidCheckpointError) as refused:
        loader.parse_index_bytes(text, "an index")
    assert refused.value.path == "an index"
    return refused.value.reason


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_index_is_refused_with_its_reason(
    loader: Loader, tmp_path: Path, kind: str
) -> None:
    text, words = BROKEN[kind]
    raw = text.encode("utf-8", "surrogateescape").replace(b"\\udcff", b"\xff")
    assert words in reason(loader, raw)
    path = tmp_path / "index"
    path.write_bytes(raw)
    with pytest.raises(InvalidCheckpointError) as refused:
        loader.parse_index(path)
    assert (refused.value.path, refused.value.reason) == (str(path), reason(loader, raw))


def test_an_index_tells_its_files_and_what_lies_elsewhere(loader: Loader) -> None:
    places = {"a": "2.safetensors", "b": "1.safetensors", "é": "2.safetensors"}
    index = loader.parse_index_bytes(with_map(places).encode())
    assert len(index) == 3
    assert index.files == ("2.safetensors", "1.safetensors")
    assert index.misplaced(places | {"more": "3.safetensors"}) is None
    assert index.misplaced({**places, "é": "1.safetensors"}) == ("é", "2.safetensors")
    assert index.misplaced({"a": "2.safetensors"}) == ("b", "1.safetensors")


def test_an_index_at_its_limits_is_accepted(loader: Loader) -> None:
    files = [f"{number}.safetensors" for number in range(INDEX_FILES_MAX)]
    places = {
        "n" * 512: "1" * 243 + ".safetensors",
        **{str(n): files[n % (INDEX_FILES_MAX - 1)] for n in range(INDEX_TENSORS_MAX - 1)},
    }
    index = loader.parse_index_bytes(with_map(places).encode())
    assert (len(index), len(index.files)) == (INDEX_TENSORS_MAX, INDEX_FILES_MAX)
    assert index.misplaced(places) is None


def test_an_index_of_more_than_16_mib_is_refused_unread(loader: Loader, tmp_path: Path) -> None:
    path = tmp_path / "index"
    with path.open("wb") as file:
        file.truncate(INDEX_BYTES_MAX + 1)
    with pytest.raises(InvalidCheckpointError, match="16777217 bytes, the limit is 16777216"):
        loader.parse_index(path)


@pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built on this machine")
@pytest.mark.parametrize("seed", range(10))
def test_both_implementations_judge_alike(seed: int) -> None:
    good = with_map({"a": "1.safetensors", "b": "2.safetensors"}).encode()
    for content in mutations(good, seed, count=200):
        assert judged("native", content) == judged("python", content), content


def judged(name: str, content: bytes) -> tuple[int, tuple[str, ...]] | str:
    try:
        index = loaders.find(name).parse_index_bytes(content)
    except InvalidCheckpointError as error:
        return str(error)
    return len(index), index.files


CHILD = """
import sys, time
from brisk_native import InvalidCheckpointError
from brisk_native._implementation import parse_index
def peak():  # not getrusage, which begins with the parent's peak
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
def spent(path):
    begin = time.process_time()
    try:
        parse_index(path)
    except InvalidCheckpointError:
        pass
    return time.process_time() - begin
for path in sys.argv[1:]:
    best = min(spent(path) for _ in range(3))  # a busy machine slows processors down, too
    print(best, (peak() - before) * 1024)
"""


@pytest.mark.skipif(not loaders.is_built(), reason="the promise is the compiled parser's")
def test_the_largest_index_takes_no_more_than_50_ms_and_50_mb_whatever_it_claims(
    tmp_path: Path,
) -> None:
    entry = '"{0}{1}":"{2}.safetensors",'
    texts = {
        "brackets": with_metadata("[" * (INDEX_BYTES_MAX - 100)),
        "numbers": with_metadata("[" + "0," * (INDEX_BYTES_MAX // 2 - 100) + "0]"),
        "many": '{"weight_map":{'
        + "".join(entry.format("n" * 50, n, n % 1000) for n in range(INDEX_TENSORS_MAX)).rstrip(",")
        + "}}",
        "long": '{"weight_map":{'
        + "".join(entry.format("é" * 250, n, 1) for n in range(31_000)).rstrip(",")
        + "}}",
    }
    for name, text in texts.items():
        raw = text.encode()
        assert len(raw) <= INDEX_BYTES_MAX, name
        (tmp_path / name).write_bytes(raw)
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in texts)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert len(lines) == len(texts)
    for name, line in zip(texts, lines, strict=True):
        seconds, grown = line.split()
        assert float(seconds) < 0.05, name
        assert int(grown) < 50_000_000, name
    assert int(lines[-1].split()[1]) > 16_000_000  # or this would measure nothing
