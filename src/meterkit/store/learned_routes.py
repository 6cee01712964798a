"""Routes of the plans file, with the meters that the app has recorded in their requests."""

from __future__ import annotations

import logging
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Final

from meterkit.catalog.additions import additions_of
from meterkit.catalog.asked_limits import is_limited

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from meterkit.catalog import Catalog, Route

_logger = logging.getLogger("meterkit")
_NONE: Final = frozenset[str]()


class LearnedRoutes:
    """The routes by which requests are decided; for any thread.

    A request asks whether anything is left of each meter that its route can add to. Where the app records a
    meter that the file does not name for the route, the route asks for it from then on, in this process.
    Nothing of this is stored: a new process learns by one request.

    Args:
        catalog: what is sold.

    Attributes:
        current: in the order of the file; replaced as a whole when something is learned.
        on_change: called then.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.current = catalog.routes
        self._newest = {route.match: route for route in reversed(self.current)}
        self.on_change: list[Callable[[], None]] = []
        self._catalog = catalog
        self._known = {route.match: frozenset(additions_of(route, catalog.meters)) for route in self.current}
        self._former: list[Route] = []  # The identity of a route stands for it as long as it lives.
        self._lock = Lock()

    def newest(self, match: str) -> Route | None:
        """The route with this line of the file; None: the file has none."""
        return self._newest.get(match)

    def learn(self, route: Route, meters: AbstractSet[str]) -> None:
        """Have a route ask from now on for meters that a request of it has used.

        Args:
            route: a route of the file, or one made of it.
            meters: those that were used.
        """
        if not meters <= self._known.get(route.match, _NONE):
            self._add(route.match, meters)

    def _add(self, match: str, meters: AbstractSet[str]) -> None:
        with self._lock:
            found = self._newest.get(match)
            if found is None or found.always:  # An `always` route is served whatever was used.
                return
            new = sorted(meters - self._known[match])
            if not new:
                return
            learned = replace(found, records=(*found.records, *new))
            self.current = tuple(learned if route is found else route for route in self.current)
            self._newest[match] = learned
            self._known[match] = frozenset(additions_of(learned, self._catalog.meters))
            self._former.append(found)
        for listener in self.on_change:
            listener()
        limited = [name for name in new if is_limited(name, self._catalog.plans.values())]
        if limited:
            _logger.warning(
                "%s: requests of the route %a record %s, which plans limit and the route does not name: this"
                " process refuses further requests of it once nothing is left; write `records: [%s]` on the"
                " route, so that every process does so from its first request on",
                self._catalog.source,
                match,
                ", ".join(limited),
                ", ".join(dict.fromkeys((*found.records, *limited))),
            )
