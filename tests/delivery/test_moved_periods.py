"""F-225: others move a period or its invoice. Each unit is billed in its period, or late and said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import pytest

from drivers.delivery import Caplog, alerts, lines_of
from drivers.period_ends import EVENTS, HOUR, JUNE, MAY, MINUTE, Ending, assert_books, paying
from drivers.plans import plans_text
from drivers.store_keys import meter_token

Act: TypeAlias = Callable[[Ending], Awaitable[None]]

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
ACT: Final = MAY + 10 * DAY + HOUR
PLANS: Final = plans_text("moved_periods")
PRICES: Final = ("price_pro", "price_pro_requests", "price_pro_tokens")


async def shown(at: Ending) -> Any:
    """The youngest subscription at Stripe."""
    return (await at.found.client.v1.subscriptions.list_async({"status": "all"})).data[0]


def changed(**params: Any) -> Act:
    """A change of the subscription in Stripe's Dashboard; a trial's end is given in days from then."""

    async def act(at: Ending) -> None:
        asked: Any = dict(params)
        if isinstance(days := asked.get("trial_end"), int):
            asked["trial_end"] = int((at.clock.now() + days * DAY).timestamp())
        await at.found.client.v1.subscriptions.update_async((await shown(at))["id"], asked)

    return act


ANEW: Final = {"billing_cycle_anchor": {"type": "now"}}


async def ended(at: Ending) -> None:
    await at.found.client.v1.subscriptions.cancel_async((await shown(at))["id"])


async def canceled(at: Ending) -> None:
    """It is canceled, and the customer subscribes again at once."""
    await ended(at)
    await at.found.subscribe(items=[{"price": price} for price in PRICES])


def paused(*, resumed: str = "") -> Act:
    """It is paused, and resumed three days later in a cycle that begins then."""

    async def act(at: Ending) -> None:
        subscriptions, found = at.found.client.v1.subscriptions, (await shown(at))["id"]
        await subscriptions.pause_async(found)
        at.clock.advance(timedelta(seconds=20))
        await at.found.settle()
        await at.hourly(at.clock.now() + MINUTE, 4)
        if resumed:
            at.go(at.clock.now() + 3 * DAY)
            anchor: Any = {"billing_cycle_anchor": {"type": resumed}}
            await subscriptions.resume_async(found, anchor)

    return act


async def cheaper(at: Ending) -> None:
    """All prices change, and the cycle begins anew with them."""
    items = [
        {"id": item["id"], "price": item["price"]["id"].replace("pro", "cheap")}
        for item in (await shown(at))["items"]["data"]
    ]
    await changed(items=items, **ANEW)(at)


async def stamp_ahead(at: Ending) -> None:
    """Deliveries within one minute are stamped with minutes ahead, which are of the next period at Stripe."""
    for _ in range(6):
        await at.flush()
        await at.kit.record("acme", "requests", 1)


async def stamped_ahead(at: Ending) -> None:
    await stamp_ahead(at)
    await changed(**ANEW)(at)


async def stamped_ahead_unsent(at: Ending) -> None:
    """The same, and Stripe does not respond: one of them has the minute in which the next period begins."""
    await at.flush()
    at.stripe.fail_next("error", status=503, times=None, path=EVENTS)
    await stamp_ahead(at)
    await changed(**ANEW)(at)
    at.stripe.clear_faults()


async def replaced(at: Ending) -> None:
    """Another subscription takes its place; its last invoice stays a draft for an hour."""
    await stamp_ahead(at)
    subscriptions, found = at.found.client.v1.subscriptions, (await shown(at))["id"]
    await subscriptions.cancel_async(found, {"invoice_now": True, "prorate": True})
    await at.found.subscribe(items=[{"price": price} for price in PRICES])


async def finalized(at: Ending) -> None:
    """Another program finalizes the renewal's draft seconds after it was made."""
    at.go(JUNE + timedelta(seconds=5))
    drafts = at.found.client.v1.invoices.list_async({"status": "draft", "customer": "cus_acme"})
    (draft,) = (await drafts).data
    await at.found.client.v1.invoices.finalize_invoice_async(draft["id"])


async def voided(at: Ending) -> None:
    """The same; it is not paid, and a person voids it."""
    at.stripe.fail_payments("cus_acme")
    await finalized(at)
    (found,) = (await at.found.client.v1.invoices.list_async({"status": "open"})).data
    await at.found.client.v1.invoices.void_invoice_async(found["id"])
    at.stripe.mend_payments("cus_acme")


async def resumed(at: Ending) -> None:
    """A trial ends without a card, so Stripe pauses; days later the customer has one, and goes on."""
    await at.reach(MAY + 14 * DAY + HOUR)
    await at.kit.record("acme", "requests", 4)
    at.stripe.add_payment_method("cus_acme", "pm_card_visa")
    at.go(MAY + 20 * DAY)
    await at.found.client.v1.subscriptions.resume_async((await shown(at))["id"])


