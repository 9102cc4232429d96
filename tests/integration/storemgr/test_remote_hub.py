"""hf:// is what huggingface_hub says it is: its endpoint, token, cache and offline switch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from services.common.errors import BriskError
from tests.broken_models import WEIGHTS
from tests.fakes.hub_server import COMMIT, HubServer
from tests.integration.storemgr.remote_imports import Imports, imports_into
from tests.remote_models import large_folder

REPOSITORY = "owner/tiny"
TOKEN = "hf_of-the-tests"  # noqa: S105 - of nobody


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_folder(tmp_path_factory.mktemp("source") / "tiny", 9 << 20)


@pytest.fixture(scope="module")
def revision(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    with imports_into(tmp_path_factory.mktemp("expected") / "data", "file") as imports:
        return imports.run(str(model)).revision


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a hub; huggingface_hub has read its environment already, so we set what it made of it."""
    with HubServer(REPOSITORY, model).running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def imports(tmp_path: Path) -> Iterator[Imports]:
    with imports_into(tmp_path / "data", "hf") as imports:
        yield imports


def cached(folder: Path, model: Path, names: set[str]) -> None:
    """Lay files into huggingface_hub's cache as it does: blobs, and links to them."""
    repository = folder / "models--owner--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for part in (repository / "refs", repository / "blobs", snapshot):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        (repository / "blobs" / name).write_bytes((model / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")


def test_a_repository_is_imported_by_name(imports: Imports, hub: HubServer, revision: str) -> None:
    manifest = imports.run(f"hf://{REPOSITORY}", name="")
    assert (manifest.name, manifest.revision) == (REPOSITORY, revision)
    assert {told.origin for told in imports.told} == {"hub"}


def test_the_token_is_sent_and_without_it_the_refusal_says_what_to_do(
    imports: Imports, hub: HubServer, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    with pytest.raises(BriskError) as refusal:
        imports.run(f"hf://{REPOSITORY}")
    assert refusal.value.reason == "SOURCE_UNREADABLE"
    assert "HF_TOKEN" in refusal.value.message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert imports.run(f"hf://{REPOSITORY}").revision == revision


def test_an_unknown_repository_or_revision_is_not_found(imports: Imports, hub: HubServer) -> None:
    for url in ("hf://owner/other", f"hf://{REPOSITORY}@v9"):
        with pytest.raises(BriskError) as refusal:
            imports.run(url)
        assert refusal.value.reason == "SOURCE_NOT_FOUND"


def test_what_the_cache_has_is_not_fetched(
    imports: Imports, hub: HubServer, model: Path, tmp_path: Path, revision: str
) -> None:
    cached(tmp_path / "cache", model, {WEIGHTS})
    assert imports.run(f"hf://{REPOSITORY}").revision == revision
    assert not [path for path in hub.asked if path.endswith(WEIGHTS)]
    assert [path for path in hub.asked if path.endswith("config.json")]


def test_offline_only_the_cache_counts(  # noqa: PLR0917 - fixtures
    imports: Imports,
    hub: HubServer,
    model: Path,
    tmp_path: Path,
    revision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BriskError) as refusal:
        imports.run(f"hf://{REPOSITORY}")
    assert refusal.value.reason == "SOURCE_NOT_FOUND"
    assert "HF_HUB_OFFLINE" in refusal.value.message
    cached(tmp_path / "cache", model, {path.name for path in model.iterdir()})
    assert imports.run(f"hf://{REPOSITORY}").revision == revision
    assert hub.asked == []
