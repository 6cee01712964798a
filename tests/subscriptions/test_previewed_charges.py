"""A preview of seats or of a plan shows the amounts that Stripe invoices, now and next, to the cent.

Compared with the customer's own items: kept and new prices, discounts, taxes, a yearly price.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.priced_shop import buyer
from drivers.sampled import whole
from drivers.shop import END, HALF, shop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from drivers.priced_shop import Buyer
    from drivers.shop import Shop
    from meterkit import Proration

pytestmark = pytest.mark.anyio

CHANGES: Final[Mapping[str, dict[str, Any]]] = {
    "more seats": {"seats": 6},
    "fewer seats": {"seats": 3},
    "a dearer plan": {"plan": "pro"},
    "a cheaper plan": {"plan": "team"},
}
COUPONS: Final[Mapping[str, dict[str, Any]]] = {
    "no coupon": {},
    "a percentage": {"percent_off": 33, "duration": "forever"},
    "an amount": {"amount_off": 251, "currency": "usd", "duration": "forever"},
    "the first month": {"percent_off": 50, "duration": "repeating", "duration_in_months": 1},
}


def period_cents(proration: Proration) -> int:
    """The price of the next period that a preview says."""
    found = re.search(r"From the next period on it costs USD ([\d,.]+) a", proration.description)
    assert found is not None, proration.description
    return int(found[1].replace(",", "").replace(".", ""))


async def compare(found: Buyer, change: Mapping[str, Any]) -> None:
    """See that a change is invoiced as it was previewed, now and for the period after it."""
    preview = await found.preview(**change)
    now = found.shop.clock.now()
    made = await found.change(**change)
    assert made == preview
    known = await found.shop.kit.subscriptions.sync("acme")
    assert known is not None
    end = known.current_period_end
    later = end + timedelta(minutes=1)
    while found.shop.clock.now() < later:
        found.shop.clock.set(min(later, found.shop.clock.now() + timedelta(days=30)))
        found.shop.emulator.advance()
    charged = await found.invoiced(now) if preview.effective_at == now else 0
    assert charged == preview.net_cents == preview.charge_cents - preview.credit_cents
    assert await found.invoiced(end) == period_cents(preview)


MATRIX: Final = (
    ("no coupon", "no tax", False),
    ("the first month", "no tax", False),
    ("an amount", "tax within", False),
    ("a percentage", "tax on top", False),
    ("a percentage", "tax on top", True),
)


# Each change and each of the terms once; the rest of the matrix in `make field`.
PAIRS: Final = [
    (row if nth % len(CHANGES) == place else whole(*row))
    for nth, terms in enumerate(MATRIX)
    for place, row in enumerate((change, *terms) for change in CHANGES)
]


@pytest.mark.parametrize(("change", "coupon", "tax", "item"), PAIRS)
async def test_a_change_at_kept_prices_is_invoiced_as_previewed(
    store_url: str, change: str, coupon: str, tax: str, item: bool
) -> None:
    plan = "pro" if change == "a cheaper plan" else "team"
    async with buyer(store_url, plan=plan, coupon=COUPONS[coupon], tax=tax, item=item) as found:
        await compare(found, CHANGES[change])


async def test_a_change_to_a_yearly_price_is_invoiced_as_previewed(store_url: str) -> None:
    async with buyer(store_url, plan="team", tax="tax on top") as found:
        await compare(found, {"plan": "year"})


async def test_a_scheduled_interval_change_shows_its_periods_cost(store_url: str) -> None:
    async with buyer(store_url, plan="year", coupon=COUPONS["a percentage"]) as found:
        await compare(found, {"plan": "team"})


async def test_charges_already_waiting_are_no_part_of_a_preview(store_url: str) -> None:
    """Changes of seats wait for the next invoice: Stripe's preview has them too."""
    async with buyer(store_url, plan="team") as found:
        waiting = 0
        for seats in (6, 9, 3):
            preview = await found.preview(seats=seats)
            assert await found.change(seats=seats) == preview
            waiting += preview.net_cents
            pending = await found.shop.stripe_list("/v1/invoiceitems", pending="true")
            assert sum(item["amount"] for item in pending) == waiting
        preview = await found.preview(plan="pro")
        assert await found.change(plan="pro") == preview
        assert (await found.shop.invoices())[-1]["total"] == waiting + preview.net_cents


@pytest.mark.parametrize(("plan", "change"), [("team", "a dearer plan"), ("pro", "a cheaper plan")])
async def test_usage_is_no_part_of_a_preview(store_url: str, plan: str, change: str) -> None:
    """Also where a change bills the usage until then."""
    async with buyer(store_url, plan=plan, coupon={}) as found:
        await found.shop.kit.record("acme", "words", 30)
        await found.shop.kit.flush(everything=True)
        preview = await found.preview(**CHANGES[change])
        assert await found.change(**CHANGES[change]) == preview
        found.shop.clock.set(END + timedelta(hours=2))
        found.shop.emulator.advance()
        totals = sum(invoice["total"] for invoice in (await found.shop.invoices())[1:])
        usage = 20 * (4 if plan == "pro" else 5)
        assert totals == preview.net_cents + period_cents(preview) + usage


async def test_a_preview_refused_by_stripe_is_marked_an_estimate(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with buyer(store_url, plan="team") as found:
        found.shop.emulator.fail_next("error", status=400, path="/v1/invoices/create_preview")
        estimate = await found.preview(seats=8)
        assert estimate.charge_cents == (6 * 809 + 1) // 2
        assert "is estimated by the prices of the plans file" in estimate.description
        assert any("does not preview a change of subscription" in one.message for one in caplog.records)


async def test_a_scheduled_plan_keeps_its_scheduled_price(store_url: str) -> None:
    async with buyer(store_url, plan="pro", scheduled="team") as found:
        await compare(found, CHANGES["more seats"])


async def renew(at: Shop) -> None:
    at.clock.set(END + timedelta(days=6))
    at.emulator.advance()


def change(**params: str) -> Callable[[Shop], Awaitable[None]]:
    async def act(at: Shop) -> None:
        at.clock.set(HALF)
        (begun,) = await at.stripe_list("/v1/subscriptions")
        await at.stripe_change(f"/v1/subscriptions/{begun['id']}", **params)
        at.clock.advance(timedelta(days=1))

    return act


MOVES: Final[Mapping[str, Callable[[Shop], Awaitable[None]]]] = {
    "renewed": renew,
    "begun anew": change(**{"billing_cycle_anchor[type]": "now"}),
    "given a trial": change(trial_end=str(int((HALF + timedelta(days=9)).timestamp()))),
}


@pytest.mark.parametrize("move", MOVES)
async def test_a_preview_is_what_is_charged_after_a_late_webhook(store_url: str, move: str) -> None:
    """F-227: no webhook has told of the period at Stripe."""
    async with shop(store_url) as at:
        await at.subscribed(plan="team")
        await MOVES[move](at)
        before = len(await at.invoices())
        preview = (await at.kit.subscriptions.preview("acme", plan="pro")).proration
        changed = await at.kit.subscriptions.change_plan("acme", "pro")
        assert changed.proration == preview
        now_s = int(at.clock.now().timestamp())
        prorated = [
            line["amount"]
            for invoice in (await at.invoices())[before:]
            for line in invoice["lines"]["data"]
            if line["period"]["start"] == now_s
        ]
        assert sum(prorated) == preview.net_cents
        assert preview.net_cents > 0 or move == "given a trial"
