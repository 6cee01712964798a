"""Routes of the plans file, with the meters that the app has recorded in their requests."""

from __future__ import annotations

import logging
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

from meterkit.catalog.route_notes import is_limited
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
    """The routes by which requests are decided; for any thread.

    A request asks whether anything is left of each meter that its route can add to. Where the app records a
    meter that the file does not name for the route, the route asks for it from then on, in this process.
    Nothing of this is stored: a new process learns by one request.

    Args:
        catalog: what is sold.
        former: those of the file before; what this process has learned of them stays. None: there was none.

    Attributes:
        current: in the order of the file; replaced as a whole when something is learned.
        learned: the line of a route to the meters that this process has learned.
        aliases: the line of a route, and a model that its requests name, to the models that answered.
    """

    def __init__(self, catalog: Catalog, former: LearnedRoutes | None = None) -> None:
        self.current = catalog.routes
        self.learned: dict[str, tuple[str, ...]] = {}
        self.aliases: dict[tuple[str, str], tuple[str, ...]] = {}
        self._catalog = catalog
        self._newest = {route.match: route for route in reversed(self.current)}
        self._known = {match: self._asked_by(route) for match, route in self._newest.items()}
        # A request that may be a poll asks for no tokens of `usage`, only for what the app records.
        self._known_of_polls = {
            match: self._asked_by(_as_poll(route)) for match, route in self._newest.items()
        }
        self._former: list[Route] = []  # The identity of a route stands for it as long as it lives.
        self._listeners: list[WeakMethod[Callable[[], None]]] = []
        self._lock = Lock()
        if former is not None:
            self.aliases |= former.aliases
            for match, names in former.learned.items():
                self._extend(match, [name for name in names if name in catalog.meters], is_poll=True)

    def newest(self, match: str) -> Route | None:
        """The route with this line of the file; None: the file has none."""
        return self._newest.get(match)

    def notify(self, listener: Callable[[], None]) -> None:
        """Call a method whenever something is learned, as long as its object lives."""
        with self._lock:
            self._listeners = [known for known in self._listeners if known() is not None]
            self._listeners.append(WeakMethod(listener))

    def learn(self, route: Route, meters: AbstractSet[str]) -> None:
        """Add meters that a request has used to those that its route asks for.

        Args:
            route: a route of the file, or one made of it.
            meters: those that were used.
        """
        known = self._known_of_polls if route.is_poll else self._known
        if meters <= known.get(route.match, _NONE):
            return
        new = self._extend(route.match, meters, is_poll=route.is_poll)
        for listener in self._listeners:
            if (call := listener()) is not None:
                call()
        limited = [name for name in new if is_limited(name, self._catalog.plans.values())]
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
        """Note the model that answered a request: requests like it ask for its limits from now on.

        Only where that matters: most providers answer with a longer name of the same model.

        Args:
            route: of the request.
            answered: the model that the response names.
            requested_models: reads the models that the request names.
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
        """The models that may answer a request which names some; none: any may."""
        aliases = self.aliases
        if not aliases:
            return requested
        return (*requested, *(name for model in requested for name in aliases.get((route.match, model), ())))

    def _extend(self, match: str, meters: Iterable[str], *, is_poll: bool) -> list[str]:
        """Replace a route by one that asks for more meters; return the new ones."""
        with self._lock:
            found = self._newest.get(match)
            if found is None or found.always:  # An `always` route is served whatever was used.
                return []
            known = self._known_of_polls if is_poll else self._known
            new = sorted(set(meters) - known[match])
            if new:
                newest = replace(found, records=(*found.records, *new))
                self.current = tuple(newest if route is found else route for route in self.current)
                self.learned[match] = (*self.learned.get(match, ()), *new)
                self._newest[match] = newest
                self._known[match] = self._asked_by(newest)
                self._known_of_polls[match] = self._asked_by(_as_poll(newest))
                self._former.append(found)
            return new

    def _asked_by(self, route: Route) -> frozenset[str]:
        held = () if route.is_poll else (reserve.meter for reserve in route.reserve)
        return frozenset((*additions_of(route, self._catalog.meters), *held))


def _as_poll(route: Route) -> Route:
    return replace(route, is_poll=True)
