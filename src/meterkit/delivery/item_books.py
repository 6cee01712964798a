"""Compares invoice items for late usage with Stripe's: the units that the store says they bill."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterkit.customers.history import is_relinked
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.delivery.invoice_items import late_units_at_stripe
from meterkit.delivery.invoices import units_of
from meterkit.delivery.stripe_books import unless_gone
from meterkit.outbox.late_items import usage_key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi


class ItemBook(NamedTuple):
    """Units of a meter and period that invoice items bill.

    Attributes:
        units: by the store, those of items that wait included.
        advice: what a person must do; empty: nothing.
    """

    units: int
    advice: str


async def item_books(
    store: Store, api: StripeApi, usage: CustomerUsage, stripe_customer: str | None, meters: Sequence[str]
) -> Mapping[str, ItemBook]:
    """By meter, the units that invoice items bill; meters without any are left out.

    Args:
        store: where they are counted.
        api: the way to Stripe, which is asked only if there are any.
        usage: of a customer in a period.
        stripe_customer: whom the customer is linked to; None: to none.
        meters: by name.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    customer, start_ms = usage["customer"], to_ms(usage["period"]["start"])
    if not (late := [name for name in meters if usage["meters"][name]["late"]]):
        return {}
    admin, totals = await store.admin(), store.keys.customer(customer).totals
    fields = [f"{start_ms}|{meter_token(name)}{letter}" for name in late for letter in "af"]
    kept = iter(await admin.ask(admin.client.hmget(totals, fields)))
    counts = {name: (int(next(kept) or 0), int(next(kept) or 0)) for name in late}
    ours = {name: ItemBook(sum(units), "") for name, units in counts.items() if any(units)}
    if stripe_customer is None or await is_relinked(store, customer, usage["period"]["start"]):
        return ours
    found = await unless_gone(late_units_at_stripe(api, stripe_customer, start_ms))
    if found is None:
        return ours
    books: dict[str, ItemBook] = {}
    for name, (waiting, made) in counts.items():
        there = found.get(usage_key_of(customer, meter_token(name), start_ms), ())
        if waiting or made or there:
            advice = _advice(waiting, made, int(sum(map(units_of, there))))
            books[name] = ItemBook(waiting + made, advice)
    return books


def _advice(waiting: int, made: int, at_stripe: int) -> str:
    """What to do with the invoice items of a meter and period."""
    if waiting:
        return f"{waiting} late units wait for their invoice item: `meterkit flush` makes it, or says why not"
    if at_stripe < made:
        return (
            f"invoice items at Stripe have {at_stripe} of {made} late units: one was deleted there; if that"
            " was a mistake, bill the rest by an invoice item"
        )
    if at_stripe > made:
        return f"invoice items at Stripe have {at_stripe} late units, and {made} were billed: credit the rest"
    return ""
