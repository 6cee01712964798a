"""A month on the emulator: the statement is the invoice, to the cent, and each line's events add up."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from auditing import sqlite_in
from hooking import hooked
from meterkit import MeterkitError, SettingsError
from meterkit.catalog import loads
from meterkit.delivery.closing import Closer
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer
from meterkit.stripe.api import StripeApi
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from hooking import Hooked
    from meterkit import Statement, StatementLine

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  words:    {unit: word, stripe: {event_name: words}}
routes: [{match: "*", consume: {requests: 1}}]
credits:
  usd: {unit: money, costs: {tokens: provider_prices}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 5, overage: deny}, words: {included: 0, overage: deny}}
  pro:
    rank: 10
    price: {amount_cents: 1000, interval: month, stripe_price: price_pro}
    meters:
      requests: {included: 10, overage: {bill: {per: 2, amount_cents: 5}}}
      words:    {included: 100, overage: {bill: {per: 1, amount_cents: 3}}}
  max:
    rank: 20
    price: {amount_cents: 3000, interval: month, stripe_price: price_max}
    meters:
      requests: {included: 10, overage: {bill: {per: 1, amount_cents: 1}}}
      words:    {included: 100, overage: {bill: {per: 1, amount_cents: 2}}}
"""
APRIL: Final = datetime(2031, 4, 10, 12, tzinfo=UTC)
MAY: Final = datetime(2031, 5, 10, 12, tzinfo=UTC)
JUNE: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


@asynccontextmanager
async def month(store_url: str, url: str) -> AsyncGenerator[Hooked]:
    """Acme pays for ``pro`` since 10 April, noon."""
    clock, catalog = Clock(APRIL), loads(PLANS)
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    stripe.add_plans(catalog)
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=catalog, audit_url=url) as at:
        at.customer()
        await at.subscribe(
            items=[{"price": name} for name in ("price_pro", "price_pro_requests", "price_pro_words")]
        )
        await at.settle()
        yield at


async def go(at: Hooked, to: datetime) -> None:
    at.clock.set(to)
    at.emulator.advance()
    await at.settle()


async def drain(at: Hooked, url: str) -> None:
    assert await Drainer(at.kit.store, Database(url), least_age_ms=0).drain() == 0


async def close(at: Hooked, url: str) -> None:
    """Have Stripe count all, write the root, and finalize the invoice."""
    await at.kit.flush(everything=True, timeout_s=0)
    at.clock.advance(timedelta(minutes=11))
    at.emulator.advance()
    api = StripeApi(at.kit.settings)
    root_of = Drainer(at.kit.store, Database(url), least_age_ms=0).root_of
    await Closer(at.kit.store, lambda: api, root_of).turn()
    await api.close()
    at.clock.advance(3 * HOUR)
    at.emulator.advance()
    await at.settle()


def assert_sums(statement: Statement) -> None:
    """All that a statement says adds up."""
    assert statement.total_cents == sum(line.amount_cents for line in statement.lines)
    assert [line.note for line in statement.lines if line.kind == "difference"] == []
    for line in statement.lines:
        if line.kind == "usage":
            assert sum(event.billed for event in line.events) == line.counted
            assert line.note == ""
            if line.invoice is not None:
                assert line.counted == line.quantity
            for event in line.events:
                assert event.quantity == event.included + event.granted + event.credited + event.overage


def usage_of(statement: Statement, meter: str) -> list[StatementLine]:
    return [line for line in statement.lines if line.meter == meter]


