"""The figures of the operator page, from the last snapshot or read with each visit, and their tiles."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.catalog.value_parsers import is_money, rounded_money
from meterkit.insights.overview.rows import ACTIVITY_DAYS, DELIVERY
from meterkit.insights.revenue.revenue_formulas import MOVES
from meterkit.insights.store_readings import read_deliveries, read_webhooks
from meterkit.notify.spikes import EVENT as SPIKE
from meterkit.notify.spikes import SpikesToday
from meterkit.pages.operator_lists import DAY_MINUTES, MINUTE_MS, Column, Row
from meterkit.store.daily_counts import DEGRADED_DAYS
from meterkit.store.message_queue import CHANNELS, MessageQueue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.insights.overview.rows import CustomerTotals, DailyActivity, OverviewFigures, RevenueFigures
    from meterkit.store.store import Store

FIGURE_COLUMNS: Final = tuple(
    Column(name, name) for name in ("section", "row", "figure", "value", "currency")
)
Kind = Literal["number", "micro", "cents", "share"]
_REVENUE: Final[tuple[tuple[str, str, Kind, str], ...]] = (
    ("mrr", "Monthly recurring revenue", "micro", "paying"),
    ("customers", "Paying customers", "number", "paying"),
    ("arpa", "Revenue per paying customer", "micro", "paying"),
    ("ltv", "Lifetime value of a customer", "micro", "paying"),
    ("nrr", "Net revenue retention, one month", "share", "kept"),
    ("grr", "Gross revenue retention, one month", "share", "kept"),
    ("customer_churn", "Customers lost in the last month", "share", "changes churn"),
    ("gross_churn", "Revenue lost in the last month", "share", "changes churn contraction"),
    (
        "net_churn",
        "Revenue lost in the last month, less revenue won",
        "share",
        "changes churn contraction expansion reactivation",
    ),
    ("usage_revenue", "Usage billed in the last month", "micro", "usage"),
    ("forecast", "Recurring revenue expected in a month", "micro", ""),
    ("forecast_error", "Mean error of these forecasts", "share", ""),
)
"""Name, label and kind; the list that a figure opens, and its argument after the currency."""
_NONE: Final = {"mrr": 0, "customers": 0, "usage_revenue": 0}
"""Figures of a currency without paying customers; the others are unknown then."""
_EPOCH: Final = date(1970, 1, 1)
_DELIVERED: Final = "meter_events"
_GROWTH: Final = ("mrr", *MOVES, "customers")
_METERS_MAX: Final = 2
_CURRENCIES_MAX: Final = 2
_WIDTH, _HEIGHT = 120, 32


class Figure(NamedTuple):
    """One figure.

    Attributes:
        name: in JSON and CSV.
        label: on the page.
        value: None: unknown.
        kind: how the page shows it; ``micro``: millionths of the smallest unit of ``currency``; ``cents``:
            that unit; ``share``: a number that is 1 for the whole.
        opens: the list that the figure links to; empty: none.
        of: the argument of that list, such as a plan.
        currency: of an amount.
        row: of the section's table; empty: the section has none.
    """

    name: str
    label: str
    value: float | None
    kind: Kind = "number"
    opens: str = ""
    of: str = ""
    currency: str = ""
    row: str = ""


class Section(NamedTuple):
    """A section of figures.

    Attributes:
        name: in JSON, CSV and as the anchor on the page.
        title: its heading.
        figures: in the order of the page.
        note: a note on the page, such as why there are no figures.
        headings: of a table: of its rows, then of each column; a row has as many figures as columns.
        charted: the figure that a chart shows; rows are then days.
        currency: of all its amounts; empty: it has none.
    """

    name: str
    title: str
    figures: Sequence[Figure]
    note: str = ""
    headings: Sequence[str] = ()
    charted: str = ""
    currency: str = ""


def customer_sections(totals: CustomerTotals, catalog: Catalog) -> Sequence[Section]:
    """Make the sections about customers and plans, from a snapshot."""
    statuses, accesses = totals["statuses"], totals["accesses"]
    customers = [
        Figure("customers", "Customers", totals["customers"], opens="all"),
        Figure("refused", "Refused now", totals["refused"], opens="refused"),
        Figure("near", "Near a limit (80 % or more)", totals["near"], opens="near"),
        Figure("past_due", "Past due", statuses.get("past_due", 0), opens="past_due"),
        Figure("unlinked", "Usage of unlinked customers", totals["unlinked"], opens="unlinked"),
        *(
            Figure(
                f"access_{access}", f"Access: {access}", accesses.get(access, 0), opens="access", of=access
            )
            for access in ("grace", "restricted", "suspended")
        ),
    ]
    names = {key: plan.name for key, plan in catalog.plans.items()}
    plans = [
        Figure(key, names.get(key, key), totals["plans"].get(key, 0), opens="plan", of=key)
        for key in (*names, *(key for key in totals["plans"] if key not in names))
    ]
    return [Section("customers", "Customers", customers), Section("plans", "Customers by plan", plans)]


def delivered_section(totals: CustomerTotals) -> Section:
    """Make the section about delivery of this period's usage, by meter."""
    figures = [
        Figure(
            name=state,
            label=f"{meter}: {state}",
            value=units[state],
            opens="delivered" if units[state] else "",
            of=f"{state} {meter}",
            row=meter,
        )
        for meter, units in totals["meters"].items()
        for state in DELIVERY
    ]
    note = "" if figures else "No usage of this period is sent to Stripe."
    headings = ("Meter", *(state.capitalize() for state in DELIVERY)) if figures else ()
    return Section("delivered", "Delivery of this period's usage to Stripe", figures, note, headings)


