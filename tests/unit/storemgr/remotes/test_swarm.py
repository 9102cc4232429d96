"""A swarm brings what was asked for as long as one member can, most of it from the fastest."""

from __future__ import annotations

import threading
import time

import pytest
from brisk_native import CHUNK_BYTES, crc32c

from services.common.errors import BriskError, NotFoundError
from services.storemgr.remotes.assembly import Assembly, whole
from services.storemgr.remotes.refusals import PassingError
from services.storemgr.remotes.swarm import Member, Swarm

CONTENT = bytes(range(256)) * (CHUNK_BYTES // 256) * 2
FILE = whole(
    "x", 0, len(CONTENT), tuple(crc32c(CONTENT[at : at + CHUNK_BYTES]) for at in (0, CHUNK_BYTES))
)


class Source:
    """Has the file; fails as told, and takes its time."""

    def __init__(self, *, error: Exception | None = None, damaged: bool = False, s: float = 0.0):
        self.error = error
        self.damaged = damaged
        self.seconds = s
        self.asked = 0

    def fill(self, assembly: Assembly, offset: int, buffer: memoryview) -> None:
        self.asked += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        buffer[:] = CONTENT[offset : offset + len(buffer)]
        if self.damaged:
            buffer[0] ^= 1


def swarm_of(*sources: Source) -> Swarm:
    return Swarm([Member(str(rank), source, rank) for rank, source in enumerate(sources)])


def chunk(swarm: Swarm, number: int = 0) -> bytes:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    swarm.fill(FILE, number * CHUNK_BYTES, buffer)
    return bytes(buffer)


@pytest.mark.parametrize(
    "bad",
    [
        {"error": PassingError("gone")},
        {"error": NotFoundError("deleted meanwhile")},
        {"damaged": True},
    ],
    ids=str,
)
def test_one_that_fails_is_replaced_at_once_and_not_asked_for_ever(bad: dict[str, object]) -> None:
    lost, sound = Source(**bad), Source()  # type: ignore[arg-type]
    swarm = swarm_of(lost, sound)
    for _ in range(10):
        assert chunk(swarm, 1) == CONTENT[CHUNK_BYTES:]
    assert 1 <= lost.asked <= 2
    assert sound.asked == 10


def test_when_all_fail_the_last_fault_is_told_and_a_recovery_is_noticed() -> None:
    one, two = Source(error=PassingError("gone")), Source(error=PassingError("gone"))
    swarm = swarm_of(one, two)
    for _ in range(3):
        with pytest.raises(PassingError):
            chunk(swarm)
    one.error = two.error = None
    assert chunk(swarm) == CONTENT[:CHUNK_BYTES]


def test_what_no_try_mends_is_told_when_nobody_is_left() -> None:
    with pytest.raises(BriskError, match="deleted"):
        chunk(swarm_of(Source(error=NotFoundError("deleted meanwhile"))))


def test_the_fastest_brings_the_most_and_the_slow_one_helps() -> None:
    fast, slow = Source(s=0.002), Source(s=0.02)
    swarm = swarm_of(slow, fast)
    left = iter(range(60))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            chunk(swarm)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fast.asked > 2 * slow.asked
    assert slow.asked >= 1
