"""Check again what was touched since it was stored. Blocks.

A hard-linked file has another name outside the store, and whoever writes through that name
changes the model. The time of the last write gives it away; the checksums then decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.errors import DataLossError, Reason
from services.storemgr.manifest import Manifest, StoredFile
from services.storemgr.ports import Job
from services.storemgr.refusal import MalformedError
from services.storemgr.store import Store, identity


def verify(store: Store, manifest: Manifest, changed: Sequence[StoredFile], job: Job) -> Manifest:
    """Return the manifest with the new times of `changed`, files whose content is still the same.

    The store keeps them too. Raises DataLossError (CHECKSUM_MISMATCH) naming the first file that
    is not what was stored, OSError, and JobStoppedError once `job` is stopped.
    """
    folder = store.folder_of(manifest.ref)
    touched: dict[str, StoredFile] = {}
    for file in changed:
        try:
            size, modified_ns = identity(folder / file.name)
            same = size == file.size_bytes and file.checksums == job.checksum(
                folder / file.name, lambda _: None
            )
        except (FileNotFoundError, MalformedError):
            same, modified_ns = False, 0
        if not same:
            raise DataLossError(
                f'model "{manifest.name}" at {manifest.revision}: {file.name} was changed after '
                "its import; import it again",
                reason=Reason.CHECKSUM_MISMATCH,
                metadata={"file": file.name},
            )
        touched[file.name] = replace(file, modified_ns=modified_ns)
    files = tuple(touched.get(file.name, file) for file in manifest.files)
    verified = replace(manifest, files=files)
    store.restate(verified)
    return verified
