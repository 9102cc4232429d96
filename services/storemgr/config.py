"""What a store manager can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from services.common.config import ServiceConfig


def _checked_folder(given: Path) -> Path:
    if not given.is_absolute():
        raise ValueError("must be an absolute path")
    return given


class StoremgrConfig(ServiceConfig):
    """Settings of a store manager, BRISK_STOREMGR_*."""

    service: ClassVar[str] = "storemgr"
    purpose: ClassVar[str] = (
        "A store manager: keeps a node's model files, verified, and leases them to its workers."
    )

    data_dir: Annotated[Path, AfterValidator(_checked_folder)]
    """Absolute path of a folder of its own; the models are in its folder `store`."""
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
