"""Kills an operation on a store at each of its steps in turn and checks what the next start finds.

`python -m tests.integration.storemgr.crash_points FOLDER OPERATION` prints how many steps there
were and exits 0 if the store was sound after a crash at every one of them. The steps are the calls
into the file system that Python reports to audit hooks; the process dies by SIGKILL just before.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.storemgr.adapters import NativeDisk
from services.storemgr.importer import Importer, ImportOrder
from services.storemgr.manifest import Manifest
from services.storemgr.source import parse_source
from services.storemgr.store import Store
from tests.broken_models import WEIGHTS, good_folder
from tests.unit.storemgr.disks import fetcher_in

_STEPS: Final = frozenset(
    {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
)
_STEPS_MAX: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is killed, on which store, and how many models may be found afterwards."""

    prepare: Callable[[Path, Path], None]
    run: Callable[[Path, Path], None]
    found: frozenset[int]


def run_import(data: Path, source: Path) -> Manifest:
    """Import `source` as a process of its own would."""
    store, disk = Store(data), NativeDisk()
    store.sweep()
    order = ImportOrder(source=parse_source(str(source), ""), after=None)
    manifest = Importer(store, disk, fetcher_in(store.root), hard_links=False).run(
        order, disk.new_job(), lambda _: None
    )
    store.close()
    return manifest


def import_model(data: Path, source: Path) -> None:
    """Import, that is all."""
    run_import(data, source)


def import_and_damage(data: Path, source: Path) -> None:
    """Import, then change the stored weights."""
    manifest = run_import(data, source)
    stored = data / "store" / "models" / "source" / manifest.revision / WEIGHTS
    stored.write_bytes(stored.read_bytes()[:-4] + b"oops")


def remove(data: Path, _: Path) -> None:
    """Remove the only model."""
    store = Store(data)
    store.remove(store.scan().manifests[0].ref)
    store.close()


def nothing(_: Path, __: Path) -> None:
    """Begin with an empty store."""


OPERATIONS: Final[Mapping[str, Operation]] = {
    "import": Operation(prepare=nothing, run=import_model, found=frozenset({0, 1})),
    "import again": Operation(prepare=import_model, run=import_model, found=frozenset({1})),
    "replace": Operation(prepare=import_and_damage, run=import_model, found=frozenset({0, 1})),
    "remove": Operation(prepare=import_model, run=remove, found=frozenset({0, 1})),
}


def die_at(step: int) -> None:
    """Kill this process at its `step`-th step from now."""
    left = step

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in _STEPS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def crash(operation: Operation, data: Path, source: Path, step: int) -> bool:
    """Run `operation` in a child that dies at `step`; return whether it got that far."""
    child = os.fork()
    if child == 0:
        die_at(step)
        operation.run(data, source)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def check(operation: Operation, data: Path, source: Path) -> None:
    """Look at the store as the next start does."""
    store = Store(data)
    store.sweep()
    scan = store.scan()
    assert scan.unusable == 0, "half a model was published"
    assert len(scan.manifests) in operation.found, f"{len(scan.manifests)} models"
    assert list((store.root / "staging").iterdir()) == [], "a leftover stays"
    shelves = list((store.root / "models").iterdir())
    assert len(shelves) == len(scan.manifests), "an empty folder stays"
    store.close()
    for manifest in scan.manifests:
        assert run_import(data, source).revision == manifest.revision


def main(folder: Path, name: str) -> None:
    """Crash the operation at every step."""
    source = good_folder(folder / "source")
    operation = OPERATIONS[name]
    for step in range(1, _STEPS_MAX):
        data = folder / "data"
        operation.prepare(data, source)
        reached = crash(operation, data, source, step)
        try:
            check(operation, data, source)
        except AssertionError as error:
            raise AssertionError(f"after a crash at step {step}: {error}") from error
        shutil.rmtree(data)
        if not reached:
            print(step - 1)  # noqa: T201 - the answer
            return
    raise AssertionError("it never ends")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
