"""A renewal invoice waits until its usage is counted: held, released, finalized; other drafts are not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from books.period_books import assert_books
from drivers.period_ends import EVENTS, HOUR, JULY, JUNE, MINUTE, UNHELD, ending

if TYPE_CHECKING:
    from drivers.period_ends import Ending

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)


async def used(at: Ending) -> None:
    """Units of two meters, of which 1,000 and 300 are overage."""
    await at.kit.record("acme", "requests", 1_010)
    await at.kit.record("acme", "tokens", 400)


def writes(at: Ending) -> list[str]:
    """The calls that have changed an invoice."""
    return [
        f"{asked.path.rpartition('/')[2] if asked.path.endswith('finalize') else 'update'}"
        for asked in at.stripe.requests
        if asked.method == "POST" and asked.path.startswith("/v1/invoices/")
    ]


async def fail_events(at: Ending) -> None:
    """Stripe takes no meter events, and for a while it says so."""
    at.stripe.fail_next("error", status=503, times=None, path=EVENTS)


async def test_usage_away_over_a_periods_end_is_on_its_own_invoice(any_store_url: str) -> None:
    """F-101."""
    async with ending(any_store_url) as at:
        await used(at)
        await fail_events(at)
        await at.hourly(JUNE - MINUTE, 2)
        (invoice,) = at.invoices()
        assert (invoice["status"], invoice["auto_advance"]) == ("draft", True)
        assert invoice["automatically_finalizes_at"] == int((JUNE + DAY).timestamp())
        at.stripe.clear_faults()
        reports = await at.hourly(JUNE + 2 * HOUR, 2)
        assert sum(len(report.late) for report in reports) == 0
        assert at.billed() == [1000]
        assert at.billed("price_pro_tokens") == [300]
        (invoice,) = at.invoices()
        assert invoice["status"] in {"open", "paid"}
        at.go(JUNE + 6 * HOUR)
        assert at.invoices()[0]["status"] == "paid"
        assert writes(at) == ["update", "finalize"]
        await assert_books(at)


async def test_without_a_hold_what_is_late_is_on_the_next_invoice(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD) as at:
        at.stripe.fail_next("error", status=429, times=None, path=EVENTS)
        await used(at)
        reports = await at.hourly(JUNE - MINUTE, 2)
        at.stripe.clear_faults()
        reports += await at.hourly(JUNE + 2 * HOUR, 2)
        late = {one.meter: one.quantity for report in reports for one in report.late}
        assert late == {"requests": 1000, "tokens": 300}
        assert writes(at) == []
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 1000]
        assert at.billed("price_pro_tokens") == [0, 300]
        await assert_books(at)


async def test_a_hold_is_given_back_within_stripes_own_hour(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        await used(at)
        await fail_events(at)
        await at.flush()
        at.go(JUNE + 11 * MINUTE)
        assert (await at.look()).open == 1
        assert at.invoices()[0]["metadata"] == {
            "meterkit_own_finalization": str(int((JUNE + HOUR).timestamp()))
        }
        at.stripe.clear_faults()
        at.go(JUNE + 14 * MINUTE)
        await at.flush()
        at.go(JUNE + 17 * MINUTE)
        await at.look()
        (invoice,) = at.invoices()
        assert (invoice["metadata"], invoice["status"]) == ({}, "draft")
        assert invoice["automatically_finalizes_at"] == int((JUNE + HOUR).timestamp())
        at.go(JUNE + 2 * HOUR)
        assert (at.billed(), at.invoices()[0]["status"]) == ([1000], "paid")


@pytest.mark.parametrize(("when", "call"), [("after", "update"), ("before", "finalize")])
async def test_an_answer_that_is_lost_costs_nothing(store_url: str, when: Any, call: str) -> None:
    """As if the process had died there: three tries, then nothing more in that look."""
    async with ending(store_url) as at:
        await used(at)
        await fail_events(at)
        at.go(JUNE + MINUTE)
        (invoice,) = at.invoices()
        path = f"/v1/invoices/{invoice['id']}"
        path = path if call == "update" else f"{path}/finalize"
        at.stripe.fail_next("drop", when=when, times=3, path=path)
        await at.hourly(JUNE + 11 * MINUTE, 3)
        at.stripe.clear_faults()
        if call == "finalize":
            at.stripe.fail_next("drop", when=when, times=3, path=path)
        await at.hourly(JUNE + 4 * HOUR, 3)
        at.go(JUNE + 9 * HOUR)
        assert (at.billed(), at.invoices()[0]["status"]) == ([1000], "paid")
        await assert_books(at)


@pytest.mark.parametrize("collects", [True, False])
async def test_the_last_invoice_after_an_immediate_end_is_collected(
    any_store_url: str, *, collects: bool
) -> None:
    """Stripe may leave it a draft that nobody collects."""
    async with ending(any_store_url, collects_after_cancel=collects) as at:
        at.clock.advance(MINUTE / 2)  # A meter event is of a whole minute, which must have begun.
        await at.kit.record("acme", "requests", 1_010)
        await at.kit.subscriptions.cancel("acme", immediately=True)
        await at.found.settle()
        ended = at.clock.now()
        await at.hourly(ended + 3 * MINUTE, 4)
        at.go(ended + 9 * HOUR)
        (invoice,) = at.invoices()
        assert (at.billed(), invoice["status"]) == ([1000], "paid")
        (one,) = await at.kit.reconcile("acme", at=ended - HOUR)
        assert (one.invoiced, one.advice) == (1000, "")


async def test_a_last_invoice_stopped_by_a_person_is_left_alone(any_store_url: str) -> None:
    async with ending(any_store_url, collects_after_cancel=False) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        subscription = (await at.found.client.v1.subscriptions.list_async()).data[0].id
        at.clock.advance(2 * MINUTE)
        await at.found.client.v1.subscriptions.cancel_async(subscription, {"invoice_now": True})
        await at.found.settle()
        await at.hourly(at.clock.now() + 3 * MINUTE, 4)
        assert at.invoices()[0]["status"] == "draft"
