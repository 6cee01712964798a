"""Lines that Stripe refuses, and invoices of their own: their terms, and when there is one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

import pytest

from drivers.delivery import Caplog, deliver
from drivers.period_ends import checking_closes, look_at_closes
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import (
    CATALOG,
    ITEMS,
    ended,
    flushed,
    shop_of_lines,
    usage_lines,
)
from meterkit.catalog import loads

# Internals: the emulator has no connected accounts, whose terms an invoice takes over.
from meterkit.delivery.usage_invoices import copy_terms, explain_no_invoice
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

ONE_LINE: Final = [("Words", "26", "4", 104)]
PRODUCT_ID: Final = "meterkit_meter_words"
PRODUCT: Final = f"/v1/products/{PRODUCT_ID}"


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


def asked(at: Shop, since: int) -> list[str]:
    """Requests for invoices and their items, from one on."""
    found = [f"{one.method} {one.path.partition('?')[0]}" for one in at.emulator.requests[since:]]
    return [one for one in found if "invoice" in one]


async def test_a_refused_line_is_tried_ever_less_often(at: Shop, caplog: Caplog) -> None:
    await ended(at)
    at.emulator.fail_next("error", status=400, times=None, path=ITEMS, message="No tax code.")
    tries = 0
    async with at.kit.flusher() as flusher:
        for _ in range(90):
            at.clock.advance(timedelta(minutes=1))
            since = len(at.emulator.requests)
            await flusher.flush()
            calls = asked(at, since)
            tries += bool(calls)
            assert len(calls) <= 3
    assert 5 <= tries <= 9
    said = "Stripe refuses invoice lines of customer 'acme', and they are tried again: "
    assert (caplog.text.count(said), "No tax code." in caplog.text) == (1, True)
    at.emulator.clear_faults()
    assert (await flushed(at)).left == 0


async def test_an_archived_product_is_active_again(at: Shop, caplog: Caplog) -> None:
    await at.stripe_change(PRODUCT, active="false")
    await ended(at)
    assert (await flushed(at)).left == 0
    assert await usage_lines(at) == ONE_LINE
    assert caplog.text.count("product meterkit_meter_words was archived at Stripe") == 1


async def test_lines_of_several_customers_share_a_new_product(store_url: str, caplog: Caplog) -> None:
    """Each line made the product; those that came second were refused, and could be billed late."""
    customers = ("acme", "bob", "cy")
    async with shop(store_url, catalog=CATALOG, selling=StripeEmulator.add_plans) as at:
        for customer in customers:
            await at.subscribed(customer, plan="pro")
            await at.kit.record(customer, "words", 126)
        at.go(END + timedelta(minutes=3))
        for customer in customers:
            await at.kit.subscriptions.sync(customer)
        assert (await flushed(at)).left == 0
        assert await usage_lines(at) == ONE_LINE * 3
    assert "tried again" not in caplog.text


async def test_an_invoice_of_its_own_without_a_payment_method_is_sent(at: Shop) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    at.go(END + timedelta(minutes=3))
    await flushed(at)
    (own,) = [one for one in await at.invoices() if one["customer"] == "cus_bob"]
    assert (own["collection_method"], await usage_lines(at)) == ("send_invoice", ONE_LINE)
    assert own["due_date"] - own["created"] == 30 * 86_400


@pytest.mark.parametrize(
    "state", ["valid", "used up", "deleted", "of an amount for a product", "of another product"]
)
async def test_an_invoice_after_the_end_has_the_discounts(at: Shop, state: str) -> None:
    """For a coupon that can no longer be redeemed, Stripe refused the invoice for ever."""
    terms = {"percent_off": "50"} if "of" not in state else {"amount_off": "52", "currency": "usd"}
    if state == "of an amount for a product":
        terms["applies_to[products][0]"] = PRODUCT_ID
    elif state == "of another product":
        terms["applies_to[products][0]"] = at.emulator.add_product("Other")
    most = {} if state == "valid" else {"max_redemptions": "1"}
    await at.stripe_change("/v1/coupons", id="half", duration="forever", **terms, **most)
    subscription = await at.kit.subscriptions.get("acme")
    assert subscription is not None
    await at.post(f"/v1/subscriptions/{subscription.id}", {"discounts": [{"coupon": "half"}]})
    if state == "deleted":
        await at.stripe_delete("/v1/coupons/half")
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.subscriptions.sync("acme")
    at.go(timedelta(minutes=15))
    await flushed(at)
    at.go(timedelta(hours=2))
    last = (await at.invoices())[-1]
    assert (await usage_lines(at), last["total"]) == (ONE_LINE, 104 if "another" in state else 52)


def test_terms_of_a_subscription_are_copied() -> None:
    terms: dict[str, Any] = {
        "default_source": "card_1",
        "invoice_settings": {"account_tax_ids": ["txi_1"]},
        "on_behalf_of": "acct_1",
        "transfer_data": {"destination": "acct_1", "amount_percent": None},
    }
    assert copy_terms(terms) == {
        "default_source": "card_1",
        "account_tax_ids": ["txi_1"],
        "on_behalf_of": "acct_1",
        "transfer_data": {"destination": "acct_1"},
    }
    assert explain_no_invoice(terms) == ""
    assert "percent" in explain_no_invoice({"application_fee_percent": 10})
    assert "percentage" in explain_no_invoice(
        {"transfer_data": {"destination": "acct_1", "amount_percent": 5}}
    )


async def final_before_its_line(at: Shop) -> str:
    """Have a line wait for the next renewal, as the invoice of its period is final; its subscription."""
    await ended(at)
    at.go(timedelta(hours=3))
    await flushed(at)
    (found,) = await at.stripe_list("/v1/subscriptions")
    return f"/v1/subscriptions/{found['id']}"


async def look_hourly(at: Shop, hours: int) -> list[str]:
    """Check the closes now, and then once an hour; the alerts."""
    async with checking_closes(at.kit) as closer:
        late = [*(await closer.confirm_due()).late]
        lines = await usage_lines(at)
        for _ in range(hours):
            at.go(timedelta(hours=1))
            late += (await closer.confirm_due()).late
    assert lines == []  # Stripe may yet make the last invoice.
    return late


async def test_i13_a_line_that_waits_for_a_renewal_is_left_to_it(at: Shop) -> None:
    await final_before_its_line(at)
    assert await look_hourly(at, 2) == []
    assert await usage_lines(at) == []
    at.go(END + timedelta(days=31, minutes=3))
    assert await usage_lines(at) == ONE_LINE


@pytest.mark.parametrize("is_back", [False, True])
async def test_i13_a_line_of_an_ended_subscription_is_billed(
    at: Shop, caplog: Caplog, *, is_back: bool
) -> None:
    path = await final_before_its_line(at)
    await at.stripe_delete(path)
    await at.kit.subscriptions.sync("acme")
    if is_back:
        await at.subscribed(plan="team")
    assert await look_hourly(at, 3) == []
    assert await at.stripe_list(ITEMS, pending="true") == []
    assert await usage_lines(at) == ONE_LINE
    own = (await at.invoices())[-1]
    assert (own["total"], own["status"]) == (104, "paid")
    assert caplog.text.count("its subscription has ended, so invoice") == 1
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_a_line_that_no_invoice_can_have_is_named_once(at: Shop) -> None:
    path = await final_before_its_line(at)
    await at.stripe_change(path, **{"pause_collection[behavior]": "void"})
    await at.stripe_delete(path)
    await at.kit.subscriptions.sync("acme")
    said = (
        "26 of words; their subscription has ended, and they get no invoice of their own: collection of its"
    )
    assert [said in late for late in await look_hourly(at, 3)].count(True) == 1
    assert await usage_lines(at) == []


async def test_months_of_a_yearly_plan_have_invoices_of_their_own(store_url: str, caplog: Caplog) -> None:
    yearly = plans_text("invoice_lines").replace(
        "  pro:\n    price: {amount_cents: 2900, interval: month}",
        "  pro:\n    price: {amount_cents: 2900, interval: year, included_per: month}",
    )
    async with shop(store_url, catalog=loads(yearly), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await ended(at)
        await flushed(at)
        at.go(timedelta(hours=2))
        await flushed(at)
        words = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
        assert (await usage_lines(at), words["delivered"], words["late"]) == (ONE_LINE, 26, 0)
        assert "final" not in caplog.text


async def test_a_line_never_tried_costs_two_requests(at: Shop) -> None:
    await ended(at)
    since = len(at.emulator.requests)
    assert (await flushed(at)).lines == 1
    found = [f"{one.method} {one.path.partition('?')[0]}" for one in at.emulator.requests[since:]]
    assert sorted(one.replace("/sub_1_", " ").split()[:2] for one in found) == [
        ["GET", "/v1/subscriptions"],
        ["POST", ITEMS],
    ]


async def test_a_close_of_written_lines_costs_one_request(at: Shop) -> None:
    await ended(at)
    await flushed(at)
    at.clock.advance(timedelta(minutes=10))
    since = len(at.emulator.requests)
    assert (await look_at_closes(at.kit)).confirmed == 1
    assert [f"{one.method} {one.path.partition('?')[0]}" for one in at.emulator.requests[since:]] == [
        "GET /v1/invoices"
    ]


async def test_customers_have_their_lines_written_together(at: Shop) -> None:
    """One customer's line waits for Stripe; meanwhile, the lines of the others are written."""
    for name in ("bob", "eve", "kim"):
        await at.subscribed(name, plan="pro")
        await at.kit.record(name, "words", 126)
    await ended(at)
    for name in ("bob", "eve", "kim"):
        await at.kit.subscriptions.sync(name)
    at.emulator.fail_next("delay", delay_s=1.0, times=None, path=ITEMS)
    at.clock.advance(timedelta(minutes=2))
    begun = monotonic()
    assert (await deliver(at.kit, everything=True, timeout_s=0)).lines == 4
    assert monotonic() - begun < 3.5
    assert await usage_lines(at) == 4 * ONE_LINE


