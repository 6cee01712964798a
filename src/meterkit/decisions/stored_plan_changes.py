"""Compaction of a customer's stored plan changes: few are kept, and no allowance is less for it. Pure.

Within a period, a plan gives by the length of its time, and an add-on by its number times that. Their order
does not matter. So the plans between two changes of a period can be sorted: one span for each plan, divided
where the number of an add-on changes by one. The sums stay the same to the millisecond.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.allowance import PlanChange
from meterkit.decisions.periods import DAY_MS
from meterkit.decisions.rollover import AT_ONCE_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from meterkit.catalog.models import Bought

_KEPT_MS: Final = 400 * DAY_MS
_KEPT_MAX: Final = 64
UNKNOWN_PLAN: Final = ""
"""Plan before the oldest stored change: it gives nothing."""


class PlanSpan(NamedTuple):
    """A plan with its add-ons, and since when a customer has it.

    Attributes:
        plan: its key.
        from_ms: the first instant; -NEVER_MS: not known.
        is_priced: whether Stripe charged the change to it by the second, as one within a subscription.
        used: units that were included by its end; see :class:`~meterkit.decisions.allowance.PlanChange`.
        bought: the add-ons.
        is_lost: whether the plan stands for one that has left the plans file.
    """

    plan: str
    from_ms: int
    is_priced: bool
    used: tuple[tuple[str, int], ...] = ()
    bought: Bought = ()
    is_lost: bool = False

    def is_like(self, other: PlanSpan) -> bool:
        """Whether plan and add-ons are the same."""
        return self.plan == other.plan and self.bought == other.bought


def replace_lost_plans(spans: Sequence[PlanSpan], plans: Container[str]) -> Sequence[PlanSpan]:
    """Replace each plan that left the plans file by the one that its subscription changed to.

    What it gave is not known. Its time was paid for, and the default plan would give less.

    Args:
        spans: the plans of a customer, the oldest first.
        plans: the keys of the plans in the file.
    """
    found = list(spans)
    for nth in range(len(found) - 2, -1, -1):
        plan, following = found[nth].plan, found[nth + 1]
        if plan != UNKNOWN_PLAN and plan not in plans and following.is_priced:
            found[nth] = found[nth]._replace(plan=following.plan, is_lost=True)
    return found


def compact_plan_changes(
    changes: Sequence[PlanChange], at_ms: int, start_of: Callable[[int], int]
) -> tuple[PlanChange, ...]:
    """Drop changes older than 400 days; beyond 64 changes, merge those within each period.

    Merging loses the order and the instants of changes between the first and the last of a period, nothing
    else. If more than 64 are left, the oldest are dropped, and the time before gives nothing. The latest
    period keeps all: about as many as there are plans times add-ons.

    Args:
        changes: the oldest first.
        at_ms: instant of the latest.
        start_of: first instant of the period of an instant.
    """
    kept = [change for change in changes if change.until_ms > at_ms - _KEPT_MS]
    if len(kept) <= _KEPT_MAX:
        return tuple(kept)
    # Others refer to the latest change, and the beginning of the first is not known.
    kept = [kept[0], *_merge_within_periods(kept[:-1], start_of), kept[-1]]
    begun_ms = start_of(at_ms - 1) + AT_ONCE_MS
    before = sum(change.until_ms <= begun_ms for change in kept)
    dropped = min(len(kept) - _KEPT_MAX, before - 1)
    if dropped > 0:
        kept = kept[dropped:]
        kept[0] = kept[0]._replace(plan=UNKNOWN_PLAN, bought=())
    return tuple(kept)


def _merge_within_periods(
    changes: Sequence[PlanChange], start_of: Callable[[int], int]
) -> Iterator[PlanChange]:
    """Merge all but the first change. One that Stripe did not charge by the second stays where it is."""
    runs = tuple(accumulate(not change.is_priced for change in changes))

    def run_of(place: int) -> tuple[int, ...]:
        """Name the spans that can be sorted: they begin after a period's first minute, and end in it."""
        from_ms, until_ms = changes[place - 1].until_ms, changes[place].until_ms
        start_ms = start_of(from_ms)
        is_inside = from_ms > start_ms + AT_ONCE_MS and start_of(until_ms - 1) == start_ms
        return (start_ms, runs[place - 1]) if is_inside else (place,)

    for _, places in groupby(range(1, len(changes)), run_of):
        first, *others = places
        run = [changes[place] for place in (first, *others)]
        yield from _merge(run, changes[first - 1].until_ms) if others else run


def _merge(run: Sequence[PlanChange], from_ms: int) -> Iterator[PlanChange]:
    """Merge changes of one period by plan.

    A plan without a limit moves to its first place, with the most that it included: what was used on it stays
    included.
    """
    by_plan: dict[str, list[tuple[PlanChange, int]]] = {}
    edges = pairwise([from_ms, *(change.until_ms for change in run)])
    for change, (since_ms, until_ms) in zip(run, edges, strict=True):
        by_plan.setdefault(change.plan, []).append((change, until_ms - since_ms))
    for plan, parts in by_plan.items():
        used: dict[str, int] = {}
        for change, _ in parts:
            used |= {meter: max(units, used.get(meter, 0)) for meter, units in change.used}
        for bought, length_ms in _divide_by_addons(parts):
            from_ms += length_ms
            is_priced = from_ms < run[-1].until_ms or run[-1].is_priced
            yield PlanChange(plan, from_ms, is_priced, tuple(used.items()), bought)


def _divide_by_addons(parts: Sequence[tuple[PlanChange, int]]) -> Iterator[tuple[Bought, int]]:
    """Divide the time of one plan by its average add-ons, in whole numbers, each with its length (ms)."""
    total_ms = sum(length_ms for _, length_ms in parts)
    products = Counter[str]()
    for change, length_ms in parts:
        products.update({name: number * length_ms for name, number in change.bought})
    edges = sorted({0, total_ms, *(product % total_ms for product in products.values())})
    for begun_ms, ended_ms in pairwise(edges):
        numbers = (
            (name, product // total_ms + (product % total_ms > begun_ms))
            for name, product in sorted(products.items())
        )
        yield tuple(one for one in numbers if one[1]), ended_ms - begun_ms
