"""F-30q: a period's statement has all its units, with where they were billed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.delivery import deliver
from drivers.period_ends import HOUR, JUNE, MAY, MINUTE, Ending, paying
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import CATALOG
from meterkit import Reconciled
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

LINES: Final = plans_text("invoice_lines")
DAY: Final = timedelta(days=1)
AUGUST: Final = END + timedelta(days=31)


@pytest.fixture
async def at(store_url: str, tmp_path: Path) -> AsyncGenerator[Shop]:
    """Acme has plan ``pro``, whose usage lines bill, since June."""
    async with shop(
        store_url, catalog=CATALOG, selling=sell_nothing, audit_url=sqlite_in(tmp_path)
    ) as opened:
        await opened.kit.stripe.sync()
        await opened.subscribed(plan="pro")
        await opened.kit.record("acme", "words", 126)
        yield opened


async def pass_renewal(at: Shop, tmp_path: Path, *, by: timedelta = timedelta(hours=3)) -> None:
    """Stripe makes invoices final; then the usage is delivered."""
    at.go(by)
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    await drain_all(at.kit, sqlite_in(tmp_path))


async def words_of(at: Shop, when: datetime) -> list[tuple[int | None, int, int, str]]:
    """Units, counted units, cents and note of the lines of words on a statement."""
    found = await at.kit.statement("acme", when)
    assert found.total_cents == sum(line.amount_cents for line in found.lines)
    return [
        (line.quantity, line.counted, line.amount_cents, line.note)
        for line in found.lines
        if line.meter == "words"
    ]


async def test_f_30q_units_that_missed_their_renewal_have_a_line(at: Shop, tmp_path: Path) -> None:
    at.go(END + timedelta(minutes=3))
    await pass_renewal(at, tmp_path)
    ((units, counted, cents, note),) = await words_of(at, HALF)
    assert (units, counted, cents) == (26, 26, 0)
    assert note.startswith("26 of its units are on the next invoice, by ii_")
    at.go(AUGUST + timedelta(minutes=3))
    await pass_renewal(at, tmp_path)
    renewal = (await at.invoices())[-1]["id"]
    assert await words_of(at, HALF) == [(26, 26, 0, f"26 of its units are on invoice {renewal}")]
    former = "usage of the period before: the statement of that period has its events"
    assert await words_of(at, END + DAY) == [(26, 0, 104, former)]


async def test_f_30q_units_of_a_dead_letter_are_on_no_invoice(store_url: str, tmp_path: Path) -> None:
    catalog = loads(LINES.replace("usage: lines}", "usage: lines, late_usage: dead_letter}"))
    async with shop(store_url, catalog=catalog, selling=sell_nothing, audit_url=sqlite_in(tmp_path)) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        at.go(END + timedelta(minutes=3))
        await pass_renewal(at, tmp_path)
        assert await words_of(at, HALF) == [(26, 26, 0, "26 of its units are on no invoice")]


async def relink(at: Ending, stripe_customer: str) -> None:
    await at.kit.customers.unlink("acme")
    at.found.customer(stripe_customer.removeprefix("cus_"))
    await at.kit.customers.link("acme", stripe_customer, force=True)


async def requests_of(at: Ending, when: datetime | None) -> Reconciled:
    found = await at.kit.reconcile("acme", at=when)
    return next(one for one in found if one.meter == "requests")


async def test_f_30q_a_new_link_leaves_paid_periods_agreed(store_url: str) -> None:
    async with paying(store_url) as at:
        await at.kit.record("acme", "requests", 20)
        await at.flush()
        await at.reach(MAY + timedelta(days=31, minutes=2))
        await at.close()
        before = await requests_of(at, MAY + DAY)
        assert (before.delivered, before.confirmed, before.invoiced, before.advice) == (10, 10, 10, "")
        await at.kit.record("acme", "requests", 17)
        await at.flush()
        at.clock.advance(HOUR)
        await relink(at, "cus_other")
        assert await requests_of(at, MAY + DAY) == before
        await at.kit.customers.set_plan("acme", "pro")
        at.clock.advance(10 * MINUTE)
        await at.kit.record("acme", "requests", 14)
        await at.flush()
        at.clock.advance(10 * MINUTE)
        now = await requests_of(at, None)
        assert now.delivered > before.delivered
        assert (now.confirmed, now.difference, now.advice) == (now.delivered, 0, "")


async def test_f_30q_a_new_link_lets_a_waiting_draft_close(store_url: str) -> None:
    async with paying(store_url) as at:
        await at.kit.record("acme", "requests", 20)
        await at.flush()
        await at.reach(JUNE + 2 * MINUTE)
        await relink(at, "cus_other")
        await at.close()
        assert [(one["status"], one["total"]) for one in at.invoices()] == [("paid", 1_050)]
        found = await requests_of(at, MAY + DAY)
        assert (found.stripe_customer, found.invoice, found.advice) == ("cus_acme", "final", "")
        assert (await at.look()).open == 0
