"""What a store manager can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from services.common.config import Listen, ServiceConfig
from services.storemgr.remotes.permits import parse_permits


def _checked_folder(given: Path) -> Path:
    if not given.is_absolute():
        raise ValueError("must be an absolute path")
    return given


def _checked_sources(given: str) -> str:
    parse_permits(given)
    return given


Sources = Annotated[str, AfterValidator(_checked_sources)]


class StoremgrConfig(ServiceConfig):
    """Settings of a store manager, BRISK_STOREMGR_*."""

    service: ClassVar[str] = "storemgr"
    purpose: ClassVar[str] = (
        "A store manager: keeps a node's model files, verified, and leases them to its workers."
    )

    data_dir: Annotated[Path, AfterValidator(_checked_folder)]
    """Absolute path of a folder of its own; the models are in its folder `store`."""
    store_bytes: int = Field(default=0, ge=0, le=2**50)
    """What its folder may hold, in bytes; imports beyond are refused. 0: as much as its file
    system."""
    hard_links: bool = True
    """Whether weights are linked where source and store share a file system; false copies them."""
    import_threads: int = Field(default=2, ge=1, le=64)
    """Imports that run at once."""
    imports_max: int = Field(default=32, ge=1, le=1024)
    """Imports that run or wait; more are refused."""
    file_threads: int = Field(default=4, ge=1, le=64)
    """Threads for short work on files."""
    leases_max: int = Field(default=2048, ge=1, le=4000)
    """Leases held at once; more are refused."""
    arena_bytes: int | None = Field(default=None, ge=0, le=2**46)
    """Memory for weights that all workers of the node share, in bytes; 0: none. Unset: a quarter of
    what it may use, but at most half of what is available."""
    arena_dir: Annotated[Path, AfterValidator(_checked_folder)] | None = None
    """Absolute path of a folder on a tmpfs in which that memory is a file, for workers in other
    containers that have the same folder at the same path. Unset: for this host's processes."""
    arena_residency_s: float = Field(default=5.0, ge=0.0, le=3600.0)
    """Seconds that a model stays in that memory at least."""
    sources: Sources = "file,s3,hf,http,https"
    """What may be imported, separated by commas: kinds (file, s3, hf, http, https) and places by
    their URL, such as s3://bucket/models, hf://owner, /srv/models or http://models.example:8080/. A
    kind of web source reaches public addresses only; a place that is named may have any."""
    source_streams: int = Field(default=8, ge=1, le=64)
    """Parts of a remote file that are read at once."""
    source_bytes_per_s: int = Field(default=0, ge=0)
    """The most bytes per second that all imports together read from remote sources; 0: no cap."""
    source_tries: int = Field(default=6, ge=1, le=20)
    """How often a part is asked for, with growing pauses, before its import fails."""
    source_stall_s: float = Field(default=20.0, ge=0.1, le=600.0)
    """Seconds in which a connection must bring 256 KiB or the rest; else it is tried anew."""
    source_keep_s: float = Field(default=86_400.0, ge=0.0)
    """Seconds that an unfinished remote import is kept for the next one to go on with."""
    chunks_listen: Listen = "127.0.0.1:0"
    """Where other store managers read stored chunks over HTTP, host:port; port 0: any."""
