"""What devices promise, whatever driver runs them: NVIDIA's, or the stand-in for it."""

from __future__ import annotations

import gc
from pathlib import Path

import brisk_native
import pytest
import torch
from brisk_native import (
    CHUNK_BYTES,
    CancelToken,
    ChecksumError,
    DeviceBuffer,
    DeviceError,
    DeviceMemoryError,
    DevicePiece,
    PinnedMemory,
    ReadCancelledError,
    ReadSettings,
    copy_to_devices,
    device_memory,
    devices,
    read_to_devices,
)
from torch.utils.dlpack import from_dlpack

from tests.unit.native.conftest import noise

SIZE = 3 * CHUNK_BYTES + 777
SETTINGS = ReadSettings(threads=2)
SLACK_BYTES = 32 * 1024 * 1024
"""What others may take of a real device's memory during a test."""


class RaisedInTestError(Exception):
    """Raised by a test where the loader calls it."""


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """Return the content of the file `f`."""
    content = noise(SIZE)
    (tmp_path / "f").write_bytes(content)
    return content


def split() -> tuple[list[DevicePiece], list[tuple[int, int]], list[slice]]:
    """Return uneven pieces over all devices, allocations for them, and the content of each."""
    count = len(devices())
    ends = [0] * count
    pieces, parts, offset = [], [], 3
    for number, size in enumerate((1, 70_001, CHUNK_BYTES, 0, CHUNK_BYTES + 11, 255)):
        target = number % count
        pieces.append(DevicePiece(0, offset, size, target, ends[target]))
        parts.append(slice(offset, offset + size))
        ends[target] += (size + 255) // 256 * 256
        offset += size + 1000
    return pieces, [(ordinal, end) for ordinal, end in enumerate(ends)], parts


def check(buffers: list[DeviceBuffer], content: bytes) -> None:
    pieces, _, parts = split()
    for piece, part in zip(pieces, parts, strict=True):
        found = buffers[piece.allocation].read(piece.allocation_offset, piece.size_bytes)
        assert found == content[part]


