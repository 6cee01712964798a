"""Reports about usage without meters at Stripe (`billing: {usage: lines}`) say true things."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.command_line import InProcessShell
from drivers.customer_states import closed_period_cents
from drivers.delivery import deliver, kit_for
from drivers.health_findings import looked_at
from drivers.period_ends import look_at_closes, root_reader
from drivers.plans import plans_text
from drivers.shop import END, HALF, START, Shop, sell_nothing, shop
from drivers.usage_lines import CATALOG, end_period, shop_of_lines
from meterkit.catalog import loads
from meterkit.errors import CustomerError

pytestmark = pytest.mark.anyio

PLANS = plans_text("invoice_lines")


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


async def billed(at: Shop, words: int) -> None:
    """Record words, end the period, and have their line written."""
    await at.kit.record("acme", "words", words)
    await end_period(at)
    assert (await deliver(at.kit, everything=True)).why == ""


async def test_doctor_and_reconcile_ask_stripe_for_no_meters(at: Shop) -> None:
    await billed(at, 126)
    before = len(at.emulator.requests)
    assert await looked_at(at.kit, "stripe") == ("2 products of invoice lines", [])
    found = await at.kit.reconcile("acme", at=HALF)
    assert [(one.confirmed, one.difference, one.advice) for one in found] == [(26, 0, "")]
    assert not [one for one in at.emulator.requests[before:] if "/billing/meter" in one.path]


async def test_the_close_of_a_period_without_billed_usage_is_confirmed(at: Shop) -> None:
    await end_period(at)
    await at.kit.record("acme", "words", 1)
    at.clock.set(END + timedelta(days=31, minutes=15))
    await at.kit.subscriptions.sync("acme")
    closes = await look_at_closes(at.kit)
    assert (closes.open, closes.late) == (0, [])


async def test_usage_in_a_trial_is_not_late(at: Shop) -> None:
    found = PLANS.replace("  pro:\n", "  pro:\n    trial: 7d\n")
    at.kit.store.use(loads(found))
    await at.subscribed("bob", "pro")
    await at.kit.record("bob", "words", 126)
    at.go(timedelta(days=7, minutes=3))
    await at.kit.subscriptions.sync("bob")
    await deliver(at.kit, everything=True)
    at.clock.advance(timedelta(minutes=10))
    await look_at_closes(at.kit)
    at.go(timedelta(hours=2))
    await look_at_closes(at.kit)
    words = (await at.kit.usage("bob", period=START + timedelta(days=1)))["meters"]["words"]
    assert (words["delivered"], words["late"]) == (26, 0)


async def test_sync_refuses_a_billed_meter_without_a_price(at: Shop) -> None:
    unpriced = PLANS.replace("{bill: {per: 1, amount_cents: 4}}", "bill")
    at.kit.store.use(loads(unpriced))
    (problem,) = (await at.kit.stripe.sync(dry_run=True)).problems
    assert problem.startswith("plan pro, meter words: billed, and the file names no amount")


@pytest.mark.parametrize("store_url", ["valkey"], indirect=True)
async def test_a_queued_line_is_listed_and_dropped(at: Shop, store_url: str, tmp_path: Path) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(END + timedelta(seconds=1))
    at.emulator.fail_next("error", status=403, path="*")
    assert (await deliver(at.kit)).why.startswith("invoice lines: ")
    (tmp_path / "plans.yaml").write_text(PLANS)
    shell = InProcessShell(tmp_path, METERKIT_REDIS_URL=store_url, METERKIT_SHARDS="4")
    listed = shell.run("outbox", "list")
    assert "invoice line of $1.04 for usage of 1\N{EN DASH}30 Jun 2031" in listed.out
    assert "there may be more: --limit 1" in shell.run("outbox", "list", "--limit", "1").err
    assert "there may be more" not in listed.err
    (line,) = shell.run("outbox", "list", "--json").json
    assert (line["is_line"], line["quantity"], line["cents"]) == (True, 26, 104)
    of_states = {
        state: shell.run("outbox", "list", "--state", state, "--json") for state in ("queued", "dead")
    }
    assert {state: len(done.json) for state, done in of_states.items()} == {"queued": 1, "dead": 0}
    await at.kit.outbox.items.drop(line["identifier"], reason="a gift")
    words = (await at.kit.usage("acme", period=HALF))["meters"]["words"]
    assert (words["queued"], words["late"]) == (0, 26)


async def test_statement_and_root_are_those_of_the_invoices(store_url: str, tmp_path: Path) -> None:
    audit_url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, audit_url=audit_url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.emulator.add_customer("cus_bob")
        await at.kit.customers.link("bob", "cus_bob")
        await at.kit.customers.set_plan("bob", "pro")
        await at.kit.record("bob", "words", 101)
        await billed(at, 126)
        at.clock.advance(timedelta(minutes=10))
        await look_at_closes(at.kit, root_reader(at.kit, audit_url))
        found = await at.invoices()
        with_roots = [one["id"] for one in found if "meterkit_audit_root" in one["metadata"]]
        for customer, cents in (("acme", 104), ("bob", 4)):
            statement = await at.kit.statement(customer, HALF)
            (line,) = [one for one in statement.lines if one.meter == "words" and one.invoice]
            assert (line.amount_cents, line.invoice in with_roots) == (cents, True)


async def test_a_statement_prices_usage_that_waits_for_its_line(store_url: str, tmp_path: Path) -> None:
    """The draft of the renewal is there; the next period has another plan, and the file another price."""
    audit_url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, audit_url=audit_url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="team")
        await at.kit.record("acme", "words", 126)
        await at.kit.subscriptions.change_plan("acme", "pro")
        at.kit.store.use(loads(PLANS.replace("amount_cents: 7}", "amount_cents: 9}")))
        await end_period(at)
        before = await at.kit.statement("acme", HALF)
        await deliver(at.kit, everything=True)
        after = await at.kit.statement("acme", HALF)
        for statement, on_draft in ((before, False), (after, True)):
            (line,) = [one for one in statement.lines if one.meter == "words"]
            assert (line.quantity, line.amount_cents, line.invoice is not None) == (26, 182, on_draft)
            assert (statement.total_cents, statement.is_final) == (5900 + 2900 + 182, False)


async def test_a_statement_has_the_events_of_a_renamed_meter_apart(store_url: str, tmp_path: Path) -> None:
    """Each name has a line of its own, and the first of them had the events of both."""
    more: Any = {"audit_url": sqlite_in(tmp_path), "key_prefix": "renamed"}
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, **more) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        catalog = loads(
            PLANS.replace("words: {unit: word", "terms: {unit: word").replace("words: {inc", "terms: {inc")
        )
        async with kit_for(store_url, at.url, clock=at.clock, catalog=catalog, **more) as kit:
            await kit.subscriptions.sync("acme")
            await kit.record("acme", "terms", 107)
            await end_period(replace(at, kit=kit))
            await deliver(kit, everything=True)
            await drain_all(kit, more["audit_url"])
            statement = await kit.statement("acme", HALF)
    found = [(one.meter, one.quantity, one.counted, one.note) for one in statement.lines if one.meter]
    assert sorted(found, key=str) == [("terms", 7, 7, ""), ("words", 26, 26, "")]


async def test_a_customer_with_usage_of_the_open_period_is_not_deleted(at: Shop) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    with pytest.raises(CustomerError, match="lines are written at the end of the billing period"):
        await at.kit.customers.delete("bob")


async def test_lines_of_a_former_link_are_compared(at: Shop) -> None:
    for name in ("cus_bob", "cus_new"):
        at.emulator.add_customer(name)
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    at.go(END + timedelta(minutes=3))
    await deliver(at.kit, everything=True)
    await at.kit.customers.unlink("bob")
    await at.kit.customers.link("bob", "cus_new")
    assert [one.advice for one in await at.kit.reconcile("bob", at=HALF)] == [""]


async def test_an_override_changes_no_cost_of_a_closed_period(at: Shop) -> None:
    """Summaries and revenue had the price of now: $0.52 for a line of 1.04."""
    await billed(at, 126)
    await at.kit.record("acme", "words", 1)
    price = {"bill": {"per": 1, "amount_cents": 2}}
    await at.kit.customers.override("acme", {"words": {"overage": price}})
    assert await closed_period_cents(at.kit, await at.kit.usage("acme", period=HALF)) == 104
