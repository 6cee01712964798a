"""Further errors in the books, planted by real means: at Stripe, in Redis, in the audit database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.period_ends import JUNE, MAY
from drivers.planted_month import DAY, Error, Planted, misnamed, month, reports
from drivers.sampled import whole
from drivers.store_keys import meter_token

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.planted_month import Command, World

pytestmark = pytest.mark.anyio


# At Stripe, amid the period.


async def untouched(_world: World, _customer: str) -> None:
    """Plant nothing."""


async def send_twice(world: World, customer: str) -> None:
    """Send the last event again, under another identifier."""
    sent = [one for one in world.at.stripe.events if one.customer == f"cus_{customer}"]
    last = [one for one in sent if one.event_name == "requests"][-1]
    await world.send(customer, "requests", int(last.value), world.now)


async def cancel_words(world: World, customer: str) -> None:
    await world.cancel(customer, "words")


async def send_less(world: World, customer: str) -> None:
    await world.send(customer, "requests", -7, world.now)


async def sell_packages(world: World, customer: str) -> None:
    packages = {"divide_by": 10, "round": "up"}
    await world.switch_price(customer, "requests", {"unit_amount": 50, "transform_quantity": packages})


async def reorder_tiers(world: World, customer: str) -> None:
    tiers = [{"up_to": 100, "unit_amount": 2}, {"up_to": "inf", "unit_amount": 0}]
    terms = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    await world.switch_price(customer, "words", terms)


async def sell_by_volume(world: World, customer: str) -> None:
    tiers = [{"up_to": 100, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 2}]
    terms = {"billing_scheme": "tiered", "tiers_mode": "volume", "tiers": tiers}
    await world.switch_price(customer, "words", terms)


async def charge_for_a_tier(world: World, customer: str) -> None:
    tiers = [{"up_to": 100, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 2, "flat_amount": 500}]
    terms = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    await world.switch_price(customer, "words", terms)


async def sell_by_quantity(world: World, customer: str) -> None:
    """Put a price with a quantity in the place of a metered one."""
    item = await world.item(customer, "price_pro_requests")
    recurring = {"interval": "month"}
    made = {"currency": "usd", "product": item["price"]["product"], "unit_amount": 5, "recurring": recurring}
    new = await world.stripe.prices.create_async(made)
    await world.change_item(customer, "price_pro_requests", {"price": new.id, "quantity": 5})


async def renew_item(world: World, customer: str) -> None:
    """Remove an item with a free tier, and add it again."""
    item = await world.item(customer, "price_pro_words")
    await world.stripe.subscription_items.delete_async(item["id"])
    await world.add_item(customer, "price_pro_words")


async def renew_flat_item(world: World, customer: str) -> None:
    """Remove an item without tiers, and add it again: all is billed once."""
    item = await world.item(customer, "price_pro_requests")
    await world.stripe.subscription_items.delete_async(item["id"])
    await world.add_item(customer, "price_pro_requests")


async def coupon_on_product(world: World, customer: str) -> None:
    product = (await world.item(customer, "price_pro_requests"))["price"]["product"]
    terms = {"percent_off": 50, "duration": "forever", "applies_to": {"products": [product]}}
    made = await world.stripe.coupons.create_async(terms)
    await world.change(customer, {"discounts": [{"coupon": made.id}]})


async def tax_within_prices(world: World, customer: str) -> None:
    address = {"country": "DE", "postal_code": "10115"}
    await world.stripe.customers.update_async(f"cus_{customer}", {"address": address})
    await world.switch_price(customer, "requests", {"unit_amount": 5, "tax_behavior": "inclusive"})
    await world.change(customer, {"automatic_tax": {"enabled": True}})


async def put_on_trial(world: World, customer: str) -> None:
    end = int((JUNE - DAY).timestamp())
    await world.change(customer, {"trial_end": end, "proration_behavior": "none"})


async def cancel_without_invoice(world: World, customer: str) -> None:
    found = await world.subscription(customer)
    await world.stripe.subscriptions.cancel_async(found.id)


async def remove_seats(world: World, customer: str) -> None:
    item = await world.item(customer, "price_seat")
    await world.stripe.subscription_items.delete_async(item["id"])


async def sell_other_seats(world: World, customer: str) -> None:
    item = await world.item(customer, "price_seat")
    recurring = {"interval": "month"}
    made = {"currency": "usd", "product": item["price"]["product"], "unit_amount": 1, "recurring": recurring}
    new = await world.stripe.prices.create_async(made)
    await world.change_item(customer, "price_seat", {"price": new.id})


# Late usage, that an invoice item bills: 7 requests at USD 0.05.


async def make_late(world: World, customer: str) -> None:
    await world.kit.record(customer, "requests", 7)
    await world.switch_price(customer, "requests", {"unit_amount": 7})


async def late_item(world: World, customer: str) -> Any:
    found = await world.stripe.invoice_items.list_async({"customer": f"cus_{customer}"})
    return next(one for one in found.data if "meterkit_late_item" in one["metadata"])


async def copy_late_item(world: World, customer: str, **changed: Any) -> None:
    """Make a late item once more, with other terms."""
    item = await late_item(world, customer)
    params = {
        "customer": f"cus_{customer}",
        "invoice": (await world.invoice(customer)).id,
        "currency": "usd",
        "quantity_decimal": item["quantity_decimal"],
        "unit_amount_decimal": item["pricing"]["unit_amount_decimal"],
        "period": {"start": item["period"]["start"], "end": item["period"]["end"]},
        "metadata": item["metadata"].to_dict(),
        "description": item["description"],
    }
    await world.stripe.invoice_items.create_async({**params, **changed})


async def delete_late_item(world: World, customer: str) -> None:
    await world.stripe.invoice_items.delete_async((await late_item(world, customer)).id)


async def double_late_item(world: World, customer: str) -> None:
    await copy_late_item(world, customer)


async def shorten_late_item(world: World, customer: str) -> None:
    item = await late_item(world, customer)
    await copy_late_item(world, customer, quantity_decimal="4")
    await world.stripe.invoice_items.delete_async(item.id)


async def reprice_late_item(world: World, customer: str) -> None:
    item = await late_item(world, customer)
    await copy_late_item(world, customer, unit_amount_decimal="9")
    await world.stripe.invoice_items.delete_async(item.id)


async def move_late_item(world: World, customer: str) -> None:
    item, start = await late_item(world, customer), int(JUNE.timestamp())
    await copy_late_item(world, customer, period={"start": start, "end": start + 3600})
    await world.stripe.invoice_items.delete_async(item.id)


async def keep_late_item(_world: World, _customer: str) -> None:
    """Leave a late item as it is."""


# On invoices.


def usage_line(lines: list[Any], words: str = "Requests") -> Any:
    return next(one for one in lines if words in one.description)


async def note_on_line(world: World, customer: str) -> None:
    """Write a credit note for a line of usage."""
    invoice = await world.invoice(customer)
    line = next(one for one in invoice["lines"]["data"] if "Requests" in one["description"])
    credited = {"type": "invoice_line_item", "invoice_line_item": line["id"], "amount": 100}
    await world.stripe.credit_notes.create_async(
        {"invoice": invoice.id, "lines": [credited], "credit_amount": 100}
    )


async def lower_quantity(world: World, customer: str) -> None:
    def change(lines: list[Any]) -> None:
        line = usage_line(lines)
        line.quantity, line.amount = line.quantity - 10, line.amount - 50

    world.change_line(customer, change)


async def move_line(world: World, customer: str) -> None:
    def change(lines: list[Any]) -> None:
        line = usage_line(lines)
        line.start, line.end = int(JUNE.timestamp()), int((JUNE + DAY).timestamp())

    world.change_line(customer, change)


async def double_line(world: World, customer: str) -> None:
    world.change_line(customer, lambda lines: lines.append(usage_line(lines)))


async def send_after_the_invoice(world: World, customer: str) -> None:
    await world.send(customer, "requests", 9, MAY + 20 * DAY)


async def change_balance(world: World, customer: str) -> None:
    params = {"amount": -500, "currency": "usd"}
    await world.stripe.customers.balance_transactions.create_async(f"cus_{customer}", params)


async def change_root(world: World, customer: str) -> None:
    invoice = await world.invoice(customer)
    roots = {
        name: f"{value[:-4]}0000" for name, value in invoice["metadata"].to_dict().items() if "root" in name
    }
    assert roots
    await world.stripe.invoices.update_async(invoice.id, {"metadata": roots})


# In the audit database.


async def copy_row(world: World, customer: str) -> None:
    world.rows(
        "INSERT INTO meterkit_audit (event, meter, kind, customer, period_start_ms, recorded_at_ms, quantity,"
        " included, granted, credited, overage, reported, late, place, hash) SELECT 'copy', meter, kind,"
        " customer, period_start_ms, recorded_at_ms, quantity, included, granted, credited, overage,"
        " reported, late, 5, hash FROM meterkit_audit WHERE customer = ? AND place = 4",
        customer,
    )


async def change_meter(world: World, customer: str) -> None:
    world.rows(
        "UPDATE meterkit_audit SET meter = 'spare' WHERE customer = ? AND place = 1 AND meter <> 'spare'",
        customer,
    )


async def change_period(world: World, customer: str) -> None:
    world.rows(
        "UPDATE meterkit_audit SET period_start_ms = period_start_ms - 1 WHERE customer = ? AND place = 3",
        customer,
    )


async def change_reported(world: World, customer: str) -> None:
    world.rows("UPDATE meterkit_audit SET reported = reported + 1 WHERE customer = ? AND place = 3", customer)


async def give_row_away(world: World, customer: str) -> None:
    world.rows(
        "UPDATE meterkit_audit SET customer = 'given_to', place = 9 WHERE customer = ? AND place = 2",
        customer,
    )


async def remove_all_rows(world: World, customer: str) -> None:
    world.rows("DELETE FROM meterkit_audit WHERE customer = ?", customer)


async def remove_rows_and_head(world: World, customer: str) -> None:
    world.rows("DELETE FROM meterkit_audit WHERE customer = ?", customer)
    world.rows("DELETE FROM meterkit_audit_heads WHERE customer = ?", customer)


# In Redis.


async def lose_delivered(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).totals
    await client.hincrby(key, f"{int(MAY.timestamp() * 1000)}|{meter_token('requests')}d", -5)


async def change_price_in_state(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).state
    data = await client.hget(key, "data")
    assert b'"1/5"' in data
    await client.hset(key, "data", data.replace(b'"1/5"', b'"1/3"'))


async def in_redis(world: World) -> Any:
    return (await world.kit.store.admin()).client


LATE: Final[dict[Command, str]] = {"check": "other_price: usage is billed at price_"}
PLANTED: Final = Planted(
    when_used=[
        Error(untouched, {}),
        Error(send_twice, {"reconcile": "requests: Stripe has 100 more than was delivered"}),
        Error(cancel_words, {"reconcile": "words: Stripe has counted 150 less than it accepted"}),
        Error(send_less, {"reconcile": "requests: Stripe has counted 7 less than it accepted"}),
        Error(sell_packages, {"check": "inexact_price: requests is billed at price_"}),
        Error(reorder_tiers, {"check": "inexact_price: words is billed at price_"}),
        Error(sell_by_volume, {"check": "inexact_price: words is billed at price_"}),
        Error(charge_for_a_tier, {"check": "inexact_price: words is billed at price_"}),
        Error(
            sell_by_quantity,
            {
                "check": "missing_meter: price_pro_requests is missing",
                "reconcile": "requests: 10 of 110 units that Stripe has counted",
            },
        ),
        Error(renew_item, {"reconcile": "words: the tiers of price_pro_words began again"}),
        Error(renew_flat_item, {}),
        Error(coupon_on_product, {"statement": "discount: Discounts"}, is_allowed=True),
        Error(tax_within_prices, {"check": "other_price: ", "statement": "tax: "}),
        Error(put_on_trial, {}),
        Error(cancel_without_invoice, {}),
        Error(remove_seats, {"statement": "proration: "}, is_allowed=True),
        Error(sell_other_seats, {"statement": "proration: "}, is_allowed=True),
        Error(make_late, LATE, later=keep_late_item),
        Error(make_late, {"reconcile": "have 0 of 7 late units"}, later=delete_late_item),
        Error(make_late, {"reconcile": "have 14 late units, and 7 were billed"}, later=double_late_item),
        Error(make_late, {"reconcile": "have 4 of 7 late units"}, later=shorten_late_item),
        Error(
            make_late, {"reconcile": "USD 0.63, and their price comes to USD 0.35"}, later=reprice_late_item
        ),
        Error(make_late, {"reconcile": "another period"}, later=move_late_item),
    ],
    when_final=[
        Error(note_on_line, {"statement": "credit notes 100"}, is_allowed=True),
        Error(lower_quantity, {"reconcile": "requests: 10 of 110 units that Stripe has counted"}),
        Error(move_line, {"reconcile": "requests: 110 of 110 units that Stripe has counted"}),
        Error(double_line, {"reconcile": "has 220, and Stripe has counted 110: credit 110 units"}),
        Error(send_after_the_invoice, {"reconcile": "requests: Stripe has 9 more than was delivered"}),
        Error(change_balance, {}),
        Error(change_root, {"verify": "the rows up to here were written anew"}),
        Error(copy_row, {"verify": "row 5"}),
        Error(change_meter, {"verify": "row 1 (event "}),
        Error(change_period, {"verify": "row 3 (event "}),
        Error(change_reported, {"verify": "row 3 (event "}),
        Error(give_row_away, {"verify": "row 2 is missing"}),
        Error(remove_all_rows, {"verify": "rows 1 to 4 are missing"}),
        Error(remove_rows_and_head, {"verify": "missing"}),
        Error(lose_delivered, {"reconcile": "requests: Stripe has 5 more than was delivered"}),
        Error(change_price_in_state, {"reconcile": "requests"}),
    ],
)


@pytest.mark.dear("a month at Stripe of a customer for each error, and four commands asked about each")
@pytest.mark.parametrize("step", [3, whole(1)])
async def test_f_227_each_further_error_is_named_and_nothing_else(
    store_url: str, tmp_path: Path, step: int
) -> None:
    planted = PLANTED.sample(step)
    async with month(store_url, tmp_path, planted, more=["given_to"]) as world:
        found = await reports(world, planted.every)
    assert misnamed(planted.every, found) == {}
