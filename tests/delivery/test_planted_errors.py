"""Errors in the books, planted by real means: at Stripe, in Redis, in the audit database. Each is named."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from sqlite3 import Row, connect
from typing import Any, Final

import pytest

from drivers.audit_database import ChainHead, link_hash
from drivers.period_ends import JUNE, MAY, MINUTE
from drivers.planted_month import Error, Planted, World, misnamed, month, reports
from drivers.store_keys import meter_token

pytestmark = pytest.mark.anyio


# At Stripe, amid the period.


async def lose_units(world: World, customer: str) -> None:
    await world.cancel(customer)


async def send_foreign_units(world: World, customer: str) -> None:
    await world.send(customer, "spare", 7, world.now)


async def send_for_june(world: World, customer: str) -> None:
    await world.send(customer, "requests", 100, JUNE + MINUTE)


async def raise_price(world: World, customer: str) -> None:
    await world.switch_price(customer, "requests", {"unit_amount": 7})


async def change_tiers(world: World, customer: str) -> None:
    tiers = [{"up_to": 140, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 2}]
    terms = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    await world.switch_price(customer, "words", terms)


async def remove_item(world: World, customer: str) -> None:
    item = await world.item(customer, "price_pro_words")
    await world.stripe.subscription_items.delete_async(item["id"])


async def double_metered_item(world: World, customer: str) -> None:
    await world.add_item(customer, "price_max_requests")


async def add_second_subscription(world: World, customer: str) -> None:
    end = int(JUNE.timestamp())
    items = [{"price": "price_pro_requests"}]
    params = {"customer": f"cus_{customer}", "items": items, "billing_cycle_anchor": end}
    await world.stripe.subscriptions.create_async(params)


async def begin_period_anew(world: World, customer: str) -> None:
    await world.change(customer, {"billing_cycle_anchor": "now", "proration_behavior": "none"})


async def renew_item(world: World, customer: str) -> None:
    """Remove an item with a free tier, and add it again."""
    item = await world.item(customer, "price_pro_words")
    await world.stripe.subscription_items.delete_async(item["id"])
    await world.add_item(customer, "price_pro_words")


async def lower_price_unseen(world: World, customer: str) -> None:
    await world.switch_price(customer, "requests", {"unit_amount": 3})


# Late usage, that an invoice item bills: 7 requests at $0.05.


async def make_late(world: World, customer: str) -> None:
    await world.kit.record(customer, "requests", 7)
    await world.switch_price(customer, "requests", {"unit_amount": 7})


async def late_item(world: World, customer: str) -> Any:
    found = await world.stripe.invoice_items.list_async({"customer": f"cus_{customer}"})
    return next(one for one in found.data if "meterkit_late_item" in one["metadata"])


async def replace_late_item(world: World, customer: str, **changed: Any) -> None:
    """Make a late item once more, with other terms, and delete the first one."""
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
    await world.stripe.invoice_items.delete_async(item.id)


async def shorten_late_item(world: World, customer: str) -> None:
    await replace_late_item(world, customer, quantity_decimal="4")


async def reprice_late_item(world: World, customer: str) -> None:
    await replace_late_item(world, customer, unit_amount_decimal="9")


async def move_late_item(world: World, customer: str) -> None:
    start = int(JUNE.timestamp())
    await replace_late_item(world, customer, period={"start": start, "end": start + 3600})


# On invoices.


async def edit_line(world: World, customer: str) -> None:
    def change(lines: list[Any]) -> None:
        next(one for one in lines if "Requests" in one.description).amount -= 50

    world.change_line(customer, change)


# In the audit database.


async def remove_row(world: World, customer: str) -> None:
    world.rows("DELETE FROM meterkit_audit WHERE customer = ? AND place = 2", customer)


async def rewrite_chain(world: World, customer: str) -> None:
    """Change a row, and make all hashes fit."""
    with closing(connect(world.database)) as connection, connection:
        connection.row_factory = Row
        asked = "SELECT * FROM meterkit_audit WHERE customer = ? ORDER BY place"
        last = ChainHead.empty(customer, 0).hash
        for row in map(dict, connection.execute(asked, (customer,)).fetchall()):
            row["quantity"] -= 1
            last = link_hash(last, row)
            new = (row["quantity"], last, customer, row["place"])
            connection.execute(
                "UPDATE meterkit_audit SET quantity = ?, hash = ? WHERE customer = ? AND place = ?", new
            )
        connection.execute("UPDATE meterkit_audit_heads SET hash = ? WHERE customer = ?", (last, customer))


# In Redis.


async def in_redis(world: World) -> Any:
    return (await world.kit.store.admin()).client


async def set_plan_in_state(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).state
    data = await client.hget(key, "data")
    assert b'"stripe_customer"' in data
    await client.hset(key, "data", data.replace(b'"stripe_customer"', b'"plan":"max","stripe_customer"'))


async def change_counter(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).totals
    start_ms = int(MAY.timestamp() * 1000)
    await client.hincrby(key, f"{start_ms}|{meter_token('requests')}d", 5)


PLANTED: Final = Planted(
    when_used=[
        Error(lose_units, {"reconcile": "requests: Stripe has counted 100 less than it accepted"}),
        Error(
            send_foreign_units,
            {
                "reconcile": "spare: Stripe has 7 more than was delivered: something else sends to",
                "statement": "the invoice has 7 units, and the events come to 0",
            },
        ),
        Error(
            lose_units,
            {
                "reconcile": "from 2031-06-10: requests: Stripe has 100 more than was delivered",
                "statement": "the invoice has 10 units, and the events come to 110",
            },
            later=send_for_june,
        ),
        Error(raise_price, {"check": "other_price: usage is billed at price_"}),
        Error(
            change_tiers,
            {
                "check": "other_price: usage is billed at price_",
                "reconcile": "words: the tiers began again when",
            },
        ),
        Error(
            remove_item,
            {
                "check": "missing_meter: price_pro_words is missing",
                "reconcile": "words: 10 of 160 units that Stripe has counted",
            },
        ),
        Error(
            double_metered_item,
            {"check": "metered_twice: price_max_requests", "reconcile": "credit 10 units, $0.40"},
        ),
        Error(
            add_second_subscription,
            {"check": "two_subscriptions: its customer has several", "reconcile": "requests: billed twice"},
        ),
        Error(begin_period_anew, {}),
        Error(renew_item, {"reconcile": "words: the tiers of price_pro_words began again"}),
        Error(make_late, {"reconcile": "have 4 of 7 late units"}, later=shorten_late_item),
        Error(make_late, {"reconcile": "$0.63, and their price comes to $0.35"}, later=reprice_late_item),
        Error(make_late, {"reconcile": "another period"}, later=move_late_item),
    ],
    before_the_webhook=[
        Error(
            lower_price_unseen,
            {"reconcile": "10 units were recorded at $0.05 each and are billed at $0.03 each"},
        )
    ],
    when_final=[
        Error(
            edit_line,
            {"reconcile": "requests: 110 units at price_pro_requests come to $5.50, and the lines"},
        ),
        Error(remove_row, {"verify": "row 2 is missing"}),
        Error(rewrite_chain, {"verify": "the rows up to here were written anew"}),
        Error(set_plan_in_state, {"check": "ledger: its state has plan 'max', and its ledger 'pro'"}),
        Error(change_counter, {"reconcile": "requests: Stripe has counted 5 less than it accepted"}),
    ],
)


@pytest.mark.dear("a month at Stripe of a customer for each error, and four commands asked about each")
async def test_f_227_each_planted_error_is_named_and_nothing_else(store_url: str, tmp_path: Path) -> None:
    async with month(store_url, tmp_path, PLANTED) as world:
        found = await reports(world, PLANTED.every)
    assert misnamed(PLANTED.every, found) == {}
