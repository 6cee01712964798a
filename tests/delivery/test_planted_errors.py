"""Errors in the books, planted by real means: at Stripe, in Redis, in the audit database. Each is named."""

from __future__ import annotations

from contextlib import closing
from sqlite3 import Row, connect
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audit_chain import Head, link_hash
from drivers.period_ends import JUNE, MAY, MINUTE
from drivers.planted_month import DAY, Error, Planted, misnamed, month, reports
from drivers.sampled import whole
from drivers.store_keys import meter_token

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.planted_month import World

pytestmark = pytest.mark.anyio


async def nothing(_world: World, _customer: str) -> None:
    """Plant nothing."""


async def lose_units(world: World, customer: str) -> None:
    await world.cancel(customer)


async def double_units(world: World, customer: str) -> None:
    await world.send(customer, "requests", 100, world.now)


async def send_foreign_units(world: World, customer: str) -> None:
    await world.send(customer, "spare", 7, world.now)


async def use_another_customer(world: World, customer: str) -> None:
    await world.cancel(customer)
    await world.send(f"{customer}_2", "requests", 100, world.now)


async def stamp_wrongly(world: World, customer: str) -> None:
    await world.cancel(customer)
    await world.send(customer, "requests", 100, MAY - DAY)


async def send_for_june(world: World, customer: str) -> None:
    await world.send(customer, "requests", 100, JUNE + MINUTE)


async def lower_price(world: World, customer: str) -> None:
    await world.switch_price(customer, "requests", {"unit_amount": 3})


async def raise_price(world: World, customer: str) -> None:
    await world.switch_price(customer, "requests", {"unit_amount": 7})


async def lower_price_unseen(world: World, customer: str) -> None:
    await lower_price(world, customer)


async def raise_price_unseen(world: World, customer: str) -> None:
    await raise_price(world, customer)


async def change_tiers(world: World, customer: str) -> None:
    tiers = [{"up_to": 140, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 2}]
    terms = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    await world.switch_price(customer, "words", terms)


async def switch_plan(world: World, customer: str) -> None:
    items: list[dict[str, Any]] = []
    for name in ("", "_requests", "_words"):
        item = await world.item(customer, f"price_pro{name}")
        items.append({"id": item["id"], "price": f"price_max{name}"})
    gone = [await world.item(customer, name) for name in ("price_pro_spare", "price_seat")]
    items += [{"id": item["id"], "deleted": True} for item in gone]
    await world.change(customer, {"items": items})


async def put_tax(world: World, customer: str) -> None:
    address = {"country": "DE", "postal_code": "10115"}
    await world.stripe.customers.update_async(f"cus_{customer}", {"address": address})
    await world.change(customer, {"automatic_tax": {"enabled": True}})


async def coupon(world: World) -> list[dict[str, str]]:
    made = await world.stripe.coupons.create_async({"percent_off": 50, "duration": "forever"})
    return [{"coupon": made.id}]


async def put_coupon_on_subscription(world: World, customer: str) -> None:
    await world.change(customer, {"discounts": await coupon(world)})


async def put_coupon_on_invoice(world: World, customer: str) -> None:
    params = {"discounts": await coupon(world)}
    await world.stripe.invoices.update_async((await world.invoice(customer)).id, params)


async def change_seats(world: World, customer: str) -> None:
    await world.change_item(customer, "price_seat", {"quantity": 5})


async def remove_item(world: World, customer: str) -> None:
    item = await world.item(customer, "price_pro_words")
    await world.stripe.subscription_items.delete_async(item["id"])


async def add_metered_item(world: World, customer: str) -> None:
    await world.add_item(customer, "price_max_pages")


async def double_metered_item(world: World, customer: str) -> None:
    await world.add_item(customer, "price_max_requests")


async def double_base(world: World, customer: str) -> None:
    await world.change_item(customer, "price_pro", {"quantity": 2})


async def add_second_base(world: World, customer: str) -> None:
    await world.add_item(customer, "price_max")


