"""Tiny models of every kind, made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # as in the worker's own process: nothing is fetched

from tests.models import make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a model of a kind (tests.models.KINDS), once per run."""

    @cache
    def make(kind: str) -> Path:
        return make_model(tmp_path_factory.mktemp("models") / kind, kind)

    return make
