"""What the usage page shows of money: budgets, and where a balance is topped up. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypedDict

from meterkit.catalog.model_prices import sold_in
from meterkit.catalog.models import SPEND
from meterkit.decisions.periods import from_ms

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.rate_usage import RateUsage

_PERIOD: Final = f"{SPEND}-period"


class BudgetFigures(TypedDict):
    """A budget, in millionths of the currency.

    ``spent_micros`` includes what is set aside for requests in progress. ``resets_at`` is None where nothing
    has been spent of a day's or an hour's budget.
    """

    policy: str
    spent_micros: int
    limit_micros: int
    resets_at: datetime | None


class TopUpPage(TypedDict):
    """The page where a balance is topped up, and the amounts in minor units."""

    credit: str
    url: str
    amounts_cents: list[int]


def budgets_in(
    catalog: Catalog, usage: CustomerUsage, rates: Iterable[RateUsage], now_ms: int
) -> list[BudgetFigures]:
    """The budgets of a customer: that of the billing period first."""
    if not catalog.counts_spend:
        return []
    spend, found = usage["meters"][SPEND], list[BudgetFigures]()
    if spend["included"] != "unlimited":
        found.append(
            {
                "policy": _PERIOD,
                "spent_micros": spend["used"],
                "limit_micros": spend["included"],
                "resets_at": usage["period"]["end"],
            }
        )
    return found + [
        {
            "policy": rate["policy"],
            "spent_micros": rate["used"],
            "limit_micros": rate["limit"],
            "resets_at": from_ms(now_ms) + rate["reset_after"] if rate["reset_after"] > timedelta() else None,
        }
        for rate in rates
        if rate["meter"] == SPEND
    ]


def top_up_page(catalog: Catalog) -> TopUpPage | None:
    """Where customers buy a balance; None: none is sold, or no page of it is known."""
    sold = sold_in(catalog.credits)
    url = None if sold is None else sold[1].url or catalog.billing.portal_url
    if sold is None or url is None:
        return None
    return {"credit": sold[0], "url": url, "amounts_cents": list(sold[1].packs)}