async def use_unknown_base(world: World, customer: str) -> None:
    product = (await world.item(customer, "price_pro"))["price"]["product"]
    made = {"currency": "usd", "product": product, "unit_amount": 1, "recurring": {"interval": "month"}}
    new = await world.stripe.prices.create_async(made)
    await world.change_item(customer, "price_pro", {"price": new.id})


async def add_second_subscription(world: World, customer: str) -> None:
    end = int(JUNE.timestamp())
    items = [{"price": "price_pro_requests"}]
    params = {"customer": f"cus_{customer}", "items": items, "billing_cycle_anchor": end}
    await world.stripe.subscriptions.create_async(params)


async def begin_period_anew(world: World, customer: str) -> None:
    await world.change(customer, {"billing_cycle_anchor": "now", "proration_behavior": "none"})


async def pause_collection(world: World, customer: str) -> None:
    await world.change(customer, {"pause_collection": {"behavior": "keep_as_draft"}})


async def send_invoices(world: World, customer: str) -> None:
    await world.change(customer, {"collection_method": "send_invoice", "days_until_due": 30})


async def remove_line(world: World, customer: str) -> None:
    def change(lines: list[Any]) -> None:
        lines[:] = [one for one in lines if "Requests" not in one.description]

    world.change_line(customer, change)


async def edit_line(world: World, customer: str) -> None:
    def change(lines: list[Any]) -> None:
        line = next(one for one in lines if "Requests" in one.description)
        line.amount -= 50

    world.change_line(customer, change)


async def add_line_by_hand(world: World, customer: str) -> None:
    product = (await world.item(customer, "price_pro"))["price"]["product"]
    price = {"currency": "usd", "product": product, "unit_amount": 777}
    params = {
        "customer": f"cus_{customer}",
        "invoice": (await world.invoice(customer)).id,
        "price_data": price,
    }
    await world.stripe.invoice_items.create_async({**params, "description": "Help by hand"})


async def write_credit_note(world: World, customer: str) -> None:
    params = {"invoice": (await world.invoice(customer)).id, "amount": 300, "credit_amount": 300}
    await world.stripe.credit_notes.create_async(params)


async def change_row(world: World, customer: str) -> None:
    world.rows("UPDATE meterkit_audit SET quantity = 9 WHERE customer = ? AND place = 2", customer)


async def remove_row(world: World, customer: str) -> None:
    world.rows("DELETE FROM meterkit_audit WHERE customer = ? AND place = 2", customer)


async def remove_last_row(world: World, customer: str) -> None:
    world.rows("DELETE FROM meterkit_audit WHERE customer = ? AND place = 4", customer)


async def insert_row(world: World, customer: str) -> None:
    world.rows(
        "INSERT INTO meterkit_audit (event, meter, kind, customer, period_start_ms, recorded_at_ms, quantity,"
        " included, granted, credited, overage, reported, late) SELECT 'by hand', meter, kind, customer,"
        " period_start_ms, recorded_at_ms, 5, 5, 0, 0, 0, 0, late FROM meterkit_audit WHERE customer = ?"
        " AND place = 1",
        customer,
    )


async def reorder_rows(world: World, customer: str) -> None:
    for place, new in ((2, 9), (3, 2), (9, 3)):
        world.rows(
            "UPDATE meterkit_audit SET place = ? WHERE customer = ? AND place = ?", new, customer, place
        )


async def change_head(world: World, customer: str) -> None:
    world.rows("UPDATE meterkit_audit_heads SET hash = '1:0' WHERE customer = ?", customer)


async def rewrite_chain(world: World, customer: str) -> None:
    """Change a row, and make all hashes fit."""
    with closing(connect(world.database)) as connection, connection:
        connection.row_factory = Row
        asked = "SELECT * FROM meterkit_audit WHERE customer = ? ORDER BY place"
        last = Head.begun(customer, 0).hash
        for row in map(dict, connection.execute(asked, (customer,)).fetchall()):
            row["quantity"] -= 1
            last = link_hash(last, row)
            new = (row["quantity"], last, customer, row["place"])
            connection.execute(
                "UPDATE meterkit_audit SET quantity = ?, hash = ? WHERE customer = ? AND place = ?", new
            )
        connection.execute("UPDATE meterkit_audit_heads SET hash = ? WHERE customer = ?", (last, customer))


