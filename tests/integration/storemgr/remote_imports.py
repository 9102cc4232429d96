"""Imports of remote sources in this process: a real store, a real server, short waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.storemgr.adapters import NativeDisk
from services.storemgr.importer import Importer, ImportOrder
from services.storemgr.manifest import Manifest
from services.storemgr.ports import Disk, Job
from services.storemgr.progress import ImportProgress
from services.storemgr.remotes.fetch import FetchLimits
from services.storemgr.remotes.fetcher import Fetcher
from services.storemgr.remotes.pace import Backoff, Pace
from services.storemgr.remotes.permits import parse_permits
from services.storemgr.remotes.sources import SourceRules
from services.storemgr.remotes.workplaces import Workplaces
from services.storemgr.source import parse_source
from services.storemgr.store import Store


@dataclass(slots=True, kw_only=True)
class Imports:
    """Imports into one store."""

    store: Store
    sources: str  # the operator's rules
    tries: int = 3
    stall_s: float = 10.0
    streams: int = 4
    bytes_per_s: int | None = None
    disk: Disk = field(default_factory=NativeDisk)
    told: list[ImportProgress] = field(default_factory=list)

    def run(
        self, url: str, *, name: str = "tiny", as_is: bool = False, job: Job | None = None
    ) -> Manifest:
        """Import `url` and return what is stored."""
        backoff = Backoff(tries_max=self.tries, first_s=0.01, pause_s_max=0.05)
        rules = SourceRules(
            permits=parse_permits(self.sources),
            limits=FetchLimits(streams=self.streams, backoff=backoff),
            pace=Pace(self.bytes_per_s),
            stall_s=self.stall_s,
        )
        fetcher = Fetcher(rules, Workplaces(self.fetches, keep_s=3600))
        importer = Importer(self.store, self.disk, fetcher, hard_links=True)
        order = ImportOrder(source=parse_source(url, name, as_is=as_is), after=None)
        return importer.run(order, job or self.disk.new_job(), self.told.append)

    @property
    def fetches(self) -> Path:
        """Where unfinished imports wait."""
        return self.store.root / "fetches"

    @property
    def unfinished(self) -> int:
        """Return how many there are."""
        return len(list(self.fetches.iterdir())) if self.fetches.exists() else 0

    def assert_nothing_stored(self) -> None:
        """Nothing was published, not in part either, and nothing lies about half-made."""
        assert self.store.scan().manifests == ()
        assert list((self.store.root / "staging").iterdir()) == []
        assert list((self.store.root / "models").iterdir()) == []


@contextmanager
def imports_into(folder: Path, sources: str) -> Iterator[Imports]:
    """Give imports into a new store in `folder`."""
    store = Store(folder)
    try:
        yield Imports(store=store, sources=sources)
    finally:
        store.close()
