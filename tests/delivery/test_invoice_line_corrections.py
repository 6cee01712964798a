"""Corrections of usage without meters at Stripe (`billing: {usage: lines}`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import CATALOG, end_period, shop_of_lines
from faults.inner_steps import wrapped
from meterkit import Corrected
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

PLANS = plans_text("invoice_lines")
METERS = PLANS.replace("usage: lines", "usage: meters")


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


async def written(at: Shop) -> None:
    """Have the renewal's draft have a line of 26 words."""
    await at.kit.record("acme", "words", 126)
    await end_period(at)
    assert (await at.kit.flush(everything=True)).lines == 1


async def relinked(at: Shop) -> None:
    """Link the customer to another Stripe customer, who subscribes, and the former one to bob."""
    former = (await at.kit.customers.get("acme")).stripe_customer
    await at.kit.customers.unlink("acme")
    at.emulator.add_customer("cus_new")
    await at.kit.customers.link("acme", "cus_new")
    await at.subscribed(plan="pro")
    await at.kit.customers.link("bob", former or "")


async def corrected(at: Shop, units: int, correction: str, *, credit: bool = False) -> Corrected:
    found: Sequence[Corrected] = await at.kit.correct(
        "acme", {"words": units}, reason="a bug", correction_id=correction, credit=credit
    )
    return found[0]


async def lines(at: Shop) -> list[tuple[str, int]]:
    """Units and cents of each line that meterkit has written."""
    return [
        (line["quantity_decimal"], line["amount"])
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if "meterkit_line" in line["metadata"]
    ]


async def test_a_line_on_a_draft_is_lowered_once(at: Shop) -> None:
    await written(at)
    for _ in range(2):
        found = await corrected(at, 6, "c1")
        assert (found.by_hand, found.left_by_hand, found.beyond) == (6, 0, 0)
        assert await lines(at) == [("20", 80)]
    await corrected(at, 25, "c2")
    assert await lines(at) == [("0", 0)]
    at.go(timedelta(hours=2))
    assert (await at.invoices())[-1]["total"] == 2900
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