async def in_redis(world: World) -> Any:
    return (await world.kit.store.admin()).client


async def change_ledger(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).history
    for place, line in enumerate(await client.lrange(key, 0, -1)):
        if line.startswith(b'["plan"'):
            await client.lset(key, place, line.replace(b'"pro"', b'"max"'))


async def remove_from_ledger(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).history
    await world.kit.customers.set_plan(customer, "max")
    await world.kit.customers.set_plan(customer, None)
    lines = await client.lrange(key, 0, -1)
    await client.lrem(key, 1, [line for line in lines if line.startswith(b'["plan"')][-2])


async def change_state(world: World, customer: str, old: bytes, new: bytes) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).state
    data = await client.hget(key, "data")
    assert old in data
    await client.hset(key, "data", data.replace(old, new))


async def change_ledger_of_grants(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).ledger
    (field,) = [name for name in await client.hkeys(key) if name.startswith(b"grant ")]
    quantity, _, terms = (await client.hget(key, field)).partition(b" ")
    await client.hset(key, field, b"%d %s" % (int(quantity) - 1_000_000, terms))


async def change_plan_in_state(world: World, customer: str) -> None:
    await change_state(world, customer, b'"plan":"pro"', b'"plan":"max"')


async def set_plan_in_state(world: World, customer: str) -> None:
    await change_state(world, customer, b'"stripe_customer"', b'"plan":"max","stripe_customer"')


async def change_seats_in_state(world: World, customer: str) -> None:
    await change_state(world, customer, b'"seats":5', b'"seats":50')


async def change_counter(world: World, customer: str) -> None:
    client, key = await in_redis(world), world.kit.store.keys.customer(customer).totals
    start_ms = int(MAY.timestamp() * 1000)
    await client.hincrby(key, f"{start_ms}|{meter_token('requests')}d", 5)


