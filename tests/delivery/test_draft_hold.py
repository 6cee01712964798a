"""A renewal invoice waits until its usage is counted: held, released, finalized; other drafts are not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from books.period_books import assert_books
from drivers.period_ends import EVENTS, HOUR, JULY, JUNE, MINUTE, UNHELD, ending
from drivers.sampled import whole

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


@pytest.mark.dear("hours of looks, each quarter of an hour")
@pytest.mark.parametrize("hours", [2, whole(12)])
async def test_usage_away_over_a_periods_end_is_on_its_own_invoice(any_store_url: str, hours: int) -> None:
    """F-101."""
    async with ending(any_store_url) as at:
        await used(at)
        await fail_events(at)
        await at.hourly(JUNE - MINUTE, hours)
        (invoice,) = at.invoices()
        assert (invoice["status"], invoice["auto_advance"]) == ("draft", True)
        assert invoice["automatically_finalizes_at"] == int((JUNE + DAY).timestamp())
        at.stripe.clear_faults()
        reports = await at.hourly(JUNE + hours * HOUR, 2)
        assert sum(len(report.late) for report in reports) == 0
        assert at.billed() == [1000]
        assert at.billed("price_pro_tokens") == [300]
        (invoice,) = at.invoices()
        assert invoice["status"] in {"open", "paid"}
        at.go(JUNE + (hours + 4) * HOUR)
        assert at.invoices()[0]["status"] == "paid"
        assert writes(at) == ["update", "finalize"]
        await assert_books(at)


@pytest.mark.dear("hours of looks, each quarter of an hour")
@pytest.mark.parametrize("hours", [2, whole(12)])
async def test_without_a_hold_what_is_late_is_on_the_next_invoice(any_store_url: str, hours: int) -> None:
    async with ending(any_store_url, UNHELD) as at:
        at.stripe.fail_next("error", status=429, times=None, path=EVENTS)
        await used(at)
        reports = await at.hourly(JUNE - MINUTE, hours)
        at.stripe.clear_faults()
        reports += await at.hourly(JUNE + hours * HOUR, 2)
        late = {one.meter: one.quantity for report in reports for one in report.late}
        assert late == {"requests": 1000, "tokens": 300}
        assert writes(at) == []
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 1000]
        assert at.billed("price_pro_tokens") == [0, 300]
        await assert_books(at)


async def test_where_all_is_counted_stripe_keeps_its_own_hour(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        await used(at)
        await at.hourly(JUNE - 30 * MINUTE, 2)
        (invoice,) = at.invoices()
        assert invoice["status_transitions"]["finalized_at"] == int((JUNE + HOUR).timestamp())
        assert (at.billed(), writes(at)) == ([1000], [])


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


@pytest.mark.dear("a day of looks, each quarter of an hour")
async def test_a_hold_ends_by_itself_and_what_is_left_is_late(store_url: str) -> None:
    async with ending(store_url) as at:
        await used(at)
        at.stripe.fail_next("error", status=429, times=None, path=EVENTS)
        reports = await at.hourly(JUNE - MINUTE, 25)
        (invoice,) = at.invoices()
        assert invoice["status_transitions"]["finalized_at"] == int((JUNE + DAY).timestamp())
        at.stripe.clear_faults()
        reports += await at.hourly(JUNE + 25 * HOUR, 2)
        late = {one.meter: one.quantity for report in reports for one in report.late}
        assert late == {"requests": 1000, "tokens": 300}
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 1000]
        await assert_books(at)


async def test_a_flusher_that_was_dead_is_too_late_for_a_hold(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        await used(at)
        await at.flush()
        await used(at)
        at.go(JUNE + 3 * HOUR)
        (late,) = [one for one in (await at.flush()).late if one.meter == "requests"]
        assert late.quantity == 1010
        await at.look()
        assert writes(at) == []
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [1000, 1010]
        await assert_books(at)


async def test_drafts_of_others_are_left_alone(any_store_url: str) -> None:
    """Those of unpaid subscriptions, and any that a person has stopped."""
    async with ending(any_store_url) as at:
        await used(at)
        await fail_events(at)
        at.go(JUNE + MINUTE)
        (invoice,) = at.invoices()
        await at.found.client.v1.invoices.update_async(invoice["id"], {"auto_advance": False})
        before = len(writes(at))
        await at.hourly(JUNE + 11 * MINUTE, 3)
        at.stripe.clear_faults()
        await at.hourly(JUNE + 4 * HOUR, 2)
        assert len(writes(at)) == before
        assert at.invoices()[0]["status"] == "draft"


STEPS: tuple[Any, ...] = (
    {"action": "drop", "when": "after", "path": "update"},
    whole({"action": "drop", "when": "before", "path": "update"}),
    whole({"action": "drop", "when": "after", "path": "finalize"}),
    {"action": "drop", "when": "before", "path": "finalize"},
)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step['when']} {step['path']}")
async def test_an_answer_that_is_lost_costs_nothing(store_url: str, step: dict[str, Any]) -> None:
    """As if the process had died there: three tries, then nothing more in that look."""
    async with ending(store_url) as at:
        await used(at)
        await fail_events(at)
        at.go(JUNE + MINUTE)
        (invoice,) = at.invoices()
        path = f"/v1/invoices/{invoice['id']}"
        path = path if step["path"] == "update" else f"{path}/finalize"
        at.stripe.fail_next(step["action"], when=step["when"], times=3, path=path)
        await at.hourly(JUNE + 11 * MINUTE, 3)
        at.stripe.clear_faults()
        if step["path"] == "finalize":
            at.stripe.fail_next(step["action"], when=step["when"], times=3, path=path)
        await at.hourly(JUNE + 4 * HOUR, 3)
        at.go(JUNE + 9 * HOUR)
        assert (at.billed(), at.invoices()[0]["status"]) == ([1000], "paid")
        await assert_books(at)


async def forget(at: Ending) -> None:
    """What a kill before it was written leaves behind: the store does not know what Stripe has confirmed."""
    admin = await at.kit.store.admin()
    key = at.kit.store.keys.customer("acme").totals
    fields = [name for name in await admin.ask(admin.client.hkeys(key)) if name[-2:] in {b"|h", b"|f"}]
    if fields:
        await admin.ask(admin.client.hdel(key, *fields))


async def test_what_was_not_written_down_is_read_off_the_invoice(any_store_url: str) -> None:
    """As if the process were killed between each call to Stripe and the store."""
    async with ending(any_store_url) as at:
        await used(at)
        await fail_events(at)
        await at.flush()
        for minutes in (11, 17, 23):
            at.go(JUNE + minutes * MINUTE)
            await at.look()
            await forget(at)
        at.go(JUNE + 50 * MINUTE)
        await at.look()
        at.go(JUNE + 3 * HOUR)
        at.stripe.clear_faults()
        await at.flush()
        await at.look()
        await forget(at)
        assert at.invoices()[0]["status"] in {"open", "paid"}
        at.go(JUNE + 5 * HOUR)
        await at.look()
        assert writes(at) == ["update", "finalize"]
        at.go(JUNE + 2 * DAY)
        assert (at.billed(), at.invoices()[0]["status"]) == ([1000], "paid")
        await assert_books(at)


async def test_webhooks_have_a_close_looked_at_that_nothing_has_noted(any_store_url: str) -> None:
    """The flusher was dead before the period's end, and nothing of it was sealed."""
    async with ending(any_store_url) as at:
        await used(at)
        await fail_events(at)
        at.go(JUNE + MINUTE)
        await at.found.settle()  # invoice.created, and the renewal.
        assert (await at.look()) == (0, 0, [])
        at.go(JUNE + 3 * MINUTE)
        assert (await at.look()).open == 1
        assert at.invoices()[0]["automatically_finalizes_at"] == int((JUNE + DAY).timestamp())
        at.stripe.clear_faults()
        await at.hourly(JUNE + 5 * HOUR, 2)
        assert at.billed() == [1000]


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
