"""Which lines of a customer's invoices are of a meter and a period, and what a unit costs there."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest

from drivers.stripe_objects import ObjectsAtStripe
from meterkit.delivery.invoices import Invoiced, Invoices

pytestmark = pytest.mark.anyio

DAY_S: Final = 86_400
START_S: Final = 1_900_000_000
END_S: Final = START_S + 30 * DAY_S
LINES: Final = "/v1/invoices/in_1/lines"


def line(first_s: int = START_S, last_s: int = END_S, **fields: Any) -> dict[str, Any]:
    pricing = {"price_details": {"price": "price_1"}, "unit_amount_decimal": "5"}
    return {
        "period": {"start": first_s, "end": last_s}, "quantity": 7, "currency": "usd", "pricing": pricing
    } | fields  # fmt: skip


async def invoiced(stripe: ObjectsAtStripe) -> Invoiced:
    return await Invoices(stripe, {}, "usd").invoiced("cus_1", ["mtr_1"], START_S, END_S)


def stripe_with(*lines: dict[str, Any], **invoice: Any) -> ObjectsAtStripe:
    shown = {"id": "in_1", "status": "paid", "lines": {"data": lines}, **invoice}
    return ObjectsAtStripe({"/v1/invoices": [shown], "/v1/prices/price_1": {"recurring": {"meter": "mtr_1"}}})


@pytest.mark.parametrize(
    ("first_s", "last_s", "state"),
    [
        (START_S, END_S, "final"),
        # Half of it or more.
        (START_S - 15 * DAY_S, START_S + 15 * DAY_S, "final"),
        (START_S - 15 * DAY_S - 2, START_S + 15 * DAY_S, "none"),
        (END_S - 15 * DAY_S - 2, END_S + 15 * DAY_S, "final"),
        (END_S - 15 * DAY_S, END_S + 15 * DAY_S, "none"),
        # Of this period still, or of several.
        (START_S, END_S + DAY_S, "final"),
        (START_S, END_S + DAY_S + 1, "unknown"),
        (END_S - 1, END_S + 40 * DAY_S, "unknown"),
        (END_S, END_S + 40 * DAY_S, "none"),
        (START_S - 40 * DAY_S, START_S + 1, "unknown"),
        (START_S - 40 * DAY_S, START_S, "none"),
    ],
)
async def test_a_line_is_of_the_period_that_its_middle_is_in(first_s: int, last_s: int, state: str) -> None:
    found = await invoiced(stripe_with(line(first_s, last_s)))
    assert (found.state, found.quantity) == (state, Decimal(7 * (state == "final")))


@pytest.mark.parametrize(
    ("fields", "prices"),
    [
        ({}, {Fraction(5): Decimal(7)}),
        ({"currency": "eur"}, None),
        ({"pricing": {"price_details": {"price": "price_1"}, "unit_amount_decimal": None}}, None),
        ({"pricing": {"price_details": {"price": "price_1"}}, "quantity": 0}, {}),
    ],
)
async def test_what_a_unit_costs_is_known_where_each_line_shows_it(
    fields: dict[str, Any], prices: dict[Fraction, Decimal] | None
) -> None:
    found = await invoiced(stripe_with(line(**fields)))
    assert (found.prices, found.invoices) == (prices, ["in_1"])


@pytest.mark.parametrize(
    ("invoice", "is_asked"),
    [
        ({}, False),
        ({"status": "draft"}, True),
        ({"lines": {"data": [line(quantity=1)], "has_more": True}}, True),
    ],
)
async def test_lines_of_a_draft_and_those_that_a_list_leaves_out_are_asked_for(
    invoice: dict[str, Any], *, is_asked: bool
) -> None:
    stripe = stripe_with(line(), **invoice)
    stripe.shown[LINES] = [line(quantity=9)]
    found = await invoiced(stripe)
    assert (int(found.quantity), LINES in stripe.asked) == (9 if is_asked else 7, is_asked)
    assert stripe.asked["/v1/invoices"] == {"customer": "cus_1", "created": {"gte": START_S}}
    assert found.state == ("draft" if "status" in invoice else "final")