async def test_a_customer_stripe_fails_for_delays_no_other(store_url: str) -> None:
    # F-229: three failed lines of one customer, which are the oldest, left others to later flushes.
    others = [f"b{number}" for number in range(6)]
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, start=HALF, shards=1) as at:
        await at.kit.stripe.sync()
        subscription = await at.subscribed(plan="pro")
        for plan in ("pro", "team"):
            await at.kit.subscriptions.change_plan("acme", plan)
            await at.kit.record("acme", {"words": 126, "pages": 1_010})
            at.clock.advance(timedelta(days=7))
        at.go(subscription.current_period_end + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        path = f"/v1/subscriptions/{subscription.id}"
        at.emulator.fail_next("error", status=503, times=None, path=path)
        assert (await flushed(at)).lines == 0
        for name in others:
            at.emulator.add_customer(f"cus_{name}")
            await at.kit.customers.link(name, f"cus_{name}")
            await at.kit.customers.set_plan(name, "pro")
            await at.kit.record(name, "words", 126)
        at.go(datetime(2031, 8, 1, 0, 5, tzinfo=UTC))
        assert (await deliver(at.kit)).lines == len(others)


async def test_a_line_that_stripe_may_have_is_looked_for(at: Shop) -> None:
    """The draft shows no line, and may lack the latest ones."""
    await ended(at)
    at.emulator.fail_next("drop", when="before", times=3, path=ITEMS)
    await flushed(at)
    at.emulator.clear_faults()
    since = len(at.emulator.requests)
    assert (await flushed(at)).lines == 1
    assert asked(at, since) == [f"GET {ITEMS}", f"POST {ITEMS}"]
