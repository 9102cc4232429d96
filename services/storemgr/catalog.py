"""Which models the store holds, by name and revision. The truth is the store's folder."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from services.common.errors import NotFoundError, Reason
from services.common.model import ModelRef
from services.common.names import ModelName, near_matches
from services.storemgr.manifest import Manifest


class Catalog:
    """The stored models. One owner: the event loop."""

    def __init__(self, manifests: Iterable[Manifest] = ()) -> None:
        self._revisions_of: dict[ModelName, dict[str, Manifest]] = {}
        for manifest in manifests:
            self.put(manifest)

    def put(self, manifest: Manifest) -> None:
        """Take in a model, or replace what is known about it."""
        self._revisions_of.setdefault(manifest.name, {})[manifest.revision] = manifest

    def remove(self, ref: ModelRef) -> Manifest | None:
        """Forget the model and return it, or None if it was not known."""
        revisions = self._revisions_of.get(ref.name, {})
        manifest = revisions.pop(ref.revision, None)
        if not revisions:
            self._revisions_of.pop(ref.name, None)
        return manifest

    def find(self, ref: ModelRef) -> Manifest:
        """Return the model; an empty revision stands for the one imported last.

        Raises NotFoundError (MODEL_NOT_FOUND).
        """
        revisions = self._revisions_of.get(ref.name)
        if not revisions:
            near = near_matches(ref.name, self._revisions_of)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise NotFoundError(
                f'model "{ref.name}" is not in the store{hint}', reason=Reason.MODEL_NOT_FOUND
            )
        if not ref.revision:
            return max(revisions.values(), key=lambda manifest: manifest.imported_at)
        if ref.revision not in revisions:
            raise NotFoundError(
                f'model "{ref.name}" is in the store, but not at revision {ref.revision}',
                reason=Reason.MODEL_NOT_FOUND,
            )
        return revisions[ref.revision]

    def get(self, ref: ModelRef) -> Manifest | None:
        """Return the model at just this revision, or None."""
        return self._revisions_of.get(ref.name, {}).get(ref.revision)

    def imported_last_at(self, name: ModelName) -> datetime | None:
        """Return when any revision of `name` was imported last."""
        times = (manifest.imported_at for manifest in self._revisions_of.get(name, {}).values())
        return max(times, default=None)

    def all(self) -> tuple[Manifest, ...]:
        """Return all models, sorted by name, then by time of import."""
        manifests = (
            manifest for revisions in self._revisions_of.values() for manifest in revisions.values()
        )
        return tuple(sorted(manifests, key=lambda each: (each.name, each.imported_at)))
