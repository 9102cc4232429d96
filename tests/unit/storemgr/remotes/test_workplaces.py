"""An unfinished import is kept for the next one, for a time, unless the source has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common.errors import InvalidArgumentError
from services.storemgr.remotes.workplaces import PLACES_MAX, Workplaces


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "fetches"


def left(root: Path) -> int:
    return len(list(root.iterdir())) if root.exists() else 0


def test_the_same_source_and_name_find_what_was_there(root: Path) -> None:
    places = Workplaces(root, keep_s=60)
    with places.place("s3://b/x", "x") as place:
        assert not place.begin("version 1")
        (place.parts / "some").write_text("bytes")
    with places.place("s3://b/x", "x") as place:
        assert place.begin("version 1")
        assert (place.parts / "some").read_text() == "bytes"
    with places.place("s3://b/x", "y") as place:
        assert not place.begin("version 1")


def test_another_version_of_the_source_starts_anew(root: Path) -> None:
    places = Workplaces(root, keep_s=60)
    with places.place("x") as place:
        place.begin("version 1")
        (place.parts / "some").write_text("bytes")
        assert not place.begin("version 2")
        assert list(place.parts.iterdir()) == []


def test_two_imports_do_not_share_a_place(root: Path) -> None:
    places = Workplaces(root, keep_s=60)
    with (
        places.place("x"),
        pytest.raises(InvalidArgumentError, match="just being imported"),
        places.place("x"),
    ):
        pass


def test_what_nobody_came_back_to_goes(root: Path) -> None:
    places = Workplaces(root, keep_s=60)
    for name in ("old", "new"):
        with places.place(name) as place:
            place.begin("version 1")
            if name == "old":
                os.utime(place.folder / "mark", (0, 0))
    assert places.sweep() == 1
    with places.place("new") as place:
        assert place.begin("version 1")
        assert places.drop_idle() == 0  # it is in use
    assert places.drop_idle() == 1
    assert left(root) == 0


def test_there_are_never_more_than_so_many(root: Path) -> None:
    places = Workplaces(root, keep_s=60)
    for number in range(PLACES_MAX + 3):
        with places.place(str(number)) as place:
            place.begin("version 1")
    assert places.sweep() == 3
    assert left(root) == PLACES_MAX
