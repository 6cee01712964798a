"""Cards of meters on the usage page, each with its bar, in the order of their urgency. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.pages.credit_balances import credit_balances, payable_units
from meterkit.pages.price_wording import price_text
from meterkit.pages.usage_bar import UsageBar
from meterkit.pages.usage_figures import beyond_included

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Catalog
    from meterkit.pages.usage_bar import Level
    from meterkit.pages.usage_figures import UsageFigures
    from meterkit.store.customer_usage import MeterUsage

_MOST_URGENT_FIRST: Final[Sequence[Level]] = ("reached", "near", "enough")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCard:
    """The card of a meter.

    Attributes:
        meter: its name.
        used: of the available quantity, or beyond it once nothing is left.
        bar: None if the quantity is unlimited, or the plan includes none of it.
        available: included quantity, with that of grants and credits; None: unlimited.
        left: of the available quantity; None: unlimited.
        granted: available by grants of the meter.
        credited: available by credits, with usage that they have paid for.
        beyond: overage of a counter, excess of a gauge.
        is_billed: usage beyond the available quantity is billed.
        expected: the forecast; None: there is none.
        expected_used: the forecast less usage that the available quantity does not pay.
        price: the price of usage beyond the available quantity, as customers read it; None: unknown.
    """

    meter: str
    used: int
    bar: UsageBar | None = None
    available: int | None = None
    left: int | None = None
    granted: int
    credited: int = 0
    beyond: int = 0
    is_billed: bool
    expected: int | None
    expected_used: int | None = None
    price: str | None = None

    @property
    def is_forecast_beyond(self) -> bool:
        """Whether the forecast reaches the available quantity, and usage has not yet."""
        available, expected = self.available, self.expected_used
        return available is not None and expected is not None and self.used < available <= expected


def meter_cards(catalog: Catalog, figures: UsageFigures) -> Sequence[MeterCard]:
    """Make the cards of meters: those at a limit first, then those near one, then the others.

    Meters of money are left out, as budget and balance have cards of their own; so are prices by model, and
    meters that the plans file no longer has.
    """
    plan, forecast = catalog.plans.get(figures["usage"]["plan"]), figures["forecast"]
    overage = {} if plan is None else {name: of.overage for name, of in plan.entitlements.items()}
    meters = figures["usage"]["meters"]
    balances = credit_balances(catalog, figures["usage"]["balance_micros"])
    ends = {} if forecast is None else forecast["meters"]
    found = [
        _make_card(
            name,
            counts,
            expected=ends[name].expected if name in ends else None,
            is_gauge=meter.kind == "gauge",
            is_billed=name in overage and overage[name].mode == "bill",
            has_credit=any(name in credit.costs for credit in catalog.credits.values()),
            payable=payable_units(balances, name),
            price=price_text(name, overage[name].rows if name in overage else None, meters, meter.unit),
        )
        for name, counts in meters.items()
        if (meter := catalog.meters.get(name)) is not None
        and not (meter.is_row or meter.is_spend or meter.charges is not None)
    ]
    return sorted(
        found, key=lambda card: _MOST_URGENT_FIRST.index("enough" if card.bar is None else card.bar.level)
    )


def _make_card(
    name: str,
    counts: MeterUsage,
    *,
    expected: int | None,
    is_gauge: bool,
    is_billed: bool,
    has_credit: bool,
    payable: int,
    price: str | None,
) -> MeterCard:
    used, granted, overage = counts["used"], counts["granted"], counts["overage"]
    if counts["included"] == "unlimited":
        return MeterCard(
            meter=name, used=used, granted=granted, is_billed=is_billed, expected=expected, price=price
        )
    included, remaining = counts["included"], counts["remaining"]
    available = included + granted
    if has_credit:  # What credits have paid for stays available once they are used up.
        available = max(available, counts["recorded"] - overage - counts["over_cap"])
    if is_billed and payable:
        available = max(available + payable, used - overage)  # A hold may have taken some of the balance.
    # Of billed overage and of a gauge's tolerance, something may remain without any credit.
    if remaining != "unlimited" and not is_billed and not is_gauge and remaining > max(0, available - used):
        available = used + remaining
    left = max(0, available - (used - overage))  # A grant does not pay for earlier overage.
    paid = used - overage if left else used
    # A period with earlier overage ends with it, too.
    expected_used = None if expected is None else expected - (used - paid)
    bar = None
    if available:
        bar = UsageBar(
            used_percent=100 * paid // available,
            forecast_percent=(
                None if expected_used is None else min(100.0, round(100 * expected_used / available, 1))
            ),
            included_percent=round(100 * included / available, 1),
        )
    return MeterCard(
        meter=name,
        used=paid,
        bar=bar,
        available=available,
        left=left,
        granted=granted,
        credited=available - included - granted,
        beyond=beyond_included(counts) if is_gauge else overage,
        is_billed=is_billed,
        expected=expected,
        expected_used=expected_used,
        price=price,
    )
