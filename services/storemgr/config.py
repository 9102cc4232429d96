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

    data_dir: Annotated[Path, AfterValidator(_checked_folder)]  # the store is the folder `store`
    hard_links: bool = True  # off: weights are copied even within one file system
    import_threads: int = Field(default=2, ge=1, le=64)  # imports that run at once
    imports_max: int = Field(default=32, ge=1, le=1024)  # running and waiting; more are refused
    file_threads: int = Field(default=4, ge=1, le=64)  # short work on files
    leases_max: int = Field(default=2048, ge=1, le=4000)  # below the server's limit of calls
