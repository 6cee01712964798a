"""Usage delivered after the invoice of its period is final: on the next invoice or on none, and logged."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from books.period_books import assert_books
from drivers.period_ends import EVENTS, HOUR, JULY, JUNE, UNHELD, ending

if TYPE_CHECKING:
    from drivers.period_ends import Ending

pytestmark = pytest.mark.anyio


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
