"""What the log says of requests that cannot be decided as they should: once, or one of many and how many."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from meterkit.asgi.sampler import Sampler
from meterkit.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route

__all__ = ["TroubleLog"]

_logger = logging.getLogger("meterkit.asgi")

_EVERY_S: Final = 10.0
_SHOWN_MAX: Final = 100


class TroubleLog:
    """Writes to the logger ``meterkit.asgi`` what is wrong with the store, the app or the plans file."""

    def __init__(self) -> None:
        self._store = Sampler(1, _EVERY_S, partial(_tell_more, "went undecided"))
        self._identify = Sampler(1, _EVERY_S, partial(_tell_more, "failed in identify"))
        self._others = Sampler(1, _EVERY_S, partial(_tell_more, "met such an error"))
        self._wrong_types: set[type] = set()

    def undecided(self, error: Exception, route: Route) -> None:
        """The customer is known, but not whether the request may be served."""
        if isinstance(error, StoreError | SettingsError):
            if self._store.admits():
                policy = route.on_store_failure
                _logger.error("requests go undecided (on_store_failure: %s): %s", policy, error)
        elif self._others.admits():
            _logger.error("a request under the line %a could not be decided", route.match, exc_info=error)

    def unidentified(self, error: Exception, route: Route) -> None:
        """``identify`` raised."""
        if self._identify.admits():
            message = "identify raised: the customer of a request under the line %a could not be determined"
            _logger.error(message, route.match, exc_info=error)

    def wrong_type(self, found: object) -> None:
        """``identify`` returned what is neither a text nor None; said once of each type."""
        kind = type(found)
        if kind not in self._wrong_types:
            self._wrong_types.add(kind)
            _logger.error(
                "identify returned a value of type %s; allowed is a text, the customer's id, or None: return"
                " str(...) of it; until then the customer of such requests cannot be determined",
                kind.__name__,
            )

    def unmatched(self, source: str, scope: Scope) -> None:
        """No line of the plans file is about a request; the caller sees to it that this is said once."""
        _logger.warning(
            "%a matches no line under `routes` of %s: it passes undecided and uncounted; others that"
            ' do are not logged; a last line with match: "*" is about all that is left',
            f"{scope['method']} {scope['path']}"[:_SHOWN_MAX],
            source,
        )

    def without_mount(self, source: str, line: Route, found: Route | None, mount: str) -> None:
        """A line would have matched, had it the path of the mount; the caller sees to it as above."""
        method = "" if line.method is None else f"{line.method} "
        _logger.warning(
            "%s: the line %a does not match, as this app is mounted at %a and lines are written with that"
            " path: write %a; until then %s; others that lack it are not logged",
            source,
            line.match,
            mount[:_SHOWN_MAX],
            f"{method}{mount[:_SHOWN_MAX]}{line.path}",
            "such requests match no line" if found is None else f"such requests match {found.match!a}",
        )


def _tell_more(what: str, number: int) -> None:
    _logger.error("%d more requests %s within %.0f s", number, what, _EVERY_S)
