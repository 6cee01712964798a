"""What a person must do where invoice lines and counted usage differ. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.delivery.invoices import MADE_WITHIN_MS

if TYPE_CHECKING:
    from meterkit.delivery.invoices import Invoiced

__all__ = ["advice_on_invoices"]


def advice_on_invoices(
    invoiced: Invoiced, counted: int, *, late: int, price: str, made_ms: int, now_ms: int
) -> str:
    """What to do; empty: the lines have what was counted, or cannot be compared.

    Args:
        invoiced: what is on invoice lines.
        counted: what Stripe has counted in the period.
        late: how much of that is late: no invoice needs to have it.
        price: of a unit, to stand behind a quantity; empty: not known. Where prices change within a period,
            this is the place to compare each (meter, price) by itself.
        made_ms: when Stripe made the invoice, or will.
        now_ms: now.
    """
    # Stripe invoices no less than nothing.
    expected = max(0, counted - late, min(counted, int(invoiced.quantity)))
    missing = expected - invoiced.quantity
    if invoiced.state == "unknown" or not missing:
        return ""
    names = ", ".join(invoiced.invoices)
    if invoiced.state == "draft":
        return (
            f"the draft {names} has {invoiced.quantity} of {expected}: Stripe brings it up to date when it"
            " becomes final"
        )
    if invoiced.state == "none" and now_ms < made_ms + MADE_WITHIN_MS:
        return f"{expected} are on no invoice yet: Stripe makes it within an hour or two"
    if missing > 0:
        where = f"invoice {names} has {invoiced.quantity}" if names else "no invoice line has them"
        return (
            f"{missing} of {expected} units that Stripe has counted{price} are on no invoice ({where}): see"
            " whether the subscription has the meter's price, then bill them by an invoice item"
        )
    if len(invoiced.subscriptions) > 1:
        return (
            f"billed twice: {names} have {invoiced.quantity}, and Stripe has counted {expected}: the"
            f" subscriptions {', '.join(invoiced.subscriptions)} bill the same meter; end one, and credit"
            f" {-missing} units{price}"
        )
    return (
        f"{names} has {invoiced.quantity}, and Stripe has counted {expected}: credit {-missing} units{price}"
    )