async def test_a_month_with_all_there_is(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with month(store_url, url) as at:
        await go(at, APRIL + 29 * DAY)
        await at.kit.record("acme", "words", 130)
        await go(at, MAY + timedelta(minutes=5))
        await close(at, url)
        await go(at, MAY + 2 * DAY)
        await at.kit.grants.add("acme", {"words": 20}, grant_id="gift")
        await at.kit.grants.add("acme", {"usd": 10}, grant_id="top-up")
        await at.kit.record("acme", "words", 150)
        await at.kit.record("acme", "requests", 41)
        await at.kit.record("acme", "words", 7, occurred_at=MAY - 2 * DAY)  # Late.
        at.clock.advance(timedelta(minutes=1))
        await at.kit.correct("acme", {"requests": 6}, reason="a loop", correction_id="t-1", by="ada")
        await go(at, MAY + 10 * DAY)
        await at.kit.subscriptions.change_plan("acme", "max")
        await at.settle()
        at.clock.advance(timedelta(minutes=3))
        await at.kit.record("acme", "requests", 17)
        await go(at, JUNE - HOUR)
        await at.kit.flush(everything=True, timeout_s=0)
        await drain(at, url)
        await go(at, JUNE + timedelta(minutes=2))
        await close(at, url)
        found = await at.kit.statement("acme", MAY + DAY)
        again = await at.kit.statement("acme", found.period_id)
        assert found == again
        assert (found.period_start, found.period_end, found.is_final) == (MAY, JUNE, True)
        invoices: Any = at.emulator
        totals = {one.id: one.to_json()["total"] for one in invoices._account.invoices}
        assert found.invoices
        assert found.total_cents == sum(totals[one.id] for one in found.invoices)
        assert_sums(found)
        before, after = usage_of(found, "requests")
        assert [(line.quantity, line.unit_amount) for line in (before, after)] == [(25, "2.5"), (17, "1")]
        assert [event.why for event in before.events] == [
            "10 included, 31 overage",
            "correction, -6 overage: a loop",
        ]
        assert [event.why for event in after.events] == ["17 overage"]
        assert [(event.price_micros, event.price_per) for event in before.events[:1]] == [(50_000, 2)]
        late = [event for line in usage_of(found, "words") for event in line.events if event.late]
        assert [
            (event.quantity, event.why.endswith("late for the period from 2031-04-10")) for event in late
        ] == [(7, True)]
        renewal = found.invoices[-1]
        assert renewal.audit_root is not None
        assert Database(url).root("acme") == (renewal.audit_rows, renewal.audit_root)
        credit = [(one.credit, one.entry, one.meter) for one in found.balance]
        assert credit == [("usd", "grant", None)]
        first = await at.kit.statement("acme", APRIL + DAY)
        assert_sums(first)
        assert [line.quantity for line in usage_of(first, "words")] == [30]


async def test_pages_of_events(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with month(store_url, url) as at:
        for nth in range(1, 8):
            await at.kit.record("acme", "words", nth)
        await drain(at, url)
        whole = await at.kit.statement("acme")
        (line,) = usage_of(whole, "words")
        found, after = list[int](), ""
        while True:
            page = await at.kit.statement("acme", line=line.id, after=after, most=3)
            (one,) = page.lines
            found += [event.quantity for event in one.events]
            after = one.after
            if not after:
                break
        assert found == [event.quantity for event in line.events] == [*range(1, 8)]
        with pytest.raises(MeterkitError, match="the statement has no such line"):
            await at.kit.statement("acme", line="nosuch")
        with pytest.raises(MeterkitError, match="allowed is the `after` of a line"):
            await at.kit.statement("acme", after="nonsense")
        with pytest.raises(MeterkitError, match="most: found -1"):
            await at.kit.statement("acme", most=-1)


async def test_before_the_invoice_the_plans_file_has_the_prices(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with month(store_url, url) as at:
        await go(at, MAY + DAY)
        await at.kit.record("acme", "requests", 13)
        await drain(at, url)
        found = await at.kit.statement("acme")
        assert (found.is_final, found.invoices) == (False, ())
        assert [(line.id, line.amount_cents) for line in found.lines] == [
            ("plan", 1000),
            ("usage/requests", 8),
        ]
        assert found.total_cents == 1008
        assert_sums(found)


async def test_an_invoice_that_someone_has_changed_is_not_hidden(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with month(store_url, url) as at:
        await at.kit.record("acme", "words", 130)
        await go(at, MAY - HOUR)
        fields: Any = {
            "event_name": "words",
            "timestamp": int((MAY - 2 * HOUR).timestamp()),
            "payload": {"stripe_customer_id": "cus_acme", "value": "5"},
        }
        await at.client.v1.billing.meter_events.create_async(fields)
        await at.kit.flush(everything=True, timeout_s=0)
        await go(at, MAY + timedelta(minutes=2))
        await close(at, url)
        (line,) = usage_of(await at.kit.statement("acme", APRIL + DAY), "words")
        assert line.note == "the invoice has 35 units, and the events come to 30"


async def test_without_an_audit_log_the_cure_is_named(store_url: str) -> None:
    async with hooked(store_url, catalog=loads(PLANS)) as at:
        with pytest.raises(SettingsError, match="set METERKIT_AUDIT_URL to a database"):
            await at.kit.statement("acme")
