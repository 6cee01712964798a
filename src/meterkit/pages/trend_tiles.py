"""Tiles of the operator page: a figure with its line of thirty days. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import is_money, rounded_money
from meterkit.insights.overview.rows import ACTIVITY_DAYS
from meterkit.pages.operator_lists import DAY_MINUTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.insights.overview.rows import DailyActivity, OverviewFigures, RevenueFigures

_METERS_MAX: Final = 2
_CURRENCIES_MAX: Final = 2
_WIDTH, _HEIGHT = 120, 32


class TrendTile(NamedTuple):
    """A figure with its line.

    Attributes:
        title: its heading.
        value: as text.
        note: compares it with an earlier one, in words.
        opens: anchor or list that has the details.
        points: of the line, in a box of 120 by 32; empty: too few days.
    """

    title: str
    value: str
    note: str
    opens: str
    points: str


def trend_tiles(
    figures: OverviewFigures | None,
    degraded: Mapping[int, int],
    waiting: Mapping[str, int],
    catalog: Catalog,
    today: int,
    *,
    currency: str = "",
) -> Sequence[TrendTile]:
    """Make the tiles: revenue, usage, deliveries, and minutes without the store.

    Args:
        figures: of the last snapshot; None: there is none.
        degraded: minutes since 1970 that a process decided without the store.
        waiting: numbers of meter events (``queued``) and of invoice lines (``invoice_items``) that wait.
        catalog: names the meters.
        today: days since 1970.
        currency: the only one to show; empty: the first two, each by itself.
    """
    found: list[TrendTile] = []
    if figures is not None:
        found += [] if figures["revenue"] is None else _revenue_tiles(figures["revenue"], catalog, currency)
        if (activity := figures.get("activity")) is not None:
            found += _usage_tiles(activity, catalog, today)
            found += _delivery_tiles(activity, waiting, catalog, today)
    minutes = _by_day(Counter(minute // DAY_MINUTES for minute in degraded), today)
    found.append(
        TrendTile(
            "Without the store",
            "1 minute" if sum(minutes) == 1 else f"{sum(minutes):,} minutes",
            f"in thirty days, {minutes[-1]:,} today",
            "degraded",
            line_points(minutes),
        )
    )
    return found


def shown_meters(activity: DailyActivity, catalog: Catalog) -> Sequence[str]:
    """List the used meters, without those of money and rows of prices by model; billed ones first."""
    used = {name for _, name, _ in activity["usage"]}
    shown = [
        meter
        for name, meter in catalog.meters.items()
        if name in used and not is_money(meter.unit) and not meter.is_row
    ]
    return [meter.name for meter in sorted(shown, key=lambda meter: meter.stripe is None)]


def line_points(values: Sequence[float]) -> str:
    """Place values on a line from left to right; 0 is at the bottom. Empty for fewer than two."""
    if len(values) < 2:  # noqa: PLR2004 - a line has two ends.
        return ""
    most, step = max(*values, 1), _WIDTH / (len(values) - 1)
    return " ".join(
        f"{nth * step:.1f},{_HEIGHT - 1 - (_HEIGHT - 2) * max(0.0, value) / most:.1f}"
        for nth, value in enumerate(values)
    )


def _by_day(units: Mapping[int, int], today: int) -> list[int]:
    return [units.get(today - back, 0) for back in range(ACTIVITY_DAYS - 1, -1, -1)]


def _revenue_tiles(revenue: RevenueFigures, catalog: Catalog, only: str) -> list[TrendTile]:
    by_currency: dict[str, list[int]] = {}
    for _, currency, moved in revenue["growth"]:
        if only in {"", currency}:
            by_currency.setdefault(currency, []).append(moved["mrr"])
    order = sorted(by_currency, key=lambda currency: (currency != catalog.currency, currency))
    return [
        TrendTile(
            "Recurring revenue",
            rounded_money(mrr[-1], currency),
            f"{rounded_money(mrr[0], currency)} {len(mrr) - 1} days before" if len(mrr) > 1 else "",
            f"#revenue_{currency}",
            line_points(mrr),
        )
        for currency in order[:_CURRENCIES_MAX]
        if (mrr := by_currency[currency])
    ]


def _usage_tiles(activity: DailyActivity, catalog: Catalog, today: int) -> list[TrendTile]:
    """Make a tile for each of two meters, those that are billed first."""
    by_meter: dict[str, dict[int, int]] = {}
    for day, name, units in activity["usage"]:
        by_meter.setdefault(name, {})[day] = units
    return [
        TrendTile(
            f"{catalog.meters[name].title} used",
            f"{sum(days):,}",
            f"in thirty days, {days[-2]:,} yesterday",
            "#activity",
            line_points(days),
        )
        for name in shown_meters(activity, catalog)[:_METERS_MAX]
        if (days := _by_day(by_meter[name], today))
    ]


def _delivery_tiles(
    activity: DailyActivity, waiting: Mapping[str, int], catalog: Catalog, today: int
) -> list[TrendTile]:
    """Make the tile of meter events, and where lines bill usage that of lines; no tile of no events then."""
    days, events, found = _by_day(dict(activity["deliveries"]), today), waiting["queued"], list[TrendTile]()
    if not catalog.billing.is_by_lines or any(days) or events:
        note = f"in thirty days, {events:,} {'waits' if events == 1 else 'wait'} now"
        found.append(TrendTile("Meter events delivered", f"{sum(days):,}", note, "outbox", line_points(days)))
    if catalog.billing.is_by_lines:
        lines = f"{waiting['invoice_items']:,}"
        found.append(TrendTile("Invoice lines waiting", lines, "of periods that have ended", "outbox", ""))
    return found
