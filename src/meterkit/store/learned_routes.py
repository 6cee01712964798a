"""Routes of the plans file, with the meters that the app has recorded in their requests."""

from __future__ import annotations

import logging
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

from meterkit.catalog.entitlements import is_limited
from meterkit.catalog.routes import additions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from meterkit.catalog import Catalog, Route

_logger = logging.getLogger("meterkit")
_NONE: Final = frozenset[str]()
_ALIASES_MAX: Final = 1_000
_ANSWERS_MAX: Final = 20


class LearnedRoutes:
    """Routes by which requests are decided. Thread-safe.

    A request needs something left of each meter that its route can add to. If the app records a meter that
    the file does not name for the route, the route asks for it from then on, in this process only.

    Args:
        catalog: the plans file.
        former: routes of the file before, with learned meters that stay; None: there was none.

    Attributes:
        current: in the order of the file; replaced as a whole when something is learned.
        learned: ``match`` of a route to its learned meters.
        aliases: ``match`` of a route and a requested model to the models that answered.
    """

    def __init__(self, catalog: Catalog, former: LearnedRoutes | None = None) -> None:
        self.current = catalog.routes
        self.learned: dict[str, tuple[str, ...]] = {}
        self.aliases: dict[tuple[str, str], tuple[str, ...]] = {}
        self._catalog = catalog
        self._newest = {route.match: route for route in reversed(self.current)}
        self._known = {match: self._list_meters(route) for match, route in self._newest.items()}
        # A request that may be a poll asks for no tokens of `usage`, only for what the app records.
        self._known_of_polls = {
            match: self._list_meters(_as_poll(route)) for match, route in self._newest.items()
        }
        self._former: list[Route] = []  # Keeps them alive: the id of a route is a key elsewhere.
        self._listeners: list[WeakMethod[Callable[[], None]]] = []
        self._lock = Lock()
        if former is not None:
            self.aliases |= former.aliases
            for match, names in former.learned.items():
                self._add_meters(match, [name for name in names if name in catalog.meters], is_poll=True)

    def find_newest(self, match: str) -> Route | None:
        """Route with this ``match``; None: the file has none."""
        return self._newest.get(match)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call a method whenever a meter is learned, as long as its object lives."""
        with self._lock:
            self._listeners = [known for known in self._listeners if known() is not None]
            self._listeners.append(WeakMethod(listener))

    def learn(self, route: Route, meters: AbstractSet[str]) -> None:
        """Add the meters that a request has used to those of its route.

        Args:
            route: a route of the file, or one derived from it.
            meters: used meters.
        """
        known = self._known_of_polls if route.is_poll else self._known
        if meters <= known.get(route.match, _NONE):
            return
        new = self._add_meters(route.match, meters, is_poll=route.is_poll)
        if not new:
            return  # An `always` route learns nothing, nor does one that another thread has taught.
        for listener in self._listeners:
            if (call := listener()) is not None:
                call()
        limited = [name for name in new if is_limited(name, self._catalog.all_plans)]
        if limited:
            _logger.warning(
                "%s: requests of the route %a record %s, which plans limit and the route does not name: this"
                " process refuses further requests of it once nothing is left; write `records: [%s]` on the"
                " route, so that every process does so from its first request on",
                self._catalog.source,
                route.match,
                ", ".join(limited),
                ", ".join(self._newest[route.match].records),
            )

    def learn_alias(self, route: Route, answered: str, requested_models: Callable[[], Sequence[str]]) -> None:
        """Store the model that answered a request: requests like it ask for its limits from now on.

        Done only if the limits differ: most providers answer with a longer name of the same model.

        Args:
            route: of the request.
            answered: model in the response.
            requested_models: returns the models in the request.
        """
        meters = self._catalog.meters
        limits = {name for name, key in additions_of(route, meters, (answered,)).items() if key == "from"}
        named = requested_models() if limits else ()
        if len(named) != 1 or answered in named:
            return
        requested = named[0]
        key = (route.match, requested)
        known = self.aliases.get(key, ())
        asked = additions_of(route, meters, (requested, *known))
        if len(known) >= _ANSWERS_MAX or limits <= asked.keys():
            return
        with self._lock:
            if len(self.aliases) >= _ALIASES_MAX:
                del self.aliases[next(iter(self.aliases))]
            self.aliases[key] = (*known, answered)

    def models_of(self, route: Route, requested: Sequence[str]) -> Sequence[str]:
        """Models that may answer a request for some models; empty: any."""
        aliases = self.aliases
        if not aliases:
            return requested
        return (*requested, *(name for model in requested for name in aliases.get((route.match, model), ())))

    def _add_meters(self, match: str, meters: Iterable[str], *, is_poll: bool) -> list[str]:
        """Replace a route by one with more meters; return the new ones."""
        with self._lock:
            found = self._newest.get(match)
            if found is None or found.always:  # No usage refuses an `always` route.
                return []
            known = self._known_of_polls if is_poll else self._known
            new = sorted(set(meters) - known[match])
            if new:
                newest = replace(found, records=(*found.records, *new))
                self.current = tuple(newest if route is found else route for route in self.current)
                self.learned[match] = (*self.learned.get(match, ()), *new)
                self._newest[match] = newest
                self._known[match] = self._list_meters(newest)
                self._known_of_polls[match] = self._list_meters(_as_poll(newest))
                self._former.append(found)
            return new

    def _list_meters(self, route: Route) -> frozenset[str]:
        held = () if route.is_poll else (reserve.meter for reserve in route.reserve)
        return frozenset((*additions_of(route, self._catalog.meters), *held))


def _as_poll(route: Route) -> Route:
    return replace(route, is_poll=True)
