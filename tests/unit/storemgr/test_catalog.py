"""An empty revision means the latest import, and nothing unknown is ever found."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from services.common.errors import NotFoundError
from services.common.model import ModelRef
from services.common.names import ModelName
from services.storemgr.catalog import Catalog
from services.storemgr.manifest import Manifest
from tests.unit.storemgr.test_manifest import FILE, NOON, manifest_of

A, B = ModelName("a"), ModelName("b")


def model(name: ModelName, revision: str, minutes: int) -> Manifest:
    return replace(
        manifest_of(FILE),
        name=name,
        revision=revision,
        imported_at=NOON + timedelta(minutes=minutes),
    )


def test_the_latest_import_answers_for_the_name() -> None:
    catalog = Catalog([model(A, "2", 5), model(A, "1", 9), model(B, "3", 99)])
    assert catalog.find(ModelRef(name=A)).revision == "1"
    catalog.put(model(A, "2", 10))  # imported again
    assert catalog.find(ModelRef(name=A)).revision == "2"
    assert catalog.imported_last_at(A) == NOON + timedelta(minutes=10)


def test_a_revision_is_found_exactly() -> None:
    catalog = Catalog([model(A, "1", 0), model(A, "2", 1)])
    assert catalog.find(ModelRef(name=A, revision="1")).revision == "1"
    with pytest.raises(NotFoundError, match="not at revision 3") as refusal:
        catalog.find(ModelRef(name=A, revision="3"))
    assert refusal.value.reason == "MODEL_NOT_FOUND"


def test_an_unknown_name_is_refused_with_near_matches() -> None:
    catalog = Catalog([model(ModelName("tiny-llama"), "1", 0)])
    with pytest.raises(NotFoundError, match="near: tiny-llama") as refusal:
        catalog.find(ModelRef(name=ModelName("tiny-lama")))
    assert refusal.value.reason == "MODEL_NOT_FOUND"


def test_a_removed_model_is_gone_and_its_sisters_stay() -> None:
    catalog = Catalog([model(A, "1", 0), model(A, "2", 1)])
    assert catalog.remove(ModelRef(name=A, revision="2")) is not None
    assert catalog.remove(ModelRef(name=A, revision="2")) is None
    assert catalog.find(ModelRef(name=A)).revision == "1"
    catalog.remove(ModelRef(name=A, revision="1"))
    assert catalog.all() == ()
    assert catalog.imported_last_at(A) is None


def test_models_are_listed_by_name_then_time() -> None:
    catalog = Catalog([model(B, "1", 0), model(A, "1", 2), model(A, "2", 1)])
    assert [(each.name, each.revision) for each in catalog.all()] == [
        ("a", "2"),
        ("a", "1"),
        ("b", "1"),
    ]
