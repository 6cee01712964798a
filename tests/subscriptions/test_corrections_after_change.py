"""Units are taken back at the price that they were billed at, whatever changed since (F-222)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import pytest

from drivers.customer_states import strand_usage
from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.priced_shop import CATALOG, PLANS, metered_lines, renewed, sell, usage_lines
from drivers.sampled import whole
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from faults.inner_steps import failing, wrapped
from meterkit import Corrected, Subscription
from meterkit.catalog import Catalog, loads
from meterkit.errors import StoreError, StripeUnavailableError
from meterkit.testing import StripeEmulator
from subscriptions.test_prices_by_model import CATALOG as BY_MODEL
from subscriptions.test_prices_by_model import lines
from subscriptions.test_prices_by_model import use as use_models

pytestmark = pytest.mark.anyio

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
USAGE: Final = loads(plans_text("corrections_after_change_usage"))
LOOP: Final[dict[str, Any]] = {"reason": "a loop", "correction_id": "c-1"}


async def use(at: Shop, quantity: int, meter: str = "tokens") -> None:
    await at.kit.record("acme", meter, quantity)
    assert (await at.kit.flush(everything=True)).is_complete
    at.clock.advance(5 * MINUTE)


async def begin(at: Shop, plan: str = "basic", *, used: int = 160) -> Subscription:
    """Subscribe, and use and deliver units in mid-period, of which 100 are included."""
    begun = await at.subscribed(plan=plan)
    at.clock.set(HALF)
    await use(at, used)
    return begun


async def switch(at: Shop, plan: str) -> None:
    assert (await at.kit.subscriptions.change_plan("acme", plan)).confirmed
    at.clock.advance(5 * MINUTE)


async def change_at_stripe(at: Shop, subscription: str, before: str, after: str, **params: str) -> None:
    """Switch the items at Stripe, as a person does in the Dashboard or in the portal."""
    found = (await at.stripe_subscription(subscription))["items"]["data"]
    for place, item in enumerate(found):
        price = item["price"]["id"].replace(before, after)
        params |= {f"items[{place}][id]": item["id"], f"items[{place}][price]": price}
    await at.stripe_change(f"/v1/subscriptions/{subscription}", **params)


async def correct(
    at: Shop, quantity: int, *, credit: bool = False, id_: str = "c-1", meter: str = "tokens"
) -> Corrected:
    """Correct units, after a dry run that says the same; and deliver what takes them back."""
    given: dict[str, Any] = LOOP | {"correction_id": id_}
    (tried,) = await at.kit.correct("acme", {meter: quantity}, **given, dry_run=True)
    (found,) = await at.kit.correct("acme", {meter: quantity}, **given, credit=credit)
    parts = (found.taken_back, found.granted_next, found.by_hand, found.never_billed, found.beyond)
    assert found.asked == sum(parts) == quantity
    names = (*(field for field in found.__dataclass_fields__ if field not in {"credits", "not_credited"}),)
    if not found.credits:
        assert [getattr(tried, name) for name in names] == [getattr(found, name) for name in names]
    await at.kit.flush(everything=True)
    return found


def by_hand(found: Corrected) -> list[tuple[int, int]]:
    assert found.by_hand == sum(line.units for line in found.by_hand_lines)
    assert found.by_hand_cents == sum(line.cents for line in found.by_hand_lines)
    return [(line.units, line.cents) for line in found.by_hand_lines]


async def balance(at: Shop) -> int:
    (customer,) = await at.stripe_list("/v1/customers")
    return -int(customer["balance"])


async def notes(at: Shop) -> Sequence[int]:
    return [note["amount"] for note in await at.stripe_list("/v1/credit_notes")]


async def agrees(at: Shop) -> None:
    for one in await at.kit.reconcile("acme", at=HALF):
        assert (one.advice, one.mispriced, one.difference) == ("", 0, 0), one


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        yield opened


@pytest.mark.parametrize(("plan", "after"), [("cheaper", 3), whole("same", 5)])
async def test_units_of_an_ended_price_are_credited_at_that_price(at: Shop, plan: str, after: int) -> None:
    await begin(at)
    await switch(at, plan)
    await use(at, 20)
    found = await correct(at, 30, credit=True)
    assert (found.taken_back, found.sent_back, found.granted_next) == (20, 20, 0)
    assert by_hand(found) == [(10, 50)]
    (line,) = found.by_hand_lines
    (note,) = found.credits
    assert (note.invoice, note.line, note.units, note.cents) == tuple(line)
    assert (found.left_by_hand, found.not_credited, await balance(at)) == (0, "", 50)
    # The credit note leaves the invoice line as it is, so the units stay recorded.
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage"] == 60
    await use(at, 7)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 60, 5), (f"price_{plan}_tokens", 7, after)]
    await agrees(at)


async def test_units_under_a_former_event_name_are_credited(store_url: str) -> None:
    """A change of plan has given the customer the event name that the plans file has by now."""
    plans = re.sub(r", stripe_price: price_\w+", "", PLANS)
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as first:
        await first.kit.stripe.sync()
        await begin(first)
        edited = loads(plans.replace("ai_tokens", "ai_tokens_2"))
        async with kit_for(store_url, first.url, clock=first.clock, catalog=edited) as kit:
            at = replace(first, kit=kit)
            await kit.stripe.sync()
            await switch(at, "cheaper")
            await use(at, 20)
            found = await correct(at, 30, credit=True)
            assert (found.taken_back, found.sent_back) == (20, 20)
            assert (by_hand(found), await balance(at)) == ([(10, 50)], 50)
            await use(at, 7)
            await renewed(at)
            billed = [(units, cents) for _, units, cents in await usage_lines(at)]
            assert sorted(billed) == [(7, 21), (60, 300)]


async def test_without_credit_a_correction_names_the_invoice_line(at: Shop) -> None:
    await begin(at, used=184)
    await switch(at, "cheaper")
    found = await correct(at, 84)
    assert (found.taken_back, by_hand(found), found.left_by_hand) == (0, [(84, 420)], 84)
    assert (await notes(at), await balance(at)) == ([], 0)
    invoice = (await at.invoices())[-1]
    assert found.by_hand_lines[0].invoice == invoice["id"]
    assert found.by_hand_lines[0].line in {line["id"] for line in invoice["lines"]["data"]}
    asked = [await at.kit.correct("acme", {"tokens": 84}, **LOOP, credit=True) for _ in range(2)]
    ((again,), (last,)) = asked
    assert (again, again.is_repeated, again.left_by_hand) == (last, True, 0)
    assert (await notes(at), await balance(at)) == ([420], 420)
    said = [entry.after for entry in await at.kit.customers.history("acme") if entry.kind == "correction"]
    (note,) = again.credits
    assert said == [
        "0 taken back, 84 sent to Stripe before, 0 never recorded: a loop",
        f"$4.20 given back by {note.id}: a loop",
    ]
    # The line is credited once, whatever the id.
    more = await correct(at, 84, credit=True, id_="c-2")
    assert (more.by_hand, more.included, await notes(at)) == (0, 84, [420])


async def test_an_open_invoice_is_lowered(at: Shop) -> None:
    begun = await begin(at)
    at.clock.set(END)
    await at.fail_payments()
    at.go(END + 2 * HOUR)
    await at.kit.subscriptions.sync("acme")
    invoice = (await at.invoices())[-1]
    assert (invoice["status"], invoice["amount_due"], begun.plan) == ("open", 1_300, "basic")
    found = await correct(at, 40, credit=True)
    assert (by_hand(found), found.left_by_hand, await balance(at)) == ([(40, 200)], 0, 0)
    assert (await at.invoices())[-1]["amount_due"] == 1_100


async def test_the_line_named_on_a_draft_is_the_one_credited(at: Shop) -> None:
    await begin(at, "cheaper")
    at.go(END)
    await at.kit.subscriptions.sync("acme")
    draft = await correct(at, 30, credit=True)
    assert (by_hand(draft), "is a draft: correct again" in draft.not_credited) == ([(30, 90)], True)
    at.go(END + 2 * HOUR)
    final = await correct(at, 30, credit=True)
    assert final.by_hand_lines == draft.by_hand_lines
    assert final.credits[0].line == draft.by_hand_lines[0].line


async def test_billed_units_are_corrected_beside_those_of_this_period(at: Shop) -> None:
    await begin(at, "other")
    await use(at, 30, "pages")
    await renewed(at)
    await at.kit.subscriptions.sync("acme")
    await at.kit.record("acme", "tokens", 5)
    found = await at.kit.correct("acme", {"pages": 3, "tokens": 2}, **LOOP)
    parts = {one.meter: (one.taken_back, one.by_hand, one.beyond) for one in found}
    assert parts == {"pages": (0, 3, 0), "tokens": (2, 0, 0)}


async def test_usage_that_was_billed_more_than_35_days_ago_stays(at: Shop) -> None:
    await begin(at, "cheaper")
    await renewed(at)
    await at.kit.subscriptions.sync("acme")
    at.go(END + timedelta(days=35))
    await at.kit.subscriptions.sync("acme")
    assert by_hand(await correct(at, 1)) == [(1, 3)]
    at.clock.set(END + timedelta(days=35, seconds=1))
    assert (await correct(at, 1, id_="c-2")).beyond == 1


async def test_one_id_credits_once_asked_at_the_same_time(at: Shop) -> None:
    await begin(at)
    await switch(at, "cheaper")
    asked = (
        at.kit.correct("acme", {"tokens": 40}, reason="a loop", correction_id=id_, credit=True)
        for id_ in ("c-1", "c-1", "c-1", "c-2")
    )
    *firsts, other = [one.by_hand for (one,) in await asyncio.gather(*asked)]
    # Of 60 units on the line the first id got 40, and the other one the rest.
    assert sorted([*{*firsts}, other]) == [20, 40]
    assert (sorted(await notes(at)), await balance(at)) == ([100, 200], 300)


async def test_a_change_after_reading_invoices_is_noticed(at: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = await begin(at)
    reads: list[str] = []

    def changing(read: Any) -> Any:
        async def read_then_change(*given: Any, **more: Any) -> Any:
            found = await read(*given, **more)
            reads.append("change" if not reads else "again")
            if reads == ["change"]:
                # A change of plan, before its process has stored the new plan.
                await change_at_stripe(at, begun.id, "basic", "cheaper", proration_behavior="always_invoice")
                await strand_usage(at.kit)
            return found

        return read_then_change

    wrapped(monkeypatch, "billed usage is read", changing)
    (found,) = await at.kit.correct("acme", {"tokens": 60}, **LOOP)
    assert (found.taken_back, by_hand(found), set(reads)) == (0, [(60, 300)], {"change", "again"})


async def test_a_credit_note_is_issued_once_despite_a_crash(at: Shop) -> None:
    await begin(at)
    await switch(at, "cheaper")
    at.emulator.fail_next("drop", when="after", skip=1, path="/v1/credit_notes")
    with failing("credits are kept", InterruptedError()), pytest.raises(InterruptedError):
        await correct(at, 60, credit=True)
    # By then Stripe has forgotten the idempotency key, and knows the credit note.
    at.clock.advance(timedelta(days=2))
    found = await correct(at, 60, credit=True)
    assert (by_hand(found), found.left_by_hand, found.is_repeated) == ([(60, 300)], 0, True)
    assert (await notes(at), await balance(at)) == ([300], 300)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_f_30f_a_credit_note_is_issued_once_despite_a_500(at: Shop, when: Any) -> None:
    await begin(at)
    await switch(at, "cheaper")
    at.emulator.fail_next("error", when=when, skip=1, path="/v1/credit_notes")
    with pytest.raises(StripeUnavailableError):
        await correct(at, 60, credit=True)
    assert by_hand(await correct(at, 60, credit=True)) == [(60, 300)]
    assert (await notes(at), await balance(at)) == ([300], 300)


async def test_nothing_is_corrected_while_invoices_are_unreadable(at: Shop) -> None:
    await begin(at)
    await switch(at, "cheaper")
    await use(at, 20)
    at.emulator.fail_next("error", status=503, times=100, path="/v1/invoices")
    with pytest.raises(StripeUnavailableError):
        await correct(at, 60)
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage"] == 80
    at.emulator.clear_faults()
    assert (await correct(at, 60)).is_repeated is False


async def test_a_correction_waits_for_a_price_change_in_doubt(at: Shop) -> None:
    begun = await begin(at)
    at.emulator.fail_next("drop", skip=1, times=20, path=f"/v1/subscriptions/{begun.id}")
    with pytest.raises(StripeUnavailableError):
        await at.kit.subscriptions.change_plan("acme", "cheaper")
    at.emulator.clear_faults()
    with pytest.raises(StoreError, match="prices of customer 'acme' are being changed"):
        await correct(at, 60)
    at.clock.advance(3 * MINUTE)
    # Stripe has not made the change: the price goes on, and a negative event takes the units back.
    found = await correct(at, 60, credit=True)
    assert (found.taken_back, found.sent_back, by_hand(found)) == (60, 60, [])
    await renewed(at)
    assert await metered_lines(at) == []


async def test_units_before_an_unseen_portal_change_are_credited(at: Shop) -> None:
    begun = await begin(at, "cheaper", used=150)
    await change_at_stripe(at, begun.id, "cheaper", "basic", proration_behavior="always_invoice")
    found = await correct(at, 30, credit=True)
    assert (by_hand(found), found.left_by_hand) == ([(30, 90)], 0)
    await at.kit.subscriptions.sync("acme")
    await renewed(at)
    assert await metered_lines(at) == [("price_cheaper_tokens", 50, 3)]
    await agrees(at)


async def test_tax_and_discount_are_credited_in_proportion(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell_with_tax) as at:
        begun = await at.subscribed(plan="basic")
        await at.stripe_change("/v1/coupons", id="tenth", percent_off="10", duration="forever")
        (customer,) = await at.stripe_list("/v1/customers")
        await at.stripe_change(f"/v1/customers/{customer['id']}", **{"address[country]": "DE"})
        changed = {"automatic_tax[enabled]": "true", "discounts[0][coupon]": "tenth"}
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", **changed)
        at.clock.set(HALF)
        await use(at, 160)
        await renewed(at)
        await at.kit.subscriptions.sync("acme")
        invoice = (await at.invoices())[-1]
        assert (invoice["status"], invoice["total"]) == ("paid", round((1_000 + 300) * 0.9 * 1.2))
        found = await correct(at, 60, credit=True)
        assert (by_hand(found), found.left_by_hand) == ([(60, 300)], 0)
        assert await balance(at) == round(300 * 0.9 * 1.2)


def sell_with_tax(emulator: StripeEmulator, catalog: Catalog) -> None:
    """Sell the plans to a customer in a country that is taxed."""
    emulator.tax_percent = Decimal(20)
    sell(emulator, catalog)


@pytest.mark.parametrize("plan", ["flat", whole("dear"), whole("more")])
async def test_units_at_prices_by_model_stay_as_billed_once_corrected(store_url: str, plan: str) -> None:
    async with shop(store_url, catalog=BY_MODEL, selling=sell_nothing) as at:
        await at.begun("pro")
        await use_models(at, other=2_000, opus=10_000, mini=20_000)
        await use(at, 0, "output_tokens")
        await switch(at, plan)
        await use_models(at, other=1_000, opus=3_000, mini=4_000)
        await use(at, 0, "output_tokens")
        first = await correct(at, 5_000, meter="output_tokens")
        second = await correct(at, 9_000, credit=True, id_="c-2", meter="output_tokens")
        assert (first.taken_back, second.taken_back) == (5_000, 3_000)
        assert by_hand(second) == [(1_000, 4), (5_000, 2)]
        shown = (await at.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"]
        await renewed(at)
        assert shown == sum(cents for *_, cents in await lines(at)) == 214
        await agrees(at)


async def test_of_several_ended_prices_the_newest_goes_first(at: Shop, store_url: str) -> None:
    await begin(at, used=130)  # 30 at 5 cents
    await switch(at, "cheaper")
    await use(at, 20)  # at 3 cents
    await switch(at, "same")
    await use(at, 10)  # at 5 cents again
    async with kit_for(store_url, at.url, clock=at.clock, catalog=CATALOG, stripe_api_key=None) as kit:
        (tried,) = await kit.correct("acme", {"tokens": 22}, **LOOP, dry_run=True)
    assert (tried.taken_back, by_hand(tried)) == (10, [(12, 36)])
    first = await correct(at, 22, credit=True)
    assert (first.taken_back, by_hand(first)) == (10, [(12, 36)])
    await use(at, 4)
    second = await correct(at, 30, credit=True, id_="c-2")
    assert (second.taken_back, by_hand(second)) == (4, [(8, 24), (18, 90)])
    assert (await balance(at), sorted(await notes(at))) == (150, [24, 36, 90])
    third = await correct(at, 30, credit=True, id_="c-3")
    assert (third.taken_back, third.included, by_hand(third)) == (18, 18, [(12, 60)])
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 30, 5), ("price_cheaper_tokens", 20, 3)]
    await agrees(at)


async def test_corrections_return_the_last_tier_first(store_url: str) -> None:
    async with shop(store_url, catalog=USAGE, selling=sell_nothing) as at:
        await at.begun("pro")
        await use(at, 150, "words")  # 100 cost nothing, and 50 cost 166.67 cents
        await renewed(at)
        await at.kit.subscriptions.sync("acme")
        for nth, cents in enumerate((84, 83)):
            found = await correct(at, 25, credit=True, id_=f"c-{nth}", meter="words")
            assert by_hand(found) == [(25, cents)]
        assert (await correct(at, 9, id_="c-3", meter="words")).beyond == 9
        assert await balance(at) == 167
