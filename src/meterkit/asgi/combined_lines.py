"""Combined lines: the strictest line of a path that can be read in several ways, with terms of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Rate

COMBINATIONS_MAX: Final = 4096
_OF_MESSAGES, _METERED, _DECIDED = -1, 0, 1
_SHADOWED, _EXEMPT, _NO_LINE = 2, 4, 5


def rank_strictness(line: Route | None) -> int:
    """Rank a line, the strictest lowest: metered, decided, ``exempt`` or ``always``, none.

    One in shadow, or off, ranks below those that are enforced, whatever it counts.
    """
    if line is None:
        return _NO_LINE
    if line.exempt or line.always:
        return _EXEMPT
    shadowed = 0 if line.enforcement == "on" else _SHADOWED
    return shadowed + (_METERED if is_metered(line) else _DECIDED)


def is_metered(line: Route) -> bool:
    """Whether a line asks for more than a customer: for a feature or a quantity."""
    counts = line.consume or line.per_message or line.records or line.rates or _depends_on_body(line)
    return line.feature is not None or bool(counts and not line.always)


def _depends_on_body(line: Route) -> bool:
    """Whether the body of the request or of the response says what a line takes."""
    return bool(line.usage != "none" or line.reserve or line.storage or line.grow)


class LineCombiner:
    """Combines the lines that a request may fall under into one, which asks for what all of them ask for.

    Each combination is made once, as decisions are cached by it.

    Args:
        routes: in the order of the plans file.
        messages_first: whether lines of MCP messages are the strictest.
    """

    def __init__(self, routes: Sequence[Route], *, messages_first: bool) -> None:
        self._messages_first = messages_first
        self._order = {id(route): nth for nth, route in enumerate(routes)}
        self._combined: dict[tuple[object, ...], Route] = {}
        others = [route for route in routes if route.mcp is None]
        self._dearest = self.combine(others, is_crooked=True) if others else None

    def strictness(self, line: Route | None) -> tuple[int, bool, int]:
        """Sort key of lines, the strictest first."""
        is_first = self._messages_first and line is not None and line.mcp is not None
        rank = _OF_MESSAGES if is_first else rank_strictness(line)
        return rank, line is None or not _depends_on_body(line), self._order.get(id(line), 0)

    def combine(self, found: Sequence[Route | None], *, is_crooked: bool = False) -> Route | None:
        """Return the strictest of several lines, with the features of all of them.

        Args:
            found: the lines.
            is_crooked: whether a client writes such a path to hide which line it falls under.
        """
        line = min(found, key=self.strictness)
        if line is None or rank_strictness(line) != _METERED:
            return line
        enforced = [one for one in found if one is not None and rank_strictness(one) <= _DECIDED]
        terms = _features_of(line, *enforced) | (_terms_of_all(line, enforced) if is_crooked else {})
        return self._cache_line(line, terms, (id(line), repr(terms)))

    def add_gates(self, found: Route | None, gates: Sequence[Route]) -> Route | None:
        """Return the line that takes a request, with the features of gated lines that hold for it, too.

        A gate in shadow refuses no request, so it adds nothing to a line that is enforced.
        """
        kept = [gate for gate in gates if gate.enforcement == "on"]
        if not kept and (found is None or found.enforcement != "on"):
            kept = [*gates]
        if not kept:
            return found
        first = kept[0]
        line = found or Route(
            match=first.match,
            method=None,
            path=first.path,
            enforcement=first.enforcement,
            on_store_failure=first.on_store_failure,
            headers=first.headers,
        )
        terms = _features_of(line, *kept) | {"exempt": False, "always": False}
        return self._cache_line(line, terms, (id(found), *map(id, kept)))

    def _cache_line(self, line: Route, terms: dict[str, Any], key: tuple[object, ...]) -> Route | None:
        """Cache a line with other terms, unless a client could fill the memory with such lines."""
        combined = self._combined.get(key)
        if combined is None:
            combined = replace(line, **terms)
            if combined == line:
                return line
            if len(self._combined) >= COMBINATIONS_MAX:
                return self._dearest  # A client can write paths between many gates.
            self._combined[key] = combined
            self._order[id(combined)] = self._order.get(id(line), 0)
        return combined


def _features_of(*lines: Route) -> dict[str, Any]:
    """Terms of a line that takes the features of several; those of the first one come first."""
    named = (name for line in lines for name in (line.feature, *line.further_features) if name is not None)
    features = [*dict.fromkeys(named)]
    return {"feature": features[0] if features else None, "further_features": tuple(features[1:])}


def _terms_of_all(line: Route, enforced: Sequence[Route]) -> dict[str, Any]:
    """Terms of the dearest request that several lines take."""
    consume: dict[str, int] = {}
    for meter, quantity in (pair for one in (line, *enforced) for pair in one.consume.items()):
        consume[meter] = max(quantity, consume.get(meter, 0))
    may_repeat = {one.idempotency_header for one in enforced} == {line.idempotency_header}
    strict = any(one.on_store_failure == "deny" for one in enforced)
    return {
        "consume": consume,
        "rates": min((one.rates for one in enforced if one.rates), key=_slowest, default=()),
        "idempotency_header": line.idempotency_header if may_repeat else None,
        "on_store_failure": "deny" if strict else "allow",
    }


def _slowest(rates: Sequence[Rate]) -> float:
    return min(rate.limit / rate.window_ms for rate in rates)
