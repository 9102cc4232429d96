"""Where each deployment can be served now, and how much of it this router uses.

The table is fed by the scheduler's watch and corrected by what workers answer. It stays usable
when the watch ends: warm requests need neither a scheduler nor Redis. No clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.common.placement import Route
from services.router.ports import RouteUpdate

NOTHING_EXCLUDED: frozenset[str] = frozenset()


class RouteTable:
    """The routes by deployment, with this router's own count of sequences on each instance."""

    def __init__(self) -> None:
        self._by_deployment: dict[str, dict[str, Route]] = {}
        self._by_instance: dict[str, Route] = {}
        self._outstanding: dict[str, int] = {}  # outlives the route: its sequences finish
        self._avoided_until_s: dict[str, float] = {}
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._by_instance)

    def apply(self, update: RouteUpdate) -> frozenset[str]:
        """Take the changes in and return the deployments concerned; none if from an old leader."""
        if update.leader_epoch < self._epoch:
            return frozenset()
        self._epoch = update.leader_epoch
        changed = {route.deployment for route in update.upserted}
        gone = set(update.removed_instance_ids)
        if update.is_snapshot:
            gone |= self._by_instance.keys() - {route.instance_id for route in update.upserted}
        for instance_id in gone:
            if (route := self.drop(instance_id)) is not None:
                changed.add(route.deployment)
        for route in update.upserted:
            self.learn(route)
        return frozenset(changed)

    def learn(self, route: Route) -> None:
        """Add or replace a route and trust its instance again."""
        self._by_deployment.setdefault(route.deployment, {})[route.instance_id] = route
        self._by_instance[route.instance_id] = route
        self._avoided_until_s.pop(route.instance_id, None)

    def drop(self, instance_id: str) -> Route | None:
        """Forget a route and return it, or None if there was none."""
        route = self._by_instance.pop(instance_id, None)
        if route is None:
            return None
        routes = self._by_deployment[route.deployment]
        del routes[instance_id]
        if not routes:
            del self._by_deployment[route.deployment]
        self._avoided_until_s.pop(instance_id, None)
        return route

    def avoid(self, instance_id: str, until_s: float) -> None:
        """Send nothing new to an instance that could not be reached, for a while.

        The route stays: the scheduler knows better whether it is gone, and may itself be away.
        """
        if instance_id in self._by_instance:
            self._avoided_until_s[instance_id] = until_s

    def serves(self, deployment: str, excluded: frozenset[str], now_s: float) -> bool:
        """Return whether any instance of the deployment can be used, free or not."""
        return any(True for _ in self._usable(deployment, excluded, now_s))

    def take(self, deployment: str, excluded: frozenset[str], now_s: float) -> Route | None:
        """Take a slot on the instance with the least outstanding sequences, ties by id.

        Returns None if no usable instance has a free slot.
        """
        best: Route | None = None
        best_key = (0, "")
        for route in self._usable(deployment, excluded, now_s):
            outstanding = self._outstanding.get(route.instance_id, 0)
            key = (outstanding, route.instance_id)
            if outstanding < route.slots and (best is None or key < best_key):
                best, best_key = route, key
        if best is not None:
            self._outstanding[best.instance_id] = best_key[0] + 1
        return best

    def look(self, deployment: str, excluded: frozenset[str], now_s: float) -> Route | None:
        """Return the instance that `take` would prefer, slots free or not, and take none."""
        return min(
            self._usable(deployment, excluded, now_s),
            key=lambda route: (self.outstanding(route.instance_id), route.instance_id),
            default=None,
        )

    def give_back(self, instance_id: str) -> None:
        """Return a slot taken."""
        left = self._outstanding[instance_id] - 1
        if left:
            self._outstanding[instance_id] = left
        else:
            del self._outstanding[instance_id]

    def outstanding(self, instance_id: str) -> int:
        """Return this router's sequences on an instance."""
        return self._outstanding.get(instance_id, 0)

    def _usable(self, deployment: str, excluded: frozenset[str], now_s: float) -> Iterator[Route]:
        for instance_id, route in self._by_deployment.get(deployment, {}).items():
            if instance_id in excluded:
                continue
            if self._avoided_until_s and now_s < self._avoided_until_s.get(instance_id, 0.0):
                continue
            yield route