class DevicePromises:
    """To be run as a test class on each driver."""

    def test_devices_have_names_and_memory(self) -> None:
        for number, device in enumerate(devices()):
            assert device.ordinal == number
            assert device.name
            free, total = device_memory(number)
            assert 0 < free <= total

    def test_pieces_of_files_come_to_all_devices_byte_for_byte(
        self, tmp_path: Path, content: bytes
    ) -> None:
        pieces, allocations, parts = split()
        checksums = brisk_native.checksum_file(tmp_path / "f")
        told: list[int] = []
        buffers, result = read_to_devices(
            [tmp_path / "f"],
            pieces,
            allocations,
            host_bytes=4 * CHUNK_BYTES,
            expected_crc32c=[checksums],
            progress=told.append,
        )
        check(buffers, content)
        wanted = sum(part.stop - part.start for part in parts)
        assert (result.bytes_copied, result.bytes_read) == (wanted, 3 * CHUNK_BYTES)
        assert (told[0], told[-1]) == (0, wanted)
        assert result.pinned
        assert result.host_bytes <= 4 * CHUNK_BYTES
        assert [(one.ordinal, one.size_bytes) for one in buffers] == allocations

    @pytest.mark.parametrize("pinned", [True, False])
    def test_pieces_of_memory_come_to_all_devices_byte_for_byte(
        self, content: bytes, *, pinned: bool
    ) -> None:
        pieces, allocations, _ = split()
        memory = bytearray(content)
        if pinned:
            with PinnedMemory(memory) as held:
                assert held.size_bytes == SIZE
                buffers, result = copy_to_devices([memory], pieces, allocations)
            assert result.pinned
            assert result.host_bytes == 0
        else:
            buffers, result = copy_to_devices([memory], pieces, allocations)
        check(buffers, content)
        assert result.bytes_read == 0

    def test_milestones_come_in_order_and_their_pieces_are_there(
        self, tmp_path: Path, content: bytes
    ) -> None:
        pieces, allocations, parts = split()
        mine = [DeviceBuffer(ordinal, size) for ordinal, size in allocations]
        seen: list[int] = []

        def look(count: int) -> None:
            seen.append(count)
            for piece, part in zip(pieces[:count], parts[:count], strict=True):
                found = mine[piece.allocation].read(piece.allocation_offset, piece.size_bytes)
                assert found == content[part]

        milestones = list(range(1, len(pieces) + 1))
        read_to_devices(
            [tmp_path / "f"],
            pieces,
            mine,
            settings=SETTINGS,
            milestones=milestones,
            on_milestone=look,
        )
        assert seen == milestones

    def test_a_wrong_checksum_names_its_chunk_and_takes_no_memory(
        self, tmp_path: Path, content: bytes
    ) -> None:
        checksums = brisk_native.checksum_file(tmp_path / "f")
        checksums[2] ^= 1
        holder = DeviceBuffer(0, 1)  # keeps the context, so that it does not count
        free, _ = device_memory(0)
        with pytest.raises(ChecksumError) as caught:
            read_to_devices(
                [tmp_path / "f"],
                [(0, 0, SIZE, 0, 0)],
                [(0, 256 * 1024 * 1024)],
                settings=SETTINGS,
                expected_crc32c=[checksums],
            )
        assert caught.value.chunk == 2
        del caught
        gc.collect()
        assert device_memory(0)[0] >= free - SLACK_BYTES
        del holder

    def test_too_little_memory_is_told_with_what_is_free(self) -> None:
        wanted = device_memory(0)[1] * 2
        with pytest.raises(MemoryError) as caught:
            DeviceBuffer(0, wanted)
        error = caught.value
        assert isinstance(error, DeviceMemoryError)
        assert (error.name, error.wanted_bytes) == ("CUDA_ERROR_OUT_OF_MEMORY", wanted)
        assert 0 < error.free_bytes < wanted

    def test_a_device_that_is_not_there_is_refused_in_the_drivers_words(self) -> None:
        with pytest.raises(DeviceError, match="invalid device ordinal") as caught:
            DeviceBuffer(len(devices()), 1)
        assert caught.value.name == "CUDA_ERROR_INVALID_DEVICE"

    def test_a_cancelled_load_ends(self, tmp_path: Path, content: bytes) -> None:
        cancel = CancelToken()
        cancel.cancel()
        pieces, allocations, _ = split()
        with pytest.raises(ReadCancelledError):
            read_to_devices([tmp_path / "f"], pieces, allocations, settings=SETTINGS, cancel=cancel)
        with pytest.raises(ReadCancelledError):
            copy_to_devices([content], pieces, allocations, cancel=cancel)

    def test_what_a_callback_raises_comes_out(self, tmp_path: Path, content: bytes) -> None:
        def refuse(count: int) -> None:
            raise RaisedInTestError

        pieces, allocations, _ = split()
        with pytest.raises(RaisedInTestError):
            read_to_devices(
                [tmp_path / "f"], pieces, allocations, settings=SETTINGS, progress=refuse
            )
        with pytest.raises(RaisedInTestError):
            copy_to_devices([content], pieces, allocations, milestones=[2], on_milestone=refuse)

    def test_torch_uses_the_memory_in_place_and_keeps_it(self, content: bytes) -> None:
        (buffer,), _ = copy_to_devices([content], [(0, 0, SIZE, 0, 256)], [(0, 256 + SIZE)])
        if buffer.__dlpack_device__() == (2, 0) and not torch.cuda.is_available():
            pytest.skip("this torch was built without CUDA")
        tensor = from_dlpack(buffer)
        assert (tensor.dtype, tensor.shape) == (torch.uint8, (256 + SIZE,))
        assert tensor.data_ptr() == buffer.pointer
        assert buffer.pointer % 256 == 0
        del buffer
        gc.collect()
        assert bytes(tensor[256:].cpu().numpy()) == content

    def test_memory_is_lent_where_it_lies_or_not_at_all(self) -> None:
        buffer = DeviceBuffer(0, 10)
        assert buffer.__dlpack_device__() in {(1, 0), (2, 0)}
        with pytest.raises(BufferError):
            buffer.__dlpack__(copy=True)
        with pytest.raises(BufferError):
            buffer.__dlpack__(dl_device=(2, 7))
        unused = buffer.__dlpack__()
        del unused

    @pytest.mark.parametrize(
        "piece", [(0, SIZE, 1, 0, 0), (1, 0, 1, 0, 0), (0, 0, 1, 1, 0), (0, 0, 11, 0, 0)]
    )
    def test_a_piece_that_does_not_fit_is_refused(
        self, tmp_path: Path, content: bytes, piece: tuple[int, int, int, int, int]
    ) -> None:
        with pytest.raises(ValueError, match="piece 0"):
            read_to_devices([tmp_path / "f"], [piece], [(0, 10)], settings=SETTINGS)
        with pytest.raises(ValueError, match="piece 0"):
            copy_to_devices([content], [piece], [(0, 10)])

    def test_arguments_out_of_their_limits_are_refused(
        self, tmp_path: Path, content: bytes
    ) -> None:
        del content
        paths, pieces = [tmp_path / "f"], [(0, 0, 1, 0, 0)]
        with pytest.raises(ValueError, match="host_bytes must be at least 8388608, not 5"):
            read_to_devices(paths, pieces, [(0, 10)], settings=SETTINGS, host_bytes=5)
        with pytest.raises(ValueError, match="streams must be between 1 and 16, not 17"):
            read_to_devices(paths, pieces, [(0, 10)], settings=SETTINGS, streams=17)
        with pytest.raises(ValueError, match="milestones must rise"):
            read_to_devices(paths, pieces, [(0, 10)], settings=SETTINGS, milestones=[2])
        with pytest.raises(IndexError):
            DeviceBuffer(0, 10).read(5, 6)
