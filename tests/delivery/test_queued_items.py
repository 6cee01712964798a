"""F-227: invoice items for late usage that wait are listed, counted and steered, and `correct` knows them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.operator_pages import JSON, pages_of
from drivers.priced_shop import SWITCHED as CATALOG
from drivers.priced_shop import begin, item_lines, metered_lines, renewed, sell, switch
from drivers.shop import HALF, shop
from faults.inner_steps import failing
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop
    from meterkit import Corrected, QueuedItem

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("valkey")]


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    """A shop with 26 words at 4 cents that an invoice item is to bill, and 5 at 7 cents."""
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        await begin(opened)
        await opened.kit.flush(everything=True)
        await opened.kit.record("acme", "words", 26)
        await switch(opened, "seven")
        await opened.kit.subscriptions.sync("acme")
        await opened.kit.record("acme", "words", 5)
        yield opened


async def queued(at: Shop) -> QueuedItem:
    """The one item that waits."""
    (item,) = await at.kit.outbox.items.list()
    return item


async def correct(at: Shop, units: int, correction_id: str, **how: Any) -> Corrected:
    """Take words back."""
    (found,) = await at.kit.correct(
        "acme", {"words": units}, reason="a bug", correction_id=correction_id, **how
    )
    return found


async def test_a_queued_item_is_listed_with_its_amount_and_its_invoice(at: Shop) -> None:
    item, (begun,) = await queued(at), await at.stripe_list("/v1/subscriptions")
    assert (item.customer, item.meter, item.quantity) == ("acme", "words", 26)
    assert (item.cents, item.currency, item.subscription) == (104, "usd", begun["id"])
    assert item.period_start == (await at.kit.usage("acme"))["period"]["start"]
    at.clock.advance(timedelta(hours=2))
    assert (await queued(at)).age_s == 7200
    assert await at.kit.outbox.items.list(customer="another") == []
    await at.kit.flush(everything=True)
    assert await at.kit.outbox.items.list() == []


async def test_a_queued_item_is_counted_by_health_metrics_and_pages(at: Shop) -> None:
    health = await at.kit.health()
    assert health.looked_at["items"] == "1 wait"
    assert [one for one in health.findings if one.check == "items"] == []
    at.clock.advance(timedelta(minutes=61))
    (finding,) = [one for one in (await at.kit.health()).findings if one.check == "items"]
    assert "1 invoice item for late usage waits for more than an hour" in finding.problem
    assert "26 of words at USD 0.04 each of customer acme" in finding.problem
    async with pages_of(at.kit) as client:
        assert (await client.get("/", headers=JSON)).json()["outbox"]["invoice_items"] == 1
        (row,) = (await client.get("/outbox.json")).json()
        assert row["why"] == "invoice item of USD 1.04 for late usage"


async def test_a_dropped_item_is_late_and_on_no_invoice(at: Shop) -> None:
    item = await queued(at)
    with pytest.raises(MeterkitError, match="reason: found none"):
        await at.kit.outbox.items.drop(item.identifier, reason="")
    assert await at.kit.outbox.items.drop(item.identifier, reason="a test", by="olga") == item
    with pytest.raises(MeterkitError, match="no invoice item that waits has this identifier"):
        await at.kit.outbox.items.drop(item.identifier, reason="a test")
    entry = (await at.kit.customers.history("acme"))[-1]
    assert (entry.kind, entry.after, entry.cause) == ("late", "dropped: a test", "olga")
    assert (await at.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 35
    await at.kit.flush(everything=True)
    await renewed(at)
    assert (await item_lines(at), await metered_lines(at)) == ([], [("price_seven_words", 5, 7)])
    usage = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
    assert usage["late"] == 26
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_an_item_made_despite_a_drop_is_named(at: Shop) -> None:
    item = await queued(at)
    with failing("a late item is noted"):
        assert (await at.kit.flush()).items == 0
    await at.kit.outbox.items.drop(item.identifier, reason="a test")
    (found,) = await at.kit.reconcile("acme", at=HALF)
    assert "invoice items at Stripe have 26 late units, and 0 were billed" in found.advice


async def test_a_redriven_item_is_made_by_the_next_flush(at: Shop) -> None:
    at.emulator.fail_next("error", status=503, times=None, path="/v1/invoiceitems")
    await at.kit.flush(timeout_s=0)
    at.emulator.clear_faults()
    assert (await at.kit.flush()).items == 0
    item = await queued(at)
    assert (await at.kit.outbox.items.redrive(item.identifier)).due_at < item.due_at
    assert (await at.kit.flush()).items == 1


@pytest.mark.parametrize("when", ["queued", "final"])
async def test_a_correction_credits_late_items_to_the_cent(at: Shop, when: str) -> None:
    if when != "queued":
        await at.kit.flush(everything=True)
    if when == "final":
        await renewed(at)
    found = await correct(at, 20, "t1", credit=True)
    assert (found.never_billed, found.beyond, found.by_hand_lines[-1].units) == (0, 0, 15)
    assert found.by_hand_lines[-1].cents == 60
    if when != "final":
        assert (found.taken_back, found.by_hand, found.by_hand_lines[0].invoice) == (5, 15, None)
        assert "no invoice has them yet: correct again with the same id" in found.not_credited
        await at.kit.flush(everything=True)
        await renewed(at)
        found = await correct(at, 20, "t1", credit=True)
    assert (sum(note.cents for note in found.credits), found.not_credited) == (
        60 + 35 * (when == "final"),
        "",
    )
    rest = await correct(at, 30, "t2", credit=True)
    assert (sum(note.cents for note in rest.credits), rest.beyond) == (11 * 4, 19)
    charged = [cents for _, _, cents in await item_lines(at)]
    charged += [units * cents for _, units, cents in await metered_lines(at)]
    credited = [note["amount"] for note in await at.stripe_list("/v1/credit_notes")]
    assert sum(charged) == sum(credited)


async def test_a_correction_skips_an_item_deleted_at_stripe(at: Shop) -> None:
    await at.kit.flush(everything=True)
    (item,) = [one for one in await at.stripe_list("/v1/invoiceitems") if one["metadata"]]
    await at.stripe_delete(f"/v1/invoiceitems/{item['id']}")
    found = await correct(at, 31, "t1")
    assert (found.taken_back, found.by_hand, found.never_billed) == (5, 0, 26)
