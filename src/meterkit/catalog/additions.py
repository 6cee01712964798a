"""Meters that a request of a route can add to: one table for decisions, `check`, `routes` and docs. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeAlias

from meterkit.catalog.units import USAGE_METERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog.models import Meter, Route

AdditionKey: TypeAlias = Literal["consume", "per_message", "usage_fields", "usage", "records", "from"]
"""The key of the route, or of the meter (`from`), that says so."""


def additions_of(
    route: Route, meters: Mapping[str, Meter], models: Sequence[str] = ()
) -> dict[str, AdditionKey]:
    """Each counter that a request of a route can add to, and the key that says so; `consume` is the last.

    Whatever is reserved is held before the app runs, and is not listed for that.

    Args:
        route: the route.
        meters: those of the plans file.
        models: that the request names; none: any model may answer it.
    """
    by_key = _named(route, meters).items()
    named: list[tuple[AdditionKey, str]] = [
        (key, name) for key, names in by_key for name in names if _is_counter(name, meters)
    ]
    found: dict[str, AdditionKey] = {}
    for key, name in named:
        found.setdefault(name, key)
    models = models or route.models(())
    # Token usage has a model, so it may count for derived meters; other quantities have none.
    sources = [name for key, name in named if key in {"usage", "records"} and name in USAGE_METERS]
    for name in sources:  # It grows: a derived meter may have parts of its own.
        for part in meters.values():
            if part.source == name and not part.is_row and _may_match(part, models):
                found.setdefault(part.name, "from")
                sources.append(part.name)
    return found


def charging_meters(meters: Mapping[str, Meter]) -> frozenset[str]:
    """The meters that a call of a language model adds to: tokens, and what calls are charged."""
    return USAGE_METERS.union(_charged(meters))


def reads_tokens(route: Route) -> bool:
    """Whether responses of a route are read for the token usage of calls that they answer."""
    return route.usage not in {"none", "fields"} and not route.is_poll


def is_fetched(usage: str, method: str) -> bool:
    """Whether `usage: auto` takes a response for work that an earlier request began."""
    return usage == "auto" and method not in {"POST", "WS"}


def _named(route: Route, meters: Mapping[str, Meter]) -> dict[AdditionKey, Iterable[str]]:
    return {
        "per_message": route.per_message,
        "usage_fields": route.usage_fields,
        "usage": [name for name in meters if _is_of_calls(name, meters)] if reads_tokens(route) else (),
        "records": route.records,
        "consume": route.consume,
    }


def _is_of_calls(name: str, meters: Mapping[str, Meter]) -> bool:
    return name in USAGE_METERS or meters[name].charges is not None


def _charged(meters: Mapping[str, Meter]) -> Iterator[str]:
    return (name for name, meter in meters.items() if meter.charges is not None)


def _is_counter(name: str, meters: Mapping[str, Meter]) -> bool:
    return name in meters and meters[name].kind == "counter"


def _may_match(derived: Meter, models: Sequence[str]) -> bool:
    pattern = derived.where.get("model")
    return not models or pattern is None or any(fnmatchcase(model, pattern) for model in models)
