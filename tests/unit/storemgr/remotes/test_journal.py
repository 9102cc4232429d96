"""What a journal says after a crash is a subset of what was written, never something else."""

from __future__ import annotations

from pathlib import Path

from services.storemgr.remotes.journal import Journal


def test_records_are_found_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.read(10) == {}
        journal.add(3, [7, 8])
        journal.add(0, [9])
    with Journal(tmp_path / "j") as journal:
        assert journal.read(10) == {3: 7, 4: 8, 0: 9}
        assert journal.read(4) == {3: 7, 0: 9}  # of a file that is shorter now


def test_a_torn_record_is_dropped_and_what_follows_is_whole(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.add(0, [1, 2])
    with (tmp_path / "j").open("ab") as file:
        file.write(b"\x02\x00\x00")
    with Journal(tmp_path / "j") as journal:
        known = journal.read(10)
        assert known == {0: 1, 1: 2}
        journal.restart(known)
        journal.add(2, [3])
        assert journal.read(10) == {0: 1, 1: 2, 2: 3}


def test_a_journal_that_was_blown_up_is_read_in_part_only(tmp_path: Path) -> None:
    with (tmp_path / "j").open("wb") as file:
        file.truncate(1 << 40)  # all holes
    with Journal(tmp_path / "j") as journal:
        assert journal.read(10) == {0: 0}  # which the chunk's content will not confirm
