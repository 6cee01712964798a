"""Renewal invoices wait until their usage is counted and have the audit root; later usage is late."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audit_database import ROOT, ROWS, root_in
from drivers.audited_kit import rows_in, sqlite_in
from drivers.period_ends import EVENTS, HOUR, JULY, JUNE, MINUTE, UNHELD, assert_books, ending

if TYPE_CHECKING:
    from pathlib import Path

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


def root_writes(at: Ending) -> int:
    """How often the root was written."""
    return sum(
        asked.method == "POST" and asked.path.startswith("/v1/invoices/in_") for asked in at.stripe.requests
    )


async def test_the_invoice_has_the_root_before_it_is_final(any_store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with ending(any_store_url, audit_url=url) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        at.go(JUNE + 11 * MINUTE)
        assert (await at.look()).confirmed == 1
        (invoice,) = at.invoices()
        (row,) = rows_in(url)
        assert invoice["status"] == "draft"
        assert (invoice["metadata"][ROOT], invoice["metadata"][ROWS]) == (row["hash"], "1")
        # Webhooks, also repeated ones, and later looks leave it as it is.
        await at.kit.record("acme", "requests", 5)
        await at.found.settle()
        await at.found.bring(*at.stripe.webhook_events)
        await at.hourly(JUNE + 15 * MINUTE, 3)
        (later,) = at.invoices()
        assert (later["status"], root_in(later)) == ("paid", root_in(invoice))
        assert root_writes(at) == 1


async def test_a_database_that_is_away_holds_up_no_invoice(
    any_store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ending(any_store_url, audit_url=f"sqlite:///{tmp_path}/none/audit.db") as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        with caplog.at_level(logging.WARNING, "meterkit.audit"):
            at.go(JUNE + 11 * MINUTE)
            assert (await at.look()).confirmed == 1
        at.go(JUNE + 3 * HOUR)
        (invoice,) = at.invoices()
        assert (invoice["status"], root_in(invoice), at.billed()) == ("paid", None, [1000])
        assert caplog.text.count("the journal of deliveries is not written; usage is still delivered") == 1
        told = [one.getMessage() for one in caplog.records if one.name == "meterkit.audit"]
        assert len(told) == 1
        assert told[0].startswith("invoices go out without the root of the audit log: the database")


async def used_in_may(at: Ending, quantity: int = 1_010) -> None:
    """Ten of them are included; the rest is overage, which Stripe bills."""
    await at.kit.record("acme", "requests", quantity)


async def test_late_overage_is_on_the_next_invoice(
    any_store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-101."""
    async with ending(any_store_url, UNHELD) as at:
        await used_in_may(at)
        at.go(JUNE + 2 * HOUR)
        report = await at.flush()
        assert [(one.customer, one.meter, one.quantity, one.is_billed) for one in report.late] == [
            ("acme", "requests", 1000, True)
        ]
        assert report.late[0].period == "2031-05-10T12:00:00Z"
        may, june = await at.counts(JUNE - HOUR), await at.counts(JUNE + HOUR)
        assert (may["late"], may["delivered"], may["pending"]) == (1000, 0, 0)
        assert (june["overage"], june["delivered"], june["recorded"]) == (1000, 1000, 1000)
        assert (await at.flush()).late == []
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 1000]
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len([line for line in lines if "late usage of customer 'acme'" in line]) == 1
        (entry,) = [one for one in await at.kit.customers.history("acme") if one.kind == "late"]
        assert entry.before == "1000 of requests at USD 0.05 each, of the period from 2031-05-10 12:00 UTC"
        assert entry.after == "billed in the period that is open"
        await assert_books(at)


async def test_late_usage_that_is_not_to_be_billed_is_said(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD.replace("0}", "0, late_usage: dead_letter}")) as at:
        await used_in_may(at)
        at.go(JUNE + 2 * HOUR)
        (late,) = (await at.flush()).late
        assert (late.quantity, late.is_billed) == (1000, False)
        may, june = await at.counts(JUNE - HOUR), await at.counts(JUNE + HOUR)
        assert (may["late"], may["overage"], june["recorded"]) == (1000, 1000, 0)
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 0]
        await assert_books(at)


async def test_intents_that_were_never_sent_are_late_too(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD) as at:
        at.stripe.fail_next("error", status=429, times=None, path=EVENTS)
        for _ in range(3):
            await used_in_may(at, 1_010)
            at.clock.advance(timedelta(minutes=5))
            await at.flush()
        at.go(JUNE + 2 * HOUR)
        at.stripe.clear_faults()
        report = await at.flush()
        assert (sum(one.quantity for one in report.late), report.parked) == (3_020, 0)
        await at.flush()
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 3_020]
        await assert_books(at)
