"""Usage of a customer's users, teams and other subjects: rows, and bars of the busiest."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from meterkit.catalog.models import SPEND
from meterkit.catalog.value_parsers import micros_per_minor_unit
from meterkit.pages.usage_bar import limit_bar, share_bar
from meterkit.store.subject_usage import usage_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.pages.usage_bar import UsageBar
    from meterkit.store.store import Store
    from meterkit.store.subject_usage import SubjectUsage

_READ_MAX: Final = 500
"""Subjects of a kind that a page reads, sorted by id."""
_BARS_MAX: Final = 5


class SubjectFigures(TypedDict):
    """Usage of a meter by a user, a team or another subject in this period.

    ``meter`` is ``spend`` for a budget: ``used`` and ``limit`` are then millionths of the currency, in the
    span ``per``. ``limit`` is None if there is no limit.
    """

    kind: str
    subject: str
    meter: str
    used: int
    limit: int | None
    per: str | None


class SubjectBar(NamedTuple):
    """The bar of a subject; without a limit it is a share of the busiest subject's usage."""

    subject: str
    used: int
    limit: int | None
    bar: UsageBar


class SubjectBars(NamedTuple):
    """The busiest subjects by a meter.

    Attributes:
        more: subjects that are not among the bars.
    """

    meter: str
    per: str | None
    bars: Sequence[SubjectBar]
    more: int


async def read_subjects(
    store: Store, catalog: Catalog, customer: str, plan: Plan | None
) -> list[SubjectFigures]:
    """Read the usage of subjects of each kind that the customer's plan declares.

    Raises:
        StoreError: the store does not answer.
    """
    kinds = () if plan is None else tuple(plan.subjects)
    found = [one for kind in kinds for one in await usage_by(store, customer, kind, most=_READ_MAX)]
    return subject_rows(catalog, found)


def subject_rows(catalog: Catalog, found: Iterable[SubjectUsage]) -> list[SubjectFigures]:
    """Arrange the usage of subjects by kind and meter, the busiest first. Pure."""
    shown = [
        name
        for name, meter in catalog.meters.items()
        if not (meter.is_row or meter.is_spend or meter.charges is not None)
    ]
    rows: list[SubjectFigures] = []
    for one in found:
        row = partial(SubjectFigures, kind=one.kind, subject=one.subject)
        rows += [
            row(meter=name, used=counts.recorded + counts.held, limit=counts.included, per=None)
            for name in shown
            if (counts := one.meters.get(name)) is not None
        ]
        if one.limit_cents is not None:
            limit = one.limit_cents * micros_per_minor_unit(catalog.currency)
            rows.append(row(meter=SPEND, used=one.spent_micros or 0, limit=limit, per=one.per))
    order = {name: nth for nth, name in enumerate((*shown, SPEND))}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    return sorted(
        rows, key=lambda row: (kinds.index(row["kind"]), order[row["meter"]], -row["used"], row["subject"])
    )


def subject_bars(rows: Iterable[SubjectFigures]) -> Mapping[str, Sequence[SubjectBars]]:
    """Make the bars of the busiest subjects of each kind, by meter. Pure."""
    found: dict[str, list[SubjectBars]] = {}
    for (kind, meter, per), of in groupby(rows, key=lambda row: (row["kind"], row["meter"], row["per"])):
        used = [row for row in of if row["used"]]
        bars = [
            SubjectBar(row["subject"], row["used"], row["limit"], _make_bar(row, used[0]["used"]))
            for row in used[:_BARS_MAX]
        ]
        if bars:
            found.setdefault(kind, []).append(SubjectBars(meter, per, bars, len(used) - len(bars)))
    return found


def _make_bar(row: SubjectFigures, most: int) -> UsageBar:
    limit = row["limit"]
    return share_bar(row["used"], most) if limit is None else limit_bar(row["used"], limit)