def revenue_sections(revenue: RevenueFigures | None, catalog: Catalog) -> Sequence[Section]:
    """Make the sections about revenue, one per currency, from a snapshot."""
    if revenue is None:
        return [Section("revenue", "Revenue", (), "There is no snapshot of revenue yet.")]
    found: list[Section] = []
    paid = {currency for figures in revenue["figures"].values() for currency in figures}
    paid |= {currency for _, currency, _ in revenue["growth"]}
    if not paid or len(catalog.currencies) > 1:
        paid |= set(catalog.currencies)
    for currency in sorted(paid):
        figures = [
            Figure(
                name,
                label,
                revenue["figures"][name].get(currency, _NONE.get(name)),
                kind,
                opens.partition(" ")[0],
                f"{currency} {opens.partition(' ')[2]}".strip(),
                currency,
            )
            for name, label, kind, opens in _REVENUE
        ]
        if currency == catalog.currency:
            cac, won = revenue["cac"], f"{currency} new"
            figures.append(Figure("cac", "Cost of a new customer", cac, "cents", "changes", won, currency))
        title = f"Revenue in {currency.upper()}"
        note = f"At the end of {revenue['day']} (UTC)."
        found.append(Section(f"revenue_{currency}", title, figures, note, currency=currency))
        found += [_plans_section(revenue, currency, catalog), _growth_section(revenue, currency)]
    return found


def _plans_section(revenue: RevenueFigures, currency: str, catalog: Catalog) -> Section:
    names = {key: plan.name for key, plan in catalog.plans.items()}
    figures = [
        Figure(plan, names.get(plan, plan), mrr, "micro", "paying", f"{currency} {plan}", currency)
        for plan, of, mrr in revenue["plans"]
        if of == currency
    ]
    title = f"Revenue by plan in {currency.upper()}"
    note = "" if figures else "No plan has paying customers."
    return Section(f"plans_{currency}", title, figures, note, currency=currency)


def _growth_section(revenue: RevenueFigures, currency: str) -> Section:
    figures = [
        Figure(
            name=name,
            label=f"{name} on {day}",
            value=moved[name],
            kind="number" if name == "customers" else "micro",
            opens=("moves" if name in MOVES else "paying") if moved[name] else "",
            of=f"{day} {currency} {name}" if name in MOVES else f"{day} {currency}",
            currency=currency,
            row=day,
        )
        for day, of, moved in revenue["growth"]
        if of == currency
        for name in _GROWTH
    ]
    title = f"Growth in {currency.upper()}"
    if not figures:
        note = "There was no revenue in the last thirty days."
        return Section(f"growth_{currency}", title, (), note, currency=currency)
    return Section(
        name=f"growth_{currency}",
        title=title,
        figures=figures,
        note="Daily change of revenue: new + expansion + reactivation, minus contraction and churn.",
        headings=(
            "Day (UTC)",
            "Revenue",
            "New",
            "Expansion",
            "Reactivation",
            "Contraction",
            "Churn",
            "Paying",
        ),
        charted="mrr",
        currency=currency,
    )


