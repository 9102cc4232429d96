"""A web source that misbehaves costs tries and time, or a typed refusal; it never costs the truth.

Each fault is proven to have happened by the server that made it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import brisk_native
import pytest

from services.common.errors import BriskError
from services.storemgr.manifest import MANIFEST, Manifest
from services.storemgr.ports import JobStoppedError
from tests.broken_models import WEIGHTS
from tests.fakes import source_server as faults
from tests.fakes.source_server import Answer, Fault, Get, SourceServer
from tests.integration.storemgr.nodes import contents_of
from tests.integration.storemgr.remote_imports import Imports, imports_into
from tests.remote_models import LARGE_BYTES, large_folder
from tests.unit.storemgr.test_importer import shard_folder, tensors_in


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_folder(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Return what an import of the folder itself gives."""
    with imports_into(tmp_path_factory.mktemp("expected") / "data", "file") as imports:
        return imports.run(str(model))


@pytest.fixture
def server(model: Path) -> Iterator[SourceServer]:
    with SourceServer(model).running() as server:
        yield server


@pytest.fixture
def imports(tmp_path: Path, server: SourceServer) -> Iterator[Imports]:
    with imports_into(tmp_path / "data", f"http://127.0.0.1:{server.port}/") as imports:
        yield imports


def refusal_of(imports: Imports, url: str) -> BriskError:
    with pytest.raises(BriskError) as refusal:
        imports.run(url)
    imports.assert_nothing_stored()
    assert "127.0.0.1" not in refusal.value.message or refusal.value.reason == "SOURCE_NOT_ALLOWED"
    return refusal.value


def test_it_is_stored_as_the_folder_itself_would_be(
    imports: Imports, server: SourceServer, model: Path, expected: Manifest
) -> None:
    manifest = imports.run(server.url)
    assert manifest.is_stored_form
    assert manifest.files == tuple(
        file.__class__(
            name=file.name,
            kind=file.kind,
            size_bytes=file.size_bytes,
            modified_ns=stored.modified_ns,
            checksums=file.checksums,
        )
        for file, stored in zip(expected.files, manifest.files, strict=True)
    )
    folder = imports.store.folder_of(manifest.ref)
    assert tensors_in(folder / WEIGHTS) == tensors_in(model / WEIGHTS)
    assert brisk_native.verify(folder).files_checked == len(manifest.files)
    assert imports.unfinished == 0
    assert server.bytes_sent(WEIGHTS) < 1.1 * (model / WEIGHTS).stat().st_size


def test_progress_says_how_far_how_fast_and_from_where(
    imports: Imports, server: SourceServer
) -> None:
    imports.run(server.url)
    done = [told.bytes_done for told in imports.told]
    assert done == sorted(done)
    assert imports.told[-1].bytes_done == imports.told[-1].bytes_total
    assert {told.origin for told in imports.told} == {"http"}
    assert imports.told[-1].bytes_per_s > 0


def test_as_is_the_files_are_those_of_the_source(
    imports: Imports, server: SourceServer, model: Path
) -> None:
    manifest = imports.run(server.url, as_is=True)
    stored = contents_of(imports.store.folder_of(manifest.ref))
    del stored[MANIFEST]
    assert stored == contents_of(model)


def test_shards_become_one_file(
    tmp_path: Path, imports: Imports, server: SourceServer, expected: Manifest
) -> None:
    server.folder = large_folder(tmp_path / "sharded")
    shard_folder(server.folder)
    manifest = imports.run(server.url)
    assert manifest.revision == expected.revision


def test_the_url_of_a_weight_file_means_its_folder(
    tmp_path: Path, imports: Imports, server: SourceServer, expected: Manifest
) -> None:
    server.folder = large_folder(tmp_path / "named")
    (server.folder / WEIGHTS).rename(server.folder / "other.safetensors")
    manifest = imports.run(f"{server.url}/other.safetensors")
    assert manifest.revision == expected.revision


