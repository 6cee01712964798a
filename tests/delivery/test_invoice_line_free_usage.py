"""Usage that costs nothing has no line: of trials, and of pauses in which invoices are voided."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import pytest

from drivers.delivery import Caplog
from drivers.period_ends import look_at_closes
from drivers.plans import plans_text
from drivers.shop import END, HALF, START, Shop, sell_nothing, shop
from drivers.usage_lines import flushed, shop_of_lines, usage_lines
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("invoice_lines")
ONE_LINE: Final = [("Words", "26", "4", 104)]


async def pause(at: Shop, behavior: str) -> None:
    """Pause collection, as a person does in the Dashboard."""
    (found,) = await at.stripe_list("/v1/subscriptions")
    await at.stripe_change(f"/v1/subscriptions/{found['id']}", **{"pause_collection[behavior]": behavior})
    await at.kit.subscriptions.sync("acme")


@pytest.mark.parametrize("why", ["trial", "void"])
async def test_free_usage_stays_free_under_another_link(store_url: str, why: str) -> None:
    plans = PLANS
    if why == "trial":
        for plan in ("pro", "team"):
            plans = plans.replace(f"  {plan}:\n", f"  {plan}:\n    trial: 14d\n")
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.advance(timedelta(days=1))
        await at.kit.record("acme", "words", 126)
        if why == "void":
            await pause(at, "void")
        else:
            linked = (await at.kit.customers.get("acme")).stripe_customer
            assert linked is not None
            at.emulator.add_payment_method(linked)
            await at.kit.subscriptions.change_plan("acme", "team")
        await at.kit.record("acme", "words", 20)
        await at.kit.customers.unlink("acme")
        at.emulator.add_customer("cus_new")
        await at.kit.customers.link("acme", "cus_new")
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.record("acme", "words", 10)
        at.go(END + timedelta(minutes=3))
        await flushed(at)
        assert await usage_lines(at) == [("Words", "10", "4", 40)]
        counts = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
        assert (counts["delivered"], counts["late"]) == (56, 0)
        assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


@pytest.mark.parametrize("usage", ["lines", "meters"])
async def test_usage_of_a_trial_that_comes_late_is_free(store_url: str, usage: str, caplog: Caplog) -> None:
    plans = PLANS.replace("{usage: lines}", f"{{usage: {usage}}}").replace(
        "  pro:\n", "  pro:\n    trial: 14d\n"
    )
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        (found,) = await at.stripe_list("/v1/subscriptions")
        at.emulator.add_payment_method(found["customer"])
        at.go(START + timedelta(days=14, minutes=5))
        await at.kit.subscriptions.sync("acme")
        for days in (13, 14):
            await at.kit.record("acme", "words", 130, occurred_at=START + timedelta(days=days))
        words = (await at.kit.usage("acme"))["meters"]["words"]
        assert (words["recorded"], words["overage"]) == (130, 30)
        assert (await at.kit.usage("acme", period=START))["meters"]["words"]["late"] == 130
        (told,) = [line for line in caplog.messages if "came late" in line]
        assert "what comes for it now costs nothing, as its period did" in told
        at.go(START + timedelta(days=44, minutes=3))
        await at.kit.subscriptions.sync("acme")
        await flushed(at)
        at.go(timedelta(hours=2))
        assert sum(one["amount_paid"] for one in await at.invoices()) == 2 * 2900 + 30 * 4


@pytest.mark.parametrize("usage", ["lines", "meters"])
@pytest.mark.parametrize("resumes", [True, False])
async def test_a_pause_frees_the_usage_of_periods_that_end_in_it(
    store_url: str, usage: str, resumes: bool
) -> None:
    """Both ways agree: Stripe voids the invoice of the whole period, and nothing if collection is resumed."""
    plans = PLANS.replace("{usage: lines}", f"{{usage: {usage}}}")
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        await flushed(at)
        at.clock.set(HALF)
        await pause(at, "void")
        await at.kit.record("acme", "words", 10)
        await flushed(at)
        if resumes:
            (found,) = await at.stripe_list("/v1/subscriptions")
            await at.stripe_change(f"/v1/subscriptions/{found['id']}", pause_collection="")
            await at.kit.subscriptions.sync("acme")
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        await flushed(at)
        at.go(timedelta(hours=2))
        counts = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
        assert (counts["delivered"], counts["late"]) == (36, 0)
        paid = sum(one["amount_paid"] for one in await at.invoices())
        assert paid == (2 * 2900 + 144 if resumes else 2900)


@pytest.mark.parametrize("usage", ["lines", "meters"])
async def test_what_comes_late_for_a_void_invoice_is_free(store_url: str, usage: str) -> None:
    """Also when collection goes on: no pause says then that the period was free."""
    plans = PLANS.replace("{usage: lines}", f"{{usage: {usage}}}")
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.set(HALF)
        await at.kit.record("acme", "words", 126)  # Not sent before the invoice is void.
        await pause(at, "void")
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        at.go(timedelta(days=2))
        await at.kit.subscriptions.sync("acme")
        (found,) = await at.stripe_list("/v1/subscriptions")
        await at.stripe_change(f"/v1/subscriptions/{found['id']}", pause_collection="")
        await at.kit.subscriptions.sync("acme")
        await at.kit.record("acme", "words", 130, occurred_at=HALF)
        await flushed(at)
        assert (await at.kit.usage("acme"))["meters"]["words"]["recorded"] == 0
        at.go(END + timedelta(days=31, minutes=3))
        await at.kit.subscriptions.sync("acme")
        at.go(timedelta(hours=2))
        assert [one["total"] for one in await at.invoices() if one["status"] == "paid"] == [2900, 2900]


@pytest.mark.parametrize("behavior", ["void", "mark_uncollectible", "keep_as_draft"])
async def test_an_invoice_of_its_own_in_a_pause(store_url: str, behavior: str, caplog: Caplog) -> None:
    """The months of a yearly plan have no renewal."""
    price = "{amount_cents: 2900, interval: month}"
    yearly = PLANS.replace(price, "{amount_cents: 2900, interval: year, included_per: month}", 1)
    async with shop(store_url, catalog=loads(yearly), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        at.clock.set(HALF)
        await pause(at, behavior)
        at.go(END + timedelta(minutes=3))
        for _ in range(3):
            await flushed(at)
            at.go(timedelta(hours=2))
        counts = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
        said = caplog.text.count("collection of its subscription is paused")
        if behavior == "keep_as_draft":
            assert (await usage_lines(at), counts["delivered"], said) == (ONE_LINE, 26, 0)
            assert (await at.invoices())[-1]["status"] == "draft"
        else:
            assert (await usage_lines(at), counts["late"], said) == ([], 26, 1)


async def used_in_pause(at: Shop, path: str) -> None:
    """Pause a subscription, serve its customer by a status set by hand, and use 500 words in mid-month."""
    await at.post(f"{path}/pause", {"type": "subscription"})
    await at.kit.subscriptions.sync("acme")
    await at.kit.customers.set_status("acme", "active")
    at.go(HALF)
    await at.kit.record("acme", "words", 500)
    await flushed(at)


@pytest.mark.parametrize(
    ("end", "anchor"),
    [("resume", "now"), ("resume", "unchanged"), ("cancel", ""), ("another", ""), ("late resume", "now")],
)
async def test_usage_of_a_pause_stays_free_when_it_is_over(store_url: str, end: str, anchor: str) -> None:
    async with shop_of_lines(store_url) as at:
        (found,) = await at.stripe_list("/v1/subscriptions")
        path = f"/v1/subscriptions/{found['id']}"
        at.go(START + timedelta(days=1))
        await at.kit.record("acme", "words", 102)
        await used_in_pause(at, path)
        assert (await at.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 0
        at.go(timedelta(days=45 if end == "late resume" else 3))
        if end in {"cancel", "another"}:
            await at.stripe_delete(path)
            await at.kit.subscriptions.sync("acme")
            if end == "another":
                await at.subscribed(plan="pro")
                await at.kit.record("acme", "words", 103)
        else:
            await at.post(f"{path}/resume", {"billing_cycle_anchor": anchor})
            await at.kit.subscriptions.sync("acme")
            await at.kit.record("acme", "words", 103)
        for _ in range(5):
            at.go(timedelta(days=16))
            await at.kit.subscriptions.sync("acme")
            await flushed(at)
            await look_at_closes(at.kit)
        lines = [("Words", "2", "4", 8)]  # Before the pause.
        if end == "another":
            # Of the first month a day is paid, to which 4 words belong: 96 are taken off the new one.
            lines.append(("Words", "99", "4", 396))
        elif end != "cancel":
            lines.append(("Words", "3", "4", 12))
        assert await usage_lines(at) == lines
        counts = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
        assert (counts["recorded"], counts["delivered"], counts["late"]) == (500, 496, 0)
        assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_reconcile_expects_no_line_for_events_of_a_pause(store_url: str) -> None:
    catalog = loads(PLANS.replace("{usage: lines}", "{usage: meters}"))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        made = await at.subscribed(plan="pro")
        at.go(START + timedelta(days=1))
        await used_in_pause(at, f"/v1/subscriptions/{made.id}")
        at.go(timedelta(days=3))
        await at.post(f"/v1/subscriptions/{made.id}/resume", {})
        await at.kit.subscriptions.sync("acme")
        at.go(timedelta(days=32))
        await at.kit.subscriptions.sync("acme")
        (words,) = await at.kit.reconcile("acme", at=HALF)
        assert (words.delivered, words.confirmed, words.advice) == (400, 400, "")
