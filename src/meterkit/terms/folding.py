"""Keeps a customer's terms short: what is long over becomes one row, and no allowance is less for it. Pure.

Within a period, a plan gives by the length of its time, and an add-on by its number times that. Their order
does not matter. So the plans between two rows of a period can be sorted: one row for each plan, divided where
the number of an add-on changes by one. The sums stay the same to the millisecond.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Final

from meterkit.terms.rows import (
    ADDONS,
    AT_ONCE_MS,
    BY_HAND,
    EVER_MS,
    NOTHING,
    PLAN,
    SOLD,
    UNKNOWN_PLAN,
    USED,
    Row,
    in_force,
    in_order,
    is_of_layer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from meterkit.catalog.models import Bought
    from meterkit.terms.rows import Terms

_KEPT_MS: Final = 400 * 86_400_000
_KEPT_MAX: Final = 256
_ONE_PLAN: Final = {PLAN, ADDONS}


def fold(terms: Terms, now_ms: int, start_of: Callable[[int], int]) -> Terms:
    """Make what ended more than 400 days ago one row; beyond 256 rows, sort the plans of each period.

    If more than 256 are left, the oldest become one, and the time before gives nothing.

    Args:
        terms: of a customer.
        now_ms: now.
        start_of: first instant of the period of an instant.
    """
    old = sum(row.since_ms <= now_ms - _KEPT_MS for row in terms)
    if old <= 1 and len(terms) <= _KEPT_MAX:
        return terms
    kept = in_order(terms)
    if old > 1:
        kept = [*_join(kept[:old]), *kept[old:]]
    if len(kept) > _KEPT_MAX:
        kept = _completed(_without_superseded(kept, start_of))
        kept = [kept[0], *_sort_plans(kept, start_of), kept[-1]]
    if len(kept) > _KEPT_MAX:
        dropped = len(kept) - _KEPT_MAX + 2
        last_ms = kept[dropped - 1].since_ms
        since = [row._replace(since_ms=last_ms) for row in _join(kept[:dropped])]
        kept = [*_join(kept[:dropped], {PLAN: UNKNOWN_PLAN, ADDONS: ()}), *since, *kept[dropped:]]
    return tuple(kept)


def _join(rows: Sequence[Row], changed: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """One row in place of some, with what holds after them, from ever; none where that is nothing."""
    last = rows[-1]
    known = {**in_force(rows, last.since_ms), **(changed or {}), USED: ()}
    facts = tuple(sorted(fact for fact in known.items() if fact[1] != NOTHING[fact[0]]))
    if facts:
        yield Row(EVER_MS, last.told_ms, last.source, facts)


def _without_superseded(rows: Sequence[Row], start_of: Callable[[int], int]) -> list[Row]:
    """Leave out facts that were set by hand and replaced within one period: they count in none."""
    found: list[Row] = []
    last: int | None = None
    for row in rows:
        if is_of_layer(row, BY_HAND):
            if last is not None and start_of(found[last].since_ms) == start_of(row.since_ms):
                known = {**dict(found.pop(last).facts), **dict(row.facts)}
                row = row._replace(facts=tuple(sorted(known.items())))  # noqa: PLW2901
            last = len(found)
        found.append(row)
    return found


def _completed(rows: Sequence[Row]) -> list[Row]:
    """Complete each row to all that is sold: another one may come to stand before it."""
    facts, found = dict(NOTHING), list[Row]()
    for row in rows:
        facts |= row.facts
        whole = {name: facts[name] for name in _ONE_PLAN} if is_of_layer(row, SOLD) else {}
        found.append(row._replace(facts=tuple(sorted({**whole, **dict(row.facts)}.items()))))
    return found


def _sort_plans(rows: Sequence[Row], start_of: Callable[[int], int]) -> Iterator[Row]:
    """All rows but the first and the last, those of one period that only change what is sold sorted."""

    def run_of(place: int) -> tuple[int, ...]:
        row, start_ms = rows[place], start_of(rows[place].since_ms)
        is_sorted = {name for name, _ in row.facts} <= _ONE_PLAN and row.since_ms > start_ms + AT_ONCE_MS
        is_inside = start_of(rows[place + 1].since_ms - 1) == start_ms
        return (start_ms,) if is_sorted and is_inside else (place, 0)

    for run, of_run in groupby(range(1, len(rows) - 1), run_of):
        places = [*of_run]
        yield from _merge(rows, places) if len(run) == 1 else (rows[place] for place in places)


def _merge(rows: Sequence[Row], places: Sequence[int]) -> Iterator[Row]:
    """Sort the times of one plan together."""
    by_plan: dict[str, list[tuple[Bought, int]]] = {}
    for place in places:
        facts, length_ms = dict(rows[place].facts), rows[place + 1].since_ms - rows[place].since_ms
        by_plan.setdefault(facts[PLAN], []).append((facts[ADDONS], length_ms))
    first = rows[places[0]]
    from_ms = first.since_ms
    for plan, parts in by_plan.items():
        for bought, length_ms in _divide_by_addons(parts):
            yield first._replace(since_ms=from_ms, facts=((ADDONS, bought), (PLAN, plan)))
            from_ms += length_ms


def _divide_by_addons(parts: Sequence[tuple[Bought, int]]) -> Iterator[tuple[Bought, int]]:
    """Divide the time of one plan by its average add-ons, in whole numbers, each with its length (ms)."""
    total_ms = sum(length_ms for _, length_ms in parts)
    products = Counter[str]()
    for bought, length_ms in parts:
        products.update({name: number * length_ms for name, number in bought})
    edges = sorted({0, total_ms, *(product % total_ms for product in products.values())})
    for begun_ms, ended_ms in pairwise(edges):
        numbers = (
            (name, product // total_ms + (product % total_ms > begun_ms))
            for name, product in sorted(products.items())
        )
        yield tuple(one for one in numbers if one[1]), ended_ms - begun_ms