PASSING = {
    "reset": (faults.resets, "reset"),
    "stalled": (faults.stalls, "stalled"),
    "dripped": (faults.drips, "dripped"),
    "ended early": (faults.ends_early, "ended early"),
    "another part": (faults.another_part, "sent another part"),
    "500": (faults.status(500), "answered 500"),
    "503 and when": (faults.status(503, Retry_After="1"), "answered 503"),
    "429": (faults.status(429), "answered 429"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_costs_a_try(
    imports: Imports, server: SourceServer, expected: Manifest, kind: str
) -> None:
    fault, what = PASSING[kind]
    server.faults[WEIGHTS] = faults.first_times(2, fault)
    if kind in ("stalled", "dripped"):
        imports.stall_s = 0.5
    assert imports.run(server.url).revision == expected.revision
    assert server.happened[what] >= 1


@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_stays_is_unavailable_in_the_end(
    imports: Imports, server: SourceServer, kind: str
) -> None:
    fault, what = PASSING[kind]
    server.faults[WEIGHTS] = faults.from_offset(8 << 20, fault)
    if kind in ("stalled", "dripped"):
        imports.stall_s = 0.5
    error = refusal_of(imports, server.url)
    assert (error.code, error.reason) == ("UNAVAILABLE", "SOURCE_UNAVAILABLE")
    assert WEIGHTS in error.message
    assert "3 tries" in error.message
    assert error.retry_after_s
    assert server.happened[what] >= 3
    assert imports.unfinished == 1


FINAL = {
    "404": (faults.status(404), "answered 404", "NOT_FOUND", "SOURCE_NOT_FOUND"),
    "403": (faults.status(403), "answered 403", "INVALID_ARGUMENT", "SOURCE_UNREADABLE"),
    "401": (faults.status(401), "answered 401", "INVALID_ARGUMENT", "SOURCE_UNREADABLE"),
    "400": (faults.status(400), "answered 400", "INVALID_ARGUMENT", "SOURCE_UNUSABLE"),
    "no ranges": (
        faults.without_ranges, "ignored the range", "INVALID_ARGUMENT", "SOURCE_UNUSABLE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FINAL)
def test_what_no_try_mends_is_refused_at_once(
    imports: Imports, server: SourceServer, kind: str
) -> None:
    fault, what, code, reason = FINAL[kind]
    server.faults[WEIGHTS] = faults.from_offset(8 << 20, fault)
    error = refusal_of(imports, server.url)
    assert (error.code, error.reason) == (code, reason)
    assert 1 <= server.happened[what] <= imports.streams
    assert imports.unfinished == 0


def test_a_source_that_is_not_there_says_so(imports: Imports, server: SourceServer) -> None:
    (server_folder := server.folder.parent / "empty").mkdir(exist_ok=True)
    server.folder = server_folder
    assert refusal_of(imports, server.url).reason == "SOURCE_NOT_FOUND"


def test_nobody_listening_is_unavailable(imports: Imports, server: SourceServer) -> None:
    imports.sources = "http://127.0.0.1:9/"
    assert refusal_of(imports, "http://127.0.0.1:9/x").reason == "SOURCE_UNAVAILABLE"


def changes_the_file(large: bytes) -> Fault:
    """Put another version in place when the second run is asked for."""

    def fault(answer: Answer, get: Get) -> bool:
        path = answer.server.folder / WEIGHTS
        if get.first >= 8 << 20 and path.read_bytes() != large:
            path.with_suffix(".new").write_bytes(large)
            path.with_suffix(".new").replace(path)
            answer.server.did("changed the file")
            answer.headers["ETag"] = answer.server.etag(WEIGHTS)
        return False

    return fault


@pytest.mark.parametrize("with_match", [True, False])
def test_a_change_during_the_fetch_is_noticed(
    tmp_path: Path, imports: Imports, server: SourceServer, *, with_match: bool
) -> None:
    server.folder = large_folder(tmp_path / "changing")
    content = (server.folder / WEIGHTS).read_bytes()
    server.faults[WEIGHTS] = changes_the_file(content[:-1] + b"\1")
    if not with_match:  # a weak tag cannot be a precondition: we have to look ourselves
        server.etags[WEIGHTS] = 'W/"1"'
        inner = server.faults[WEIGHTS]

        def fault(answer: Answer, get: Get) -> bool:
            inner(answer, get)
            if get.first >= 8 << 20:
                answer.headers["ETag"] = 'W/"2"'
            return False

        server.faults[WEIGHTS] = fault
    error = refusal_of(imports, server.url)
    assert (error.code, error.reason) == ("ABORTED", "SOURCE_CHANGED")
    assert error.metadata["file"] == WEIGHTS
    assert server.happened["changed the file"] >= 1
    assert (server.happened["precondition failed"] > 0) is with_match
    assert imports.unfinished == 0
    server.faults.clear()
    server.etags.clear()
    imports.run(server.url)  # the new version, whole
    assert len(imports.store.scan().manifests) == 1


def with_manifest(source: Path, target: Path) -> Path:
    """Write a folder with brisk.json, as `brisk_native convert` does."""
    brisk_native.convert(source, target)
    return target


def test_the_sources_own_checksums_are_held_against_every_chunk(
    tmp_path: Path, imports: Imports, server: SourceServer, model: Path, expected: Manifest
) -> None:
    server.folder = with_manifest(model, tmp_path / "stored")
    server.faults[WEIGHTS] = faults.first_times(2, faults.flips_a_bit)
    assert imports.run(server.url).revision == expected.revision
    assert server.happened["flipped a bit"] >= 1


def test_bytes_that_never_are_what_was_promised_are_a_mismatch(
    tmp_path: Path, imports: Imports, server: SourceServer, model: Path
) -> None:
    server.folder = with_manifest(model, tmp_path / "stored")
    server.faults[WEIGHTS] = faults.from_offset(8 << 20, faults.flips_a_bit)
    error = refusal_of(imports, server.url)
    assert (error.code, error.reason) == ("DATA_LOSS", "CHECKSUM_MISMATCH")
    assert error.metadata["file"] == WEIGHTS
    assert int(error.metadata["chunk"]) >= 2
    assert server.happened["flipped a bit"] >= 3


def test_originals_with_checksums_are_verified_before_they_are_converted(
    tmp_path: Path, imports: Imports, server: SourceServer, model: Path, expected: Manifest
) -> None:
    with imports_into(tmp_path / "other", "file") as other:
        original = other.run(str(model), as_is=True)
        server.folder = other.store.folder_of(original.ref)
        assert imports.run(server.url).revision == expected.revision
        server.faults[WEIGHTS] = faults.from_offset(8 << 20, faults.flips_a_bit)
        with pytest.raises(BriskError) as refusal:
            imports.run(server.url, name="again")
    assert refusal.value.reason == "CHECKSUM_MISMATCH"


def test_what_was_fetched_is_not_fetched_again(
    imports: Imports, server: SourceServer, expected: Manifest
) -> None:
    server.faults[WEIGHTS] = faults.from_offset(16 << 20, faults.resets)
    assert refusal_of(imports, server.url).reason == "SOURCE_UNAVAILABLE"
    assert server.happened["reset"] >= 3
    before = len(server.gets)
    server.faults.clear()
    assert imports.run(server.url).revision == expected.revision
    again = [get for get in server.gets[before:] if get.name == WEIGHTS]
    assert sum(get.size for get in again) < LARGE_BYTES / 2
    assert imports.unfinished == 0


def test_what_was_fetched_and_then_damaged_is_fetched_again(
    imports: Imports, server: SourceServer, expected: Manifest
) -> None:
    server.faults[WEIGHTS] = faults.from_offset(16 << 20, faults.resets)
    refusal_of(imports, server.url)
    (part,) = imports.fetches.glob(f"*/parts/{WEIGHTS}")
    with part.open("r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    server.faults.clear()
    manifest = imports.run(server.url)
    assert manifest.revision == expected.revision
    brisk_native.verify(imports.store.folder_of(manifest.ref))  # raises ChecksumError


def test_a_stopped_import_ends_soon_although_the_source_hangs(
    imports: Imports, server: SourceServer
) -> None:
    server.faults[WEIGHTS] = faults.from_offset(8 << 20, faults.stalls)
    job = imports.disk.new_job()
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(JobStoppedError):
            imports.run(server.url, job=job)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not server.happened["stalled"]:
        assert not ended.wait(0.01)
    job.stop()
    assert ended.wait(5), "a thread still waits for the source"
    thread.join()
    imports.assert_nothing_stored()
    assert imports.unfinished == 1


def test_the_cap_on_bandwidth_is_kept(imports: Imports, server: SourceServer) -> None:
    imports.bytes_per_s = 16 << 20
    imports.run(server.url)
    speeds = [told.bytes_per_s for told in imports.told if told.file == WEIGHTS]
    assert speeds[-1] < 1.3 * imports.bytes_per_s


def test_a_redirect_to_an_address_inside_is_not_followed(
    imports: Imports, server: SourceServer, model: Path
) -> None:
    with SourceServer(model).running() as inside:
        server.faults[WEIGHTS] = faults.redirects(f"{inside.url}/{WEIGHTS}")
        error = refusal_of(imports, server.url)
        assert error.reason == "SOURCE_NOT_ALLOWED"
        assert server.happened["redirected"] >= 1
        assert inside.gets == []


def test_a_redirect_to_a_named_host_is_followed_without_credentials(
    imports: Imports, server: SourceServer, model: Path, expected: Manifest
) -> None:
    with SourceServer(model).running() as other:
        imports.sources += f",http://127.0.0.1:{other.port}/"
        server.faults[WEIGHTS] = faults.redirects(f"{other.url}/{WEIGHTS}")
        assert imports.run(server.url).revision == expected.revision
        assert other.gets


def test_redirects_that_lead_in_a_circle_are_given_up(
    imports: Imports, server: SourceServer
) -> None:
    server.faults[WEIGHTS] = faults.redirects(f"{server.url}/{WEIGHTS}")
    assert refusal_of(imports, server.url).reason == "SOURCE_UNUSABLE"


def test_a_host_that_was_not_named_may_not_be_inside(
    imports: Imports, server: SourceServer
) -> None:
    imports.sources = "file,s3,hf,http,https"
    error = refusal_of(imports, server.url)
    assert error.reason == "SOURCE_NOT_ALLOWED"
    assert server.gets == []


def test_an_index_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, imports: Imports, server: SourceServer
) -> None:
    server.folder = large_folder(tmp_path / "hostile", 1 << 20)
    (server.folder / WEIGHTS).rename(server.folder / "x.safetensors")
    index = server.folder / "model.safetensors.index.json"
    for name in ("../x.safetensors", "/etc/passwd", "a\\u0000.safetensors", "a/b.safetensors"):
        index.write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
        error = refusal_of(imports, server.url)
        assert (error.reason, error.metadata["file"]) == ("INVALID_MODEL", index.name)


def test_an_index_bomb_is_refused_by_its_size(
    tmp_path: Path, imports: Imports, server: SourceServer
) -> None:
    server.folder = large_folder(tmp_path / "bomb", 1 << 20)
    (server.folder / WEIGHTS).unlink()
    with (server.folder / "model.safetensors.index.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    error = refusal_of(imports, server.url)
    assert error.reason in ("INVALID_MODEL", "SOURCE_UNUSABLE")
    assert "limit" in error.message or "more than" in error.message


def test_a_header_that_claims_too_much_is_refused(
    tmp_path: Path, imports: Imports, server: SourceServer
) -> None:
    server.folder = large_folder(tmp_path / "claims")
    with (server.folder / WEIGHTS).open("r+b") as file:
        file.write((1 << 60).to_bytes(8, "little"))
    error = refusal_of(imports, server.url)
    assert (error.reason, error.metadata["file"]) == ("INVALID_MODEL", WEIGHTS)
    assert server.bytes_sent(WEIGHTS) < LARGE_BYTES / 2  # refused before all of it was fetched


def test_a_model_that_has_no_room_is_refused_before_it_is_fetched(
    imports: Imports, server: SourceServer
) -> None:
    class Full:
        def new_job(self) -> object:
            return real.new_job()

        def free_bytes(self, folder: Path) -> int:
            return 8 << 20

    real = imports.disk
    imports.disk = Full()  # type: ignore[assignment]
    error = refusal_of(imports, server.url)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
    assert imports.unfinished == 0
