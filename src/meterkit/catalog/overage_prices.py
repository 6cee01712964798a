"""``price:`` of a plan's overage: each price by model has a meter, a Stripe event and a price of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from meterkit.catalog.entitlements import BillTable, EntitlementTable, OverageTable
from meterkit.catalog.errors import unknown
from meterkit.catalog.model_prices import PriceRows
from meterkit.catalog.models import Entitlement, Meter, Overage, StripeEvent
from meterkit.catalog.value_shapes import drop_refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.errors import FilePlace, Problems
    from meterkit.catalog.meters import Meters
    from meterkit.catalog.model_prices import ModelPrices
    from meterkit.catalog.models import Plan

ITEMS_MAX: Final = 20
"""So many items a subscription has at Stripe (https://docs.stripe.com/api/subscriptions/create#create_subscription-items)."""
LINES_MAX: Final = 100
"""Billed meters of a plan without meters at Stripe: the lines of two plans in a period fit on an invoice.

Stripe takes 250 items on an invoice (https://docs.stripe.com/api/invoiceitems/create).
"""
_MICRO: Final = 10**6
_PLAIN: Final = re.compile(r"[A-Za-z0-9._*?/@+-]{1,48}")
_OTHER: Final = re.compile(r"[^A-Za-z0-9._*?/@+-]+")
_WORD_MAX: Final = 39
_EVENT_NAME_MAX: Final = 100
_TITLE_MAX: Final = 250
_DEFAULT: Final = "(default)"


def make_price_rows(meter: str, table: ModelPrices) -> PriceRows:
    """The meters that count what is billed at each price of a table; a pattern has one everywhere."""
    models = tuple((pattern, f"{meter}:{_pattern_word(pattern)}") for pattern, _ in table.models)
    default = f"{meter}:{_DEFAULT}"
    prices = {
        default: table.default,
        **dict(zip(dict(models).values(), dict(table.models).values(), strict=True)),
    }
    return PriceRows(
        default=default,
        models=models,
        highest=max(prices, key=prices.__getitem__),
        has_default=bool(table.default),
        refuses_others=table.refuses_others,
    )


def is_row(name: str) -> bool:
    """Whether this is the name of a meter that counts what is billed at a price, of this file or another."""
    return ":" in name


def _pattern_word(pattern: str) -> str:
    if _PLAIN.fullmatch(pattern):
        return pattern
    return f"{_OTHER.sub('-', pattern)[:_WORD_MAX]}~{_digest(pattern)}"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _row_event_name(event_name: str, pattern: str) -> str:
    name = f"{event_name}:{_pattern_word(pattern)}"
    if len(name) <= _EVENT_NAME_MAX:
        return name
    digest = _digest(name)
    return f"{name[: _EVENT_NAME_MAX - len(digest) - 1]}~{digest}"


def bill_by_model(values: EntitlementTable | None) -> BillTable | None:
    """``bill:`` of what a plan says of a meter, where it names a table of prices; else None."""
    overage = None if values is None else values.overage
    bill = overage.bill if isinstance(overage, OverageTable) else None
    return bill if bill is not None and bill.price is not None else None


def build_rows(
    listed: Mapping[str, EntitlementTable | None],
    meters: Meters,
    tables: Mapping[str, ModelPrices | None],
) -> Meters:
    """The meters that the prices by model of one plan need.

    Args:
        listed: what the plan says of meters.
        meters: those of the file.
        tables: the prices by model.
    """
    built: Meters = {}
    for name, values in listed.items():
        bill, meter = bill_by_model(values), meters.get(name)
        if bill is None or bill.price is None or meter is None:
            continue
        table = tables.get(bill.price)
        why = _refusal_reason(meter, meters)
        if bill.price not in tables:
            bill.refuse("price", unknown("price table", bill.price, tables))
        elif why is not None:
            bill.refuse("price", why)
        elif table is not None and meter.stripe is not None:
            built |= _build_row_meters(meter, meter.stripe, table)
    taken = {meter.stripe.event_name: meter.name for meter in drop_refused(meters).values() if meter.stripe}
    for row in drop_refused(built).values():
        if row.stripe is not None and row.stripe.event_name in taken and row.source is not None:
            bill = bill_by_model(listed[row.source])
            message = (
                f"these prices need the event name {row.stripe.event_name!r}, which the meter"
                f" {taken[row.stripe.event_name]} has; give that meter another one"
            )
            if bill is not None:
                bill.refuse("price", message)
    return built


def _refusal_reason(meter: Meter, meters: Meters) -> str | None:
    """Why the overage of a meter cannot be priced by model; None: it can."""
    if meter.source is not None:
        return f"{meter.name} is a part of {meter.source}; give the price of {meter.source}"
    if meter.stripe is not None and meter.stripe.report == "usage":
        return f"{meter.name} has `report: usage`; prices by model need `report: overage`"
    parts = [
        part.name
        for part in drop_refused(meters).values()
        if part.source == meter.name and part.stripe is not None
    ]
    if parts:
        named = ", ".join(parts)
        return (
            f"{named} sends units of {meter.name} under an event of its own, and so do prices by model;"
            f" remove `stripe` of {named}, or give `per` and `amount_cents`"
        )
    return None


def _build_row_meters(meter: Meter, stripe: StripeEvent, table: ModelPrices) -> Meters:
    rows = make_price_rows(meter.name, table)
    built: Meters = {
        row: replace(
            meter,
            name=row,
            title=f"{meter.title}: {pattern}"[:_TITLE_MAX],
            stripe=StripeEvent(event_name=_row_event_name(stripe.event_name, pattern), report=stripe.report),
            source=meter.name,
            where={"model": pattern},
            is_row=True,
        )
        for pattern, row in rows.models
    }
    title = f"{meter.title}: {_DEFAULT}"[:_TITLE_MAX]
    built[rows.default] = replace(
        meter, name=rows.default, title=title, stripe=None, source=meter.name, is_row=True
    )
    return built


def price_by_model(given: Entitlement, table: ModelPrices) -> dict[str, Entitlement]:
    """Entitlements of a meter with overage prices by model: its own, and one per price."""
    rows = make_price_rows(given.meter, table)
    prices = {row: price for (_, row), (_, price) in zip(rows.models, table.models, strict=True)}
    built = {
        row: Entitlement(
            meter=row,
            rates=(),
            concurrency=None,
            included=0,
            overage=_with_price(Overage(mode="bill"), price),
            warn_at=(),
        )
        for row, price in {rows.default: table.default, **prices}.items()
    }
    return {
        given.meter: replace(given, overage=replace(_with_price(given.overage, table.default), rows=rows)),
        **built,
    }


def _with_price(overage: Overage, price: int) -> Overage:
    """Overage at a price: millionths of a minor unit for each unit."""
    exact = Fraction(price, _MICRO)
    return replace(overage, per=exact.denominator, amount_cents=exact.numerator)


def check_item_count(
    plan: Plan, meters: Mapping[str, Meter | None], place: FilePlace, problems: Problems, *, by_lines: bool
) -> None:
    """Refuse a plan with more prices than Stripe takes in a subscription, or as lines of an invoice."""
    priced = [
        name
        for name, given in plan.entitlements.items()
        if (meter := meters.get(name)) is not None
        and meter.stripe is not None
        and meter.stripe.report != "none"
        and given.overage.mode == "bill"
        and given.overage.amount_cents is not None
    ]
    items = 1 + (plan.seat_price is not None) + len(plan.addons) + len(priced) * (not by_lines)
    cure = "join patterns of models, or bill fewer meters"
    if by_lines and len(priced) > LINES_MAX:
        message = (
            f"the plan has {len(priced)} prices of usage, one for each row of overage; an invoice has room"
            f" for {LINES_MAX}; {cure}"
        )
        problems.refuse(place, message)
    elif items > ITEMS_MAX:
        message = (
            f"the plan has {items} prices: its own, that of seats, one for each add-on, and one for each row"
            f" of overage; a Stripe subscription takes {ITEMS_MAX}; {cure}, or list fewer add-ons"
        )
        problems.refuse(place, message)