@pytest.mark.parametrize("when", ["pending", "queued", "not settled"])
async def test_usage_whose_line_is_not_written_is_corrected_once(at: Shop, when: str) -> None:
    await at.kit.record("acme", "words", 126)
    at.go(END + timedelta(seconds=3))
    if when == "queued":
        at.emulator.fail_next("error", status=403, path="/v1/invoiceitems")
        assert (await at.kit.flush(timeout_s=0)).left == 1
    elif when == "not settled":
        at.emulator.fail_next("drop", when="after", path="/v1/invoiceitems", skip=1)
        await at.kit.flush(timeout_s=0)
    found = await corrected(at, 6, "c1")
    assert (found.by_hand, found.by_hand_cents, found.beyond) == (6, 24, 0)
    await end_period(at)
    await at.kit.flush(everything=True)
    for _ in range(2):
        assert (await corrected(at, 6, "c1")).left_by_hand == 0
        assert await lines(at) == [("20", 80)]
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_later_usage_is_added_to_a_lowered_line(at: Shop) -> None:
    await written(at)
    await corrected(at, 6, "c1")
    await at.kit.record("acme", "words", 5, occurred_at=HALF)
    await at.kit.flush(everything=True)
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_a_final_line_has_a_credit_note(at: Shop) -> None:
    await written(at)
    at.go(timedelta(hours=2))
    assert (await corrected(at, 6, "c1")).left_by_hand == 6
    found = await corrected(at, 6, "c1", credit=True)
    assert (found.left_by_hand, found.credits[0].id[:3], found.credits[0].cents) == (0, "cn_", 24)
    assert await lines(at) == [("26", 104)]
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_i6_two_processes_credit_a_line_and_note_it_once(
    at: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(at)
    at.go(timedelta(hours=2))

    def behind_another(keep: Any) -> Any:
        async def keeping(*what: Any) -> Any:
            monkeypatch.undo()
            await corrected(at, 6, "c1", credit=True)
            return await keep(*what)

        return keeping

    wrapped(monkeypatch, "credits are kept", behind_another)
    assert (await corrected(at, 6, "c1", credit=True)).left_by_hand == 0
    entries = [entry.after for entry in await at.kit.customers.history("acme")]
    assert len([text for text in entries if "given back by cn_" in f"{text}"]) == 1
    assert len(await at.stripe_list("/v1/credit_notes")) == 1


async def test_a_line_lowered_before_a_kill_has_no_credit_note(at: Shop) -> None:
    await written(at)
    (item,) = [one["id"] for one in await at.stripe_list("/v1/invoiceitems")]
    at.emulator.fail_next("hang", when="after", path=f"/v1/invoiceitems/{item}", skip=1)
    correcting = asyncio.create_task(corrected(at, 6, "c1"))
    while await lines(at) != [("20", 80)]:  # noqa: ASYNC110 - the emulator has no event
        await asyncio.sleep(0.01)
    correcting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await correcting
    at.go(timedelta(hours=2))
    found = await corrected(at, 6, "c1", credit=True)
    assert (found.left_by_hand, found.credits[0].id) == (0, item)
    assert (await at.invoices())[-1]["total"] == 2900 + 80


async def test_corrected_units_leave_the_prices_of_other_units_alone(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.change_plan("acme", "team")
    await corrected(at, 10, "c1")
    await at.kit.record("acme", "words", 10)
    await end_period(at)
    await at.kit.flush(everything=True)
    assert sorted(await lines(at)) == [("10", 70), ("16", 64)]


@pytest.mark.parametrize("usage", ["lines", "meters"])
async def test_what_a_former_link_was_billed_is_credited_there(store_url: str, usage: str) -> None:
    plans = PLANS.replace("usage: lines", f"usage: {usage}")
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        await at.kit.flush()
        await end_period(at)
        await at.kit.flush(everything=True, timeout_s=0)
        at.go(timedelta(hours=3))
        await relinked(at)
        for _ in range(2):
            found = await corrected(at, 5, "c1", credit=True)
            assert (found.by_hand, found.left_by_hand, found.beyond) == (5, 0, 0)
        (june,) = [one["invoice"] for one in await at.stripe_list("/v1/credit_notes")]
        assert june in {one["id"] for one in await at.invoices() if one["total"] == 2900 + 104}


async def test_no_line_of_the_next_customer_is_credited(store_url: str) -> None:
    """Bob's line is on the invoice of the Stripe customer that acme had before, and is the newer one."""
    async with shop(store_url, catalog=loads(METERS), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 1)
        at.go(END + timedelta(hours=3))
        await at.kit.subscriptions.sync("acme")
        await relinked(at)
        await at.kit.record("acme", "words", 126)
        await at.kit.record("bob", "words", 150)
        await at.kit.flush(everything=True, timeout_s=0)
        at.go(END + timedelta(days=20))
        await at.kit.subscriptions.cancel("acme", immediately=True)
        at.go(END + timedelta(days=31, hours=3))
        for customer in ("acme", "bob"):
            await at.kit.subscriptions.sync(customer)
        assert (await corrected(at, 5, "c1", credit=True)).left_by_hand == 0
        assert {one["customer"] for one in await at.stripe_list("/v1/credit_notes")} == {"cus_new"}


async def test_no_negative_event_takes_back_what_an_invoice_line_bills(at: Shop) -> None:
    at.kit.store.use(loads(PLANS.replace("usage: lines", "usage: meters")))
    await at.kit.stripe.sync()
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    assert (await at.kit.flush(everything=True)).delivered == 1
    at.kit.store.use(CATALOG)
    await at.kit.correct("bob", {"words": 6}, reason="a bug", correction_id="c1")
    assert await at.kit.outbox.list() == []