WHEN_USED: Final = [
    Error(nothing, {}),
    Error(lose_units, {"reconcile": "requests: Stripe has counted 100 less than it accepted"}),
    Error(double_units, {"reconcile": "requests: Stripe has 100 more than was delivered"}),
    Error(
        send_foreign_units,
        {
            "reconcile": "spare: Stripe has 7 more than was delivered: something else sends to this meter",
            "statement": "the invoice has 7 units, and the events come to 0",
        },
    ),
    Error(
        use_another_customer,
        {
            "reconcile": "requests: Stripe has counted 100 less than it accepted",
            "statement": "the invoice has 10 units, and the events come to 110",
        },
    ),
    Error(stamp_wrongly, {"reconcile": "requests: Stripe has counted 100 less than it accepted"}),
    Error(
        lose_units,
        {
            "reconcile": "from 2031-06-10: requests: Stripe has 100 more than was delivered",
            "statement": "the invoice has 10 units, and the events come to 110",
        },
        later=send_for_june,
    ),
    Error(lower_price, {"check": "other_price: usage is billed at price_"}),
    Error(raise_price, {"check": "other_price: usage is billed at price_"}),
    Error(
        change_tiers,
        {"check": "other_price: usage is billed at price_", "reconcile": "words: the tiers began again when"},
    ),
    Error(switch_plan, {"reconcile": "words: the tiers began again when price_pro_words was switched to"}),
    Error(put_tax, {"statement": "tax: "}, is_allowed=True),
    Error(put_coupon_on_subscription, {"statement": "discount: Discounts"}, is_allowed=True),
    Error(change_seats, {"statement": "proration: Remaining time on 5"}, is_allowed=True),
    Error(
        remove_item,
        {
            "check": "missing_meter: price_pro_words is missing",
            "reconcile": "words: 10 of 160 units that Stripe has counted",
        },
    ),
    Error(add_metered_item, {"check": "other_item: "}),
    Error(
        double_metered_item,
        {"check": "metered_twice: price_max_requests", "reconcile": "credit 10 units, USD 0.40"},
    ),
    Error(double_base, {"check": "base_quantity: the base price price_pro has quantity 2"}),
    Error(add_second_base, {"check": "two_plans: it has the base prices of several plans: pro, max"}),
    Error(use_unknown_base, {"check": "unknown_price: no plan of the plans file has a base price"}),
    Error(
        add_second_subscription,
        {"check": "two_subscriptions: its customer has several", "reconcile": "requests: billed twice"},
    ),
    Error(begin_period_anew, {}),
    Error(pause_collection, {"check": "collection_paused: its invoices are not collected"}),
    Error(
        send_invoices,
        {"reconcile": "requests: 110 of 110 units that Stripe has counted at USD 0.05 each are on no"},
    ),
]
BEFORE_THE_WEBHOOK: Final = [
    Error(
        lower_price_unseen,
        {"reconcile": "10 units were recorded at USD 0.05 each and are billed at USD 0.03 each"},
    ),
    Error(
        raise_price_unseen,
        {"reconcile": "10 units were recorded at USD 0.05 each and are billed at USD 0.07 each"},
    ),
]
WHEN_DRAFT: Final = [
    Error(put_coupon_on_invoice, {"statement": "discount: Discounts"}, is_allowed=True),
    Error(add_line_by_hand, {"statement": "other: Help by hand"}, is_allowed=True),
]
WHEN_FINAL: Final = [
    Error(remove_line, {"reconcile": "requests: 110 of 110 units that Stripe has counted at USD 0.05 each"}),
    Error(
        edit_line, {"reconcile": "requests: 110 units at price_pro_requests come to USD 5.50, and the lines"}
    ),
    Error(write_credit_note, {"statement": "credit notes 300"}, is_allowed=True),
    Error(change_counter, {"reconcile": "requests: Stripe has counted 5 less than it accepted"}),
    Error(change_row, {"verify": "row 2 (event "}),
    Error(remove_row, {"verify": "row 2 is missing"}),
    Error(remove_last_row, {"verify": "row 4 is missing"}),
    Error(insert_row, {"verify": "1 rows are outside the chain: inserted by hand"}),
    Error(reorder_rows, {"verify": "row 2 (event "}),
    Error(change_head, {"verify": "the head has hash 1:0"}),
    Error(rewrite_chain, {"verify": "the rows up to here were written anew"}),
    Error(change_ledger, {"check": "ledger: its ledger ends with plan 'max', and 'pro' is in force"}),
    Error(remove_from_ledger, {"check": "ledger: its ledger has plan 'pro' since"}),
    Error(change_ledger_of_grants, {"statement": "adjustment of gift: 1000000"}),
    Error(change_plan_in_state, {"check": "ledger: its state has plan 'max', and its ledger 'pro'"}),
    Error(set_plan_in_state, {"check": "ledger: its state has plan 'max', and its ledger 'pro'"}),
    Error(change_seats_in_state, {"check": "ledger: its state has seats '50', and its ledger '5'"}),
]


PLANTED: Final = Planted(WHEN_USED, BEFORE_THE_WEBHOOK, WHEN_DRAFT, WHEN_FINAL)


@pytest.mark.dear("a month at Stripe of a customer for each error, and four commands asked about each")
@pytest.mark.parametrize("step", [3, whole(1)])
async def test_f_227_each_planted_error_is_named_and_nothing_else(
    store_url: str, tmp_path: Path, step: int
) -> None:
    planted = PLANTED.sample(step)
    async with month(store_url, tmp_path, planted, more=["use_another_customer_2"]) as world:
        found = await reports(world, planted.every)
    assert misnamed(planted.every, found) == {}