@dataclass(frozen=True, kw_only=True)
class Case:
    """An act at Stripe, and the place of 20 units that Stripe has and of 7 that are pending."""

    act: Act
    billed: list[int]  # Units on the invoices that have any.
    late: int = 0
    lost: int = 0  # How many of these no invoice bills.
    by_item: int = 0  # How many of these an invoice item bills at the price of before.
    said: int = 0  # How often the log says that usage is late.
    begun: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Further terms of the subscription.
    when: datetime = ACT
    used: int = 50  # Units that are recorded after it.
    waiting: int = 0  # Units in invoice items that wait for an invoice.


TRIAL: Final = {"trial_end": int((MAY + 14 * DAY).timestamp())}
CASES: Final[Mapping[str, Case]] = {
    # The credit for the rest takes 6 of the 10 included units that were used; the next period lacks them.
    "begun anew": Case(act=changed(**ANEW), billed=[20, 53], late=7, said=1),
    "begun anew at other prices": Case(act=cheaper, billed=[20, 46], late=7, by_item=7, said=1),
    "begun anew with stamps ahead": Case(act=stamped_ahead, billed=[27, 52], late=2, said=1),
    "begun anew with unsent stamps ahead": Case(act=stamped_ahead_unsent, billed=[27, 52], late=2, said=1),
    "replaced with stamps ahead": Case(act=replaced, billed=[27, 52]),
    "canceled, begun again": Case(act=canceled, billed=[47], late=27, lost=20, said=2),
    "paused": Case(act=paused(), billed=[], waiting=20, late=7, lost=7, said=1, used=5),
    "paused and resumed": Case(act=paused(resumed="now"), billed=[20, 40], late=7, lost=7, said=1),
    "a paid subscription on trial": Case(act=changed(trial_end=5), billed=[], late=27, lost=27, said=2),
    "finalized by others": Case(act=finalized, billed=[20, 47], late=7, said=1, when=JUNE - MINUTE),
    "voided": Case(act=voided, billed=[47], late=27, lost=20, said=2, when=JUNE - MINUTE),
    "collection paused: void": Case(
        act=changed(pause_collection={"behavior": "void"}), billed=[], late=77, lost=77, said=1
    ),
    "paused after a trial, resumed": Case(
        act=resumed,
        billed=[40],
        begun={**TRIAL, "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}}},
    ),
}


@asynccontextmanager
async def waiting(store_url: str, when: datetime, **more: Any) -> AsyncGenerator[Ending]:
    """Stripe has 20 units of acme's overage, and 7 are pending at an instant."""
    async with paying(store_url, PLANS, prices=PRICES, **more) as at:
        at.go(when - HOUR)
        await at.kit.record("acme", "requests", 30)
        await at.flush()
        at.go(when)
        await at.kit.record("acme", "requests", 7)
        yield at


async def go_on(at: Ending, until: datetime) -> None:
    """Deliver and look at closes around each renewal until an instant."""
    for _ in range(4):
        end_s = min(item["current_period_end"] for item in (await shown(at))["items"]["data"])
        end = datetime.fromtimestamp(end_s, UTC)
        if not at.clock.now() < end <= until:
            return
        for span in (15 * MINUTE, 3 * HOUR):
            await at.reach(end + span)
            await at.flush(everything=False)
            await at.look()


async def totals(at: Ending) -> dict[str, str]:
    """What the store has counted in closed periods."""
    admin = await at.kit.store.admin()
    found = await admin.ask(admin.client.hgetall(at.kit.store.keys.customer("acme").totals))
    return {name.decode(): value.decode() for name, value in found.items()}


async def counted(at: Ending) -> Counter[str]:
    """The units of requests of all closed periods, by kind."""
    units = Counter[str]()
    for name, value in (await totals(at)).items():
        if name[-5:-1] == meter_token("requests") and value.isdigit():
            units[name[-1]] += int(value)
    return units


def late_units(units: Counter[str]) -> int:
    """Units that are late and that Stripe never had, those that an invoice item bills included."""
    return units["t"] + units["a"] + units["f"]


def billed(at: Ending) -> list[int]:
    """Units of requests on each invoice that has any and is not void."""
    emulator: Any = at.stripe
    found: list[int] = []
    for invoice in emulator._account.invoices:
        lines: Any = () if invoice.status == "void" else invoice.to_json()["lines"]["data"]
        units = sum(
            line["quantity"]
            for line in lines
            if str(line["pricing"]["price_details"]["price"]).endswith("_requests")
        )
        found += [units] * bool(units)
    return found


async def assert_reconciled(at: Ending, *, waiting: int) -> None:
    """See that our books and Stripe's agree in each period, and know of each unit on an invoice."""
    invoiced = 0
    for start in {name.partition("|")[0] for name in await totals(at) if name.endswith("|e")}:
        for one in await at.kit.reconcile("acme", at=datetime.fromtimestamp(int(start) / 1000, UTC)):
            assert one.agrees, one
            invoiced += one.invoiced or 0
    assert invoiced == sum(billed(at)) + waiting


@pytest.mark.parametrize("name", CASES)
async def test_each_unit_is_on_one_invoice_or_late(store_url: str, name: str, caplog: Caplog) -> None:
    case = CASES[name]
    card = None if case.act is resumed else "pm_card_visa"
    async with waiting(store_url, case.when, begun=case.begun, card=card) as at:
        await case.act(at)
        at.clock.advance(timedelta(seconds=20))
        await at.found.settle()
        late_at_once = late_units(await counted(at))
        at.clock.advance(5 * MINUTE)
        await at.kit.record("acme", "requests", case.used)
        await at.flush(everything=False)
        await at.look()
        await go_on(at, at.clock.now() + 65 * DAY)
        await at.kit.record("acme", "requests", 1)  # The store closes a period when something is used.
        units = await counted(at)
        late, by_item = late_units(units) + units["b"], units["a"] + units["f"]
        assert (billed(at), late, late - units["m"] - by_item) == (case.billed, case.late, case.lost)
        assert (by_item, late_at_once) == (case.by_item, late_units(units))
        await assert_books(at)
        await assert_reconciled(at, waiting=case.waiting)
        if not case.begun and case.billed:
            assert units["o"] - units["m"] == sum(case.billed) + case.lost + case.by_item + case.waiting
        assert ["late usage of customer" in said for said in alerts(caplog)] == [True] * case.said


async def test_a_final_invoice_parks_no_usage_of_other_customers(store_url: str) -> None:
    """Both subscriptions began in the same second, and Stripe did not respond to the usage of either."""
    async with paying(store_url, PLANS, prices=PRICES, shards=1) as at:
        at.found.customer("zeta")
        await at.found.subscribe("zeta", items=[{"price": price} for price in PRICES])
        await at.found.settle()
        at.stripe.fail_next("error", status=503, times=None, path=EVENTS)
        for number, customer in enumerate(("acme", "zeta")):
            at.go(JUNE + 5 * (number - 2) * MINUTE)
            await at.kit.record(customer, "requests", 30)
            await at.flush()
        await finalized(at)
        await at.found.settle()
        states = {intent.customer: intent.state for intent in await at.kit.outbox.list()}
        assert states == {"acme": "parked", "zeta": "queued"}
        at.stripe.clear_faults()
        at.clock.advance(10 * MINUTE)
        await at.flush()
        assert at.stripe.accepted("cus_zeta", "requests") == 20


async def test_usage_of_a_removed_item_is_billed_by_an_invoice_item(store_url: str, caplog: Caplog) -> None:
    """The plans file still has the price; no item of the subscription bills what is sent now."""
    async with waiting(store_url, ACT) as at:
        (item,) = [
            {"id": item["id"], "deleted": True}
            for item in (await shown(at))["items"]["data"]
            if item["price"]["id"] == "price_pro_requests"
        ]
        await changed(items=[item])(at)
        await at.found.settle()
        await at.flush()
        await go_on(at, JUNE + DAY)
        units = await counted(at)
        assert (billed(at), units["f"], late_units(units) + units["b"]) == ([20], 7, 7)
        assert all(one.agrees for one in await at.kit.reconcile("acme", at=MAY))
        (said,) = alerts(caplog)
        assert "7 units of requests" in said
        assert "an invoice item bills them" in said


@pytest.mark.parametrize("name", ["begun anew", "finalized by others"])
async def test_a_flush_says_once_what_its_own_look_makes_late(
    store_url: str, name: str, caplog: Caplog
) -> None:
    """`meterkit flush` shows its report, and of the log what the report has not."""
    case = CASES[name]
    async with waiting(store_url, case.when) as at:
        await case.act(at)
        at.clock.advance(10 * MINUTE)
        shown = [line for _ in range(2) for line in lines_of(await at.flush(everything=False), "late")]
        assert len([line for line in shown if "7 of requests: " in line]) == 1
        late = [one for one in caplog.records if "late usage of" in one.msg]
        assert all(hasattr(one, "is_reported") for one in late)
        assert late_units(await counted(at)) == 7


@pytest.mark.parametrize("minutes", [0, 20 * 60])
async def test_usage_after_an_unnoticed_trial_end_is_free(
    store_url: str, minutes: int, caplog: Caplog
) -> None:
    """An operator ends a trial, and no webhook tells of it: what is recorded until the next sync is free."""
    async with waiting(store_url, ACT, begun=TRIAL) as at:
        await changed(trial_end="now")(at)
        at.clock.advance(timedelta(seconds=5) + minutes * MINUTE)
        await at.kit.record("acme", "requests", 50)
        await at.kit.subscriptions.sync("acme")
        await at.flush(everything=False)
        await go_on(at, at.clock.now() + 35 * DAY)
        assert billed(at) == []
        said = ["the trial of customer 'acme' ended" in message for message in caplog.messages]
        assert sum(said) == bool(minutes)
