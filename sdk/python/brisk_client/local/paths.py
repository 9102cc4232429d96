"""The data folder of a local cluster: what lies where in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import EACCES
from pathlib import Path
from typing import Self

from brisk_client.local.errors import FolderError

DATA_FOLDER_VARIABLE = "BRISK_DATA_DIR"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that holds all state of one cluster on this machine."""

    root: Path

    @classmethod
    def default(cls) -> Self:
        """Return BRISK_DATA_DIR, else $XDG_DATA_HOME/brisk, else ~/.local/share/brisk."""
        if chosen := os.environ.get(DATA_FOLDER_VARIABLE):
            return cls.at(chosen)
        if shared := os.environ.get("XDG_DATA_HOME"):
            return cls.at(Path(shared) / "brisk")
        return cls.at(Path.home() / ".local" / "share" / "brisk")

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Self:
        """Return the data folder at `path`, made absolute."""
        return cls(Path(path).expanduser().absolute())

    @property
    def run(self) -> Path:
        """Return the folder for what lives as long as the cluster runs."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """Return the folder of the services' logs."""
        return self.root / "logs"

    @property
    def redis(self) -> Path:
        """Return the folder of Redis' append-only file."""
        return self.root / "redis"

    @property
    def state_file(self) -> Path:
        """Return the file that tells others where the cluster is."""
        return self.run / "up.json"

    @property
    def lock_file(self) -> Path:
        """Return the file whose lock means that a cluster runs here."""
        return self.run / "up.lock"

    def node(self, node_id: str, *, only: bool) -> Path:
        """Return a node's own data folder; a cluster's only node uses the root itself."""
        return self.root if only else self.root / "nodes" / node_id

    def create(self) -> None:
        """Make the folders, private to this user. Raises FolderError if that cannot be."""
        for folder in (self.root, self.run, self.logs, self.redis):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise self.refused(exc) from exc
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise self.refused(PermissionError(EACCES, os.strerror(EACCES), str(folder)))

    def refused(self, error: OSError) -> FolderError:
        """Return why this cannot be a data folder, for people."""
        where = f" ({error.filename})" if error.filename not in {None, str(self.root)} else ""
        why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        return FolderError(
            f"{self.root} cannot be the data folder: {why}{where}; choose another one with "
            f"--data-dir or {DATA_FOLDER_VARIABLE}"
        )