def figures_json(sections: Iterable[Section]) -> Mapping[str, Mapping[str, object]]:
    """Arrange the figures by section, by row if the section has a table, and by name."""
    found: dict[str, dict[str, object]] = {}
    for section in sections:
        rows: dict[str, dict[str, object]] = {}
        for figure in section.figures:
            rows.setdefault(figure.row, {})[figure.name] = figure.value
        found[section.name] = {**rows.pop("", {}), **rows}
    return found


def figure_rows(sections: Iterable[Section]) -> list[Row]:
    """Arrange the figures for CSV, one per row."""
    return [
        {
            "section": section.name,
            "row": figure.row,
            "figure": figure.name,
            "value": figure.value,
            "currency": figure.currency,
        }
        for section in sections
        for figure in section.figures
    ]


def activity_sections(activity: DailyActivity, catalog: Catalog) -> Sequence[Section]:
    """Make the section of usage and deliveries by day, from a snapshot; none without any."""
    if not (activity["usage"] or activity["deliveries"]):
        return []
    by_day: dict[int, dict[str, int]] = {}
    for day, name, units in activity["usage"]:
        by_day.setdefault(day, {})[name] = units
    for day, count in activity["deliveries"]:
        by_day.setdefault(day, {})[_DELIVERED] = count
    names = shown_meters(activity, catalog)
    titles = {name: catalog.meters[name].title for name in names}
    if activity["deliveries"] or not (titles and catalog.billing.is_by_lines):
        titles[_DELIVERED] = "Meter events delivered"
    figures = [
        Figure(name, titles[name], found.get(name, 0), row=f"{_EPOCH + timedelta(days=day)}")
        for day, found in sorted(by_day.items())
        for name in titles
    ]
    return [
        Section(
            name="activity",
            title="Usage and deliveries by day",
            figures=figures,
            headings=("Day (UTC)", *titles.values()),
            charted=next(iter(titles)),
        )
    ]


async def live_sections(store: Store, degraded: Mapping[int, int]) -> Sequence[Section]:
    """Read backlogs and failures, in few round trips regardless of the number of customers.

    Args:
        store: of the customers.
        degraded: requests decided without the store, by minute since 1970.

    Raises:
        StoreError: the store does not answer.
    """
    waiting, webhooks = await read_deliveries(store), await read_webhooks(store)
    messages = [await MessageQueue(store, channel).count() for channel in CHANNELS]
    outbox = [
        Figure(state, f"Deliveries {state}", waiting[state].items, opens="outbox", of=opened)
        # `queued` includes intents that are being sent.
        for state, opened in (("queued", ""), ("parked", "parked"), ("dead", "dead"))
    ]
    items = Figure(
        "invoice_items", "Waiting invoice items and lines", waiting["invoice_items"].items, opens="outbox"
    )
    spikes = await SpikesToday(store).count()
    since = store.now_ms() // MINUTE_MS - DAY_MINUTES
    today = sum(minute > since for minute in degraded)
    waits = sum(found.due + found.later for found in messages)
    dead = sum(len(found.dead) for found in messages)
    unconfirmed = Figure(
        "unconfirmed",
        "Periods without a confirmed invoice",
        waiting["unconfirmed"].items,
        opens="unconfirmed",
    )
    return [
        Section(
            "spikes",
            "Spikes",
            [Figure("spiking", "Unusually high usage today", spikes, opens="spiking")],
            ""
            if _detects_spikes(store)
            else "To detect spikes, list usage.spike under notify in the plans file.",
        ),
        Section("outbox", "Deliveries and invoices at Stripe", [*outbox, items, unconfirmed]),
        Section(
            "webhooks",
            "Stripe webhooks",
            [Figure("dead", "Dead webhooks", webhooks["dead"].items, opens="webhooks")],
        ),
        Section(
            "messages",
            "Messages to customers",
            [
                Figure("waiting", "Waiting messages", waits, opens="messages", of="waiting"),
                Figure("dead", "Dead messages", dead, opens="messages", of="dead"),
            ],
        ),
        Section(
            "degraded",
            "Minutes without the store",
            [
                Figure("day", "In 24 hours", today, opens="degraded", of="day"),
                Figure("month", f"In {DEGRADED_DAYS} days", len(degraded), opens="degraded"),
            ],
            "Minutes in which a process decided requests without the store.",
        ),
    ]


def _detects_spikes(store: Store) -> bool:
    notify = store.catalog.notify
    channels = (notify.webhook, notify.email)
    return any(channel is not None and SPIKE in channel.events for channel in channels)


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
        found += _usage_tiles(figures["activity"], catalog, today)
        found += _delivery_tiles(figures["activity"], waiting, catalog, today)
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
