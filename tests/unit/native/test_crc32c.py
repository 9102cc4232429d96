"""crc32c's promise: the published values, whoever computes them and however the data is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.native import loaders
from tests.unit.native.conftest import noise
from tests.unit.native.loaders import Loader

LOADERS = [loaders.find(name) for name in ("native", "python") if name == "python" or
           loaders.is_built()]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next ones: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_it_gives_the_published_values(loader: Loader, data: bytes, value: int) -> None:
    assert loader.crc32c(data) == value


@pytest.mark.parametrize("size", [767, 768, 24575, 24576, 24577, 50000])
def test_both_implementations_agree_around_the_lengths_of_the_fast_path(size: int) -> None:
    assert len({each.crc32c(noise(size)) for each in LOADERS}) == 1


@given(front=st.binary(max_size=2000), back=st.binary(max_size=2000))
def test_it_can_be_continued_at_any_split(front: bytes, back: bytes) -> None:
    values = {each.crc32c(back, each.crc32c(front)) for each in LOADERS}
    assert values == {each.crc32c(front + back) for each in LOADERS}
    assert len(values) == 1


def test_any_contiguous_buffer_will_do(loader: Loader) -> None:
    data = noise(1000)
    expected = loader.crc32c(data)
    for same in (bytearray(data), memoryview(data), memoryview(data).cast("I")):
        assert loader.crc32c(same) == expected
    assert loader.crc32c(memoryview(data)[100:200]) == loader.crc32c(data[100:200])


def test_the_buffer_is_let_go_after_the_call(loader: Loader) -> None:
    data = bytearray(10)
    loader.crc32c(data)
    data.append(1)  # a bytearray that somebody holds refuses to grow


def test_what_has_no_contiguous_bytes_is_refused(loader: Loader) -> None:
    with pytest.raises(BufferError, match="contiguous"):
        loader.crc32c(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        loader.crc32c("text")
    for value in (-1, 2**32, "x"):
        with pytest.raises(TypeError):
            loader.crc32c(b"", value)
