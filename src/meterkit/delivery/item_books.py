"""Compares invoice items for late usage with Stripe's: the units that the store says they bill."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.catalog.amount_texts import money
from meterkit.customers.history import is_relinked
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.decisions.price_segments import item_segments, unit_amount_decimal
from meterkit.delivery.invoice_items import late_units_at_stripe
from meterkit.delivery.invoices import units_of
from meterkit.delivery.stripe_books import unless_gone
from meterkit.outbox.late_items import usage_key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.decisions.price_segments import Segment
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
    fields = [f"{start_ms}|{meter_token(name)}{letter}" for name in late for letter in "afn"]
    kept = iter(await admin.ask(admin.client.hmget(totals, fields)))
    counts: dict[str, tuple[int, int]] = {}
    priced: dict[str, list[Segment]] = {}
    for name in late:
        counts[name] = int(next(kept) or 0), int(next(kept) or 0)
        priced[name] = item_segments((next(kept) or b"").decode())
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
            terms = ItemTerms(start_ms // 1000, store.catalog.currency, priced[name])
            books[name] = ItemBook(waiting + made, advice or _advice_on_terms(terms, there))
    return books


class ItemTerms(NamedTuple):
    """The terms of the invoice items for the late usage of a meter and period.

    Attributes:
        start_s: the first second of the period.
        currency: of their prices.
        priced: their units by price.
    """

    start_s: int
    currency: str
    priced: Sequence[Segment]


def _advice_on_terms(terms: ItemTerms, there: Sequence[Mapping[str, Any]]) -> str:
    """Advice on items at Stripe with another amount, currency or period than they were made with."""
    names = ", ".join(str(item["id"]) for item in there)
    other = next((item["currency"] for item in there if item["currency"] != terms.currency), None)
    if other is not None:
        return f"the invoice items {names} are in {other}, and not in {terms.currency}: see who changed them"
    cents = sum(int(item["amount"]) for item in there)
    due = sum(
        (Fraction(unit_amount_decimal(one.label)) * one.overage for one in terms.priced), start=Fraction(0)
    )
    if abs(due - cents) > Fraction(len(there), 2):
        exact = money(round(due), terms.currency)
        return (
            f"the invoice items {names} for late units have {money(cents, terms.currency)}, and their price"
            f" comes to {exact}: see who changed them"
        )
    if any(item["period"]["start"] != terms.start_s for item in there):
        return f"the invoice items {names} for late units name another period: see who changed them"
    return ""


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
