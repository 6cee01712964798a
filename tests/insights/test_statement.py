"""Statements: each is the invoice, to the cent, and the events of each line add up."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, sqlite_in
from drivers.period_ends import HOUR, JUNE, MAY, MINUTE, Ending, paying
from drivers.plans import plans_text
from drivers.usage_figures import JSON, page_of, statement_parts
from meterkit import MeterKit, MeterkitError, Statement, StatementLine
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("statement")
APRIL: Final = datetime(2031, 4, 10, 12, tzinfo=UTC)
DAY: Final = timedelta(days=1)


PRICES: Final = ("price_pro", "price_pro_requests", "price_pro_words")


def assert_sums(statement: Statement) -> None:
    assert statement.total_cents == sum(line.amount_cents for line in statement.lines)
    assert [line.note for line in statement.lines if line.kind == "difference"] == []
    for line in statement.lines:
        if line.kind == "usage":
            assert (sum(event.billed for event in line.events), line.note) == (line.counted, "")
            if line.invoice is not None:
                assert line.counted == line.quantity
            for event in line.events:
                assert event.quantity == event.included + event.granted + event.credited + event.overage


async def assert_agreement(at: Ending, overage_cents: int) -> None:
    """Statement and usage page of the open period agree before its events are in the audit log, and after."""
    async with page_of(at.kit) as client:
        cost = (await client.get("/", headers=JSON)).json()["cost"]
    assert (cost["overage_cents"], cost["unpriced"]) == (overage_cents, [])
    before = await at.kit.statement("acme")
    await at.drain()
    statement = await at.kit.statement("acme")
    assert before.total_cents == statement.total_cents == cost["plan_cents"] + overage_cents
    assert figures_of(before) == figures_of(statement)
    assert_sums(statement)


def figures_of(statement: Statement) -> list[tuple[str | None, int | None, int]]:
    return [(line.meter, line.quantity, line.amount_cents) for line in statement.lines]


def usage_of(statement: Statement, meter: str) -> list[StatementLine]:
    return [line for line in statement.lines if line.meter == meter]


@pytest.fixture
async def at(store_url: str, tmp_path: Path) -> AsyncGenerator[Ending]:
    """Acme pays for ``pro`` since 10 April, noon."""
    url = sqlite_in(tmp_path)
    async with paying(store_url, PLANS, clock=Clock(APRIL), prices=PRICES, audit_url=url) as opened:
        yield opened


async def test_a_debt_and_its_repayment_stand_in_the_statements(at: Ending) -> None:
    await at.kit.grants.add("acme", {"usd": 1}, grant_id="first")
    await at.kit.record("acme", "usd_charged", 3_000_000)
    await at.reach(MAY + 2 * DAY)
    await at.kit.grants.add("acme", {"usd": 5}, grant_id="second")
    found = [await at.kit.statement("acme", start + DAY) for start in (APRIL, MAY)]
    april, may = ({(one.entry, one.grant_id, one.amount_micros) for one in of.balance} for of in found)
    assert april == {("grant", "first", 1_000_000), ("burn", "first", -1_000_000), ("debt", "", -2_000_000)}
    assert may == {
        ("grant", "second", 5_000_000),
        ("repayment", "second", -2_000_000),
        ("repayment", "", 2_000_000),
    }


async def test_a_credit_note_of_a_metered_line_stands_beside_the_total(at: Ending) -> None:
    """Over HTTP: neither the lines nor the total nor the root of the invoice follows a credit note."""
    await at.reach(APRIL + 29 * DAY)
    await at.kit.record("acme", "words", 130)
    await at.reach(MAY + timedelta(minutes=2))
    await at.close()
    before = await at.kit.statement("acme", APRIL + DAY)
    (words,) = usage_of(before, "words")
    assert (words.quantity, words.amount_cents) == (30, 90)
    line: Any = {"type": "invoice_line_item", "invoice_line_item": words.id, "amount": 60}
    note: Any = {"invoice": words.invoice, "lines": [line], "refund_amount": 60}
    await at.found.client.v1.credit_notes.create_async(note)
    await at.found.settle()
    found = await at.kit.statement("acme", APRIL + DAY)
    assert_sums(found)
    assert (found.lines, found.total_cents) == (before.lines, before.total_cents)
    assert [one.credit_notes_cents for one in found.invoices if one.id == words.invoice] == [60]
    assert [replace(one, credit_notes_cents=0) for one in found.invoices] == list(before.invoices)


async def test_an_invoice_of_many_lines_is_read_whole(at: Ending) -> None:
    """Stripe shows ten lines with an invoice."""
    for _ in range(11):
        item: Any = {"customer": "cus_acme", "unit_amount_decimal": "100", "currency": "usd"}
        await at.found.client.v1.invoice_items.create_async(item)
    await at.kit.record("acme", "words", 130)
    await at.flush()
    await at.reach(MAY + 3 * HOUR)
    await at.drain()
    found = await at.kit.statement("acme", APRIL + DAY)
    assert [line.amount_cents for line in found.lines if line.kind == "other"] == [100] * 11
    assert_sums(found)


async def test_late_usage_costs_the_same_on_page_statement_and_invoice(at: Ending) -> None:
    """Events recorded again in the open period have no price: 51 cents were shown instead of 141."""
    await at.kit.record("acme", "words", 130)
    await assert_agreement(at, 90)  # The invoice of the first period has no usage.
    await at.reach(MAY + 2 * DAY)
    await at.flush()  # Its invoice is final: the next one bills the 30.
    await at.kit.record("acme", "words", 110)
    await assert_agreement(at, 120)
    at.clock.advance(DAY)
    await at.kit.record("acme", "words", 7, occurred_at=APRIL + DAY)
    await assert_agreement(at, 141)
    await at.reach(JUNE + 5 * MINUTE)
    await at.close()
    await at.drain()
    found = await at.kit.statement("acme", MAY + DAY)
    (words,) = usage_of(found, "words")
    assert (words.quantity, words.amount_cents, words.note) == (47, 141, "")
    assert found.is_final
    assert_sums(found)


async def test_an_override_parts_the_events_of_two_prices(at: Ending) -> None:
    """The end of the subscription did, so one line had all events, and the other none."""
    await at.kit.record("acme", "words", 130)
    await at.reach(APRIL + 10 * DAY)
    price = {"bill": {"per": 1, "amount_cents": 2}}
    await at.kit.customers.override("acme", {"words": {"overage": price}})
    at.clock.advance(HOUR)
    await at.kit.record("acme", "words", 20)
    await at.reach(APRIL + 20 * DAY)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.close()
    await at.drain()
    found = usage_of(await at.kit.statement("acme", APRIL + DAY), "words")
    parts = [(line.quantity, line.counted, line.amount_cents, line.note) for line in found]
    assert sorted(parts) == [(20, 20, 40, ""), (30, 30, 90, "")]


async def test_usage_without_events_is_counted_and_named(at: Ending, store_url: str) -> None:
    """A statement lacked meters without events: a total of 10.00 stood beside 10.90 on the usage page."""
    more: Any = {"key_prefix": at.kit.settings.key_prefix, "shards": at.kit.settings.shards}
    async with MeterKit(
        at.kit.catalog, redis_url=store_url, clock=at.clock, flush=False, **more
    ) as unaudited:
        await unaudited.record("acme", "words", 130)
        await unaudited.record("acme", "requests", 4)
    await at.kit.record("acme", "words", 5)
    await at.drain()
    statement = await at.kit.statement("acme")
    assert figures_of(statement)[-2:] == [("requests", 0, 0), ("words", 35, 105)]
    assert [(line.overage, line.event_count, line.note) for line in statement.lines[-2:]] == [
        (0, 0, "4 units of the period are not among the events yet"),
        (5, 1, "130 units of the period are not among the events yet"),
    ]
    assert statement.total_cents == 1_000 + 105


@pytest.mark.parametrize("drains", [True, False])
async def test_usage_since_a_change_of_plans_is_what_its_invoice_lacks(at: Ending, *, drains: bool) -> None:
    await at.kit.record("acme", "words", 150)
    await at.flush()
    await at.drain()
    await at.reach(APRIL + 5 * DAY + timedelta(milliseconds=500))
    await at.kit.record("acme", "words", 10)  # In the second in which the plan changes, at Stripe after it.
    await at.drain()
    at.clock.advance(timedelta(milliseconds=400))
    await at.kit.subscriptions.change_plan("acme", "max")
    await at.found.settle()
    at.clock.advance(MINUTE)
    await at.kit.record("acme", "words", 20)
    if drains:
        await at.drain()
    statement = await at.kit.statement("acme")
    first, second = usage_of(statement, "words")
    assert (first.invoice is None, first.quantity, first.amount_cents) == (False, 60, 180)
    assert first.counted == 60
    prorated = [line.amount_cents for line in statement.lines if line.kind == "proration"]
    assert prorated == [-833, 2_500]  # Of 10.00 and 30.00, for 25 of 30 days.
    assert (second.invoice, second.quantity, second.amount_cents) == (None, 20, 40)
    assert second.note == ("" if drains else "20 units of the period are not among the events yet")
    assert statement.total_cents == sum(line.amount_cents for line in statement.lines)


async def test_pages_of_events(at: Ending) -> None:
    for nth in range(1, 8):
        await at.kit.record("acme", "words", nth)
    await at.drain()
    (line,) = usage_of((await at.kit.statement("acme")), "words")
    found, after = list[int](), ""
    for _ in range(3):
        (one,) = (await at.kit.statement("acme", line=line.id, after=after, most=3)).lines
        found += [event.quantity for event in one.events]
        after = one.after
    assert after == ""
    assert found == [event.quantity for event in line.events] == [*range(1, 8)]
    with pytest.raises(MeterkitError, match="the statement has no such line"):
        await at.kit.statement("acme", line="nosuch")
    with pytest.raises(MeterkitError, match="allowed is the `after` of a line"):
        await at.kit.statement("acme", after="nonsense")
    with pytest.raises(MeterkitError, match="most: found -1"):
        await at.kit.statement("acme", most=-1)


async def test_no_event_from_before_a_deletion_is_shown(at: Ending) -> None:
    await at.kit.record("bob", "words", 7)
    await at.drain()
    at.clock.advance(HOUR)
    await at.kit.customers.delete("bob")
    at.clock.advance(HOUR)
    await at.kit.record("bob", "words", 5)
    await at.drain()
    (line,) = usage_of(await at.kit.statement("bob"), "words")
    assert (line.event_count, [event.quantity for event in line.events]) == (1, [5])


async def test_all_events_are_streamed_with_no_further_call_to_stripe(
    at: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.insights.statement.statements._AT_ONCE", 2)
    for nth in range(1, 8):
        await at.kit.record("acme", "words", nth)
    await at.kit.record("acme", "requests", 3)
    await at.reach(MAY + timedelta(minutes=5))
    await at.close()
    asked = len(at.stripe.requests)
    whole = await at.kit.statement("acme", APRIL + DAY)
    of_one = len(at.stripe.requests) - asked
    found = [line async for line in at.kit.statement.pages("acme", APRIL + DAY)]
    assert len(at.stripe.requests) - asked == 2 * of_one
    for line in whole.lines:
        pages = [one for one in found if one.id == line.id]
        assert tuple(event for one in pages for event in one.events) == line.events
        assert max(len(one.events) for one in pages) <= 2
    assert [one.id for one in found if one.meter == "words"] == 4 * [usage_of(whole, "words")[0].id]


@pytest.mark.parametrize("start", [APRIL, MAY])
async def test_a_change_in_a_periods_first_second_is_on_its_statement(at: Ending, start: datetime) -> None:
    """F-22c: 2,900 were shown of the 3,900 that were paid."""
    if start > APRIL:
        await at.kit.record("acme", "words", 1)
        await at.reach(start)
    await at.kit.subscriptions.change_plan("acme", "max")
    await at.found.settle()
    at.clock.advance(timedelta(minutes=1))
    await at.kit.record("acme", "words", 1)
    await at.drain()
    found = await at.kit.statement("acme")
    assert_sums(found)
    # The upgrade comes to 20.00; the renewal before it ends the month of before.
    assert found.total_cents == (3_000 if start == APRIL else 2_000)
    if start > APRIL:
        assert (await at.kit.statement("acme", APRIL + DAY)).total_cents == 2_000


@pytest.mark.parametrize("when", [MAY, MAY + 5 * DAY], ids=["at a renewal", "amid a period"])
async def test_each_invoice_is_on_exactly_one_statement(at: Ending, when: datetime) -> None:
    """Months without usage were calendar months: their invoices stood on two statements."""
    await at.kit.record("acme", "words", 150)
    await at.flush()
    await at.reach(when)
    await at.kit.subscriptions.change_plan("acme", "max")
    await at.found.settle()
    for end in (MAY, JUNE, JUNE + 30 * DAY):
        await at.reach(max(end, when) + 3 * HOUR)
    await at.drain()
    shown: list[str] = []
    instant = at.clock.now()
    while instant > APRIL - 12 * DAY:
        found = await at.kit.statement("acme", instant)
        assert_sums(found)
        shown += [invoice.id for invoice in found.invoices]
        instant = found.period_start - timedelta(seconds=1)
    stripe: Any = at.stripe
    assert sorted(shown) == sorted(invoice.id for invoice in stripe._account.invoices)


async def test_usage_of_a_void_renewal_costs_nothing_once_resumed(at: Ending) -> None:
    await at.kit.record("acme", "words", 130)
    await at.flush()
    client = at.found.client.v1.subscriptions
    (sold,) = (await client.list_async()).data
    for behavior, until in (({"behavior": "void"}, MAY + 2 * HOUR), ("", MAY + 2 * DAY)):
        paused: Any = {"pause_collection": behavior}
        await client.update_async(sold.id, paused)
        await at.reach(until)
        await at.drain()
        found = await at.kit.statement("acme", APRIL + DAY)
        (words,) = usage_of(found, "words")
        assert (words.quantity, words.amount_cents) == (30, 0)
        assert words.note == "not billed: the renewal's invoice is void"
        assert (found.total_cents, found.is_final) == (1000, True)
    assert [invoice["status"] for invoice in at.invoices()] == ["void"]


async def test_an_earlier_trial_stays_free_beside_a_new_subscription(store_url: str, tmp_path: Path) -> None:
    ends: Any = {"end_behavior": {"missing_payment_method": "cancel"}}
    begun: Any = {"trial_period_days": 14, "trial_settings": ends}
    more: Any = {"begun": begun, "card": None, "audit_url": sqlite_in(tmp_path)}
    async with paying(store_url, PLANS, clock=Clock(APRIL), prices=PRICES, **more) as at:
        await at.kit.record("acme", "words", 130)
        await at.reach(APRIL + 15 * DAY)
        before = await at.kit.statement("acme", APRIL)
        assert before.total_cents == 0
        at.stripe.add_payment_method("cus_acme", "pm_card_visa")
        await at.found.subscribe(items=[{"price": price} for price in PRICES])
        await at.found.settle()
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.usage("acme"))["plan"] == "pro"
        assert await at.kit.statement("acme", APRIL) == before


CAPPED_CATALOG: Final = loads(plans_text("capped_books"))


async def test_a_statement_shows_what_was_over_the_cap_at_no_price(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=CAPPED_CATALOG) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 120)
        at.desk.clock.advance(timedelta(seconds=1))
        await at.kit.record("acme", "tokens", 280)
        at.desk.clock.advance(timedelta(seconds=1))
        await at.kit.correct("acme", {"tokens": 240}, reason="a loop", correction_id="c-1", by="ada")
        rows = [row for row in await at.rows() if row["meter"] == "tokens"]
        assert [(row["quantity"], row["overage"], row["over_cap"]) for row in rows] == [
            (120, 20, 0),
            (280, 30, 250),
            (-240, 0, -240),
        ]
        assert [row["priced"] for row in rows] == [20, 30, 0]
        statement = await at.kit.statement("acme")
        (line,) = (one for one in statement.lines if one.meter == "tokens")
        assert (line.amount_cents, line.counted, line.overage, line.over_cap) == (100, 50, 50, 10)
        assert [event.why for event in line.events] == [
            "100 included, 20 overage",
            "30 overage, 250 over the cap",
            "correction, -240 over the cap: a loop",
        ]
        shown = "".join([part async for part in statement_parts(at.kit, "acme")])
        head, *_, middle, _ = (row.split(",") for row in shown.splitlines())
        assert (middle[head.index("over_cap")], middle[head.index("billed")]) == ("250", "30")


async def test_overage_that_a_plan_does_not_bill_is_named(store_url: str, tmp_path: Path) -> None:
    """The last request may exceed what is included: these units have no price, and need none."""
    async with audited(store_url, sqlite_in(tmp_path), catalog=loads(PLANS)) as at:
        await at.kit.record("acme", "words", 12)
        await at.rows()
        (line,) = usage_of(await at.kit.statement("acme"), "words")
        assert (line.quantity, line.counted, line.amount_cents) == (12, 0, 0)
        assert line.note == "12 units beyond the included quantity are not billed"


async def test_summed_events_cost_what_single_ones_do(store_url: str, tmp_path: Path) -> None:
    """Units of summed rows have their price on a row beside them: none was shown."""
    async with audited(store_url, sqlite_in(tmp_path), catalog=CAPPED_CATALOG) as at:
        await at.kit.record("acme", "tokens", 120)
        await at.kit.record("acme", "tokens", 5)
        await at.fold(0)
        await at.rows()
        (line,) = usage_of(await at.kit.statement("acme"), "tokens")
        assert {event.kind for event in line.events} == {"summed"}
        assert (line.quantity, line.amount_cents, line.note) == (25, 50, "")


async def test_a_rebuild_bills_nothing_beyond_the_cap(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=CAPPED_CATALOG) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 400)
        assert (await at.desk.flush(everything=True)).is_complete
        await at.drainer.drain()
        await lose_all(at)
        await at.kit.customers.link("acme", "cus_acme")
        await at.kit.record("acme", "tokens", 1)
        (done,) = await rebuild(at)
        assert (done.raised, done.audited, done.delivered, done.parked) == (400, 401, 50, 0)
        found = (await at.kit.usage("acme"))["meters"]["tokens"]
        assert (found["recorded"], found["overage"], found["over_cap"]) == (401, 50, 250)
        assert await rebuild(at) == []


async def test_a_years_price_is_on_no_statement_of_a_month_amid_it(store_url: str, tmp_path: Path) -> None:
    """No invoice comes when such a month ends: its statement has the usage alone."""
    url, plans = sqlite_in(tmp_path), PLANS.replace("1000, interval: month", "1000, interval: year")
    async with paying(store_url, plans, clock=Clock(APRIL), prices=PRICES, audit_url=url) as at:
        await at.reach(MAY + DAY)
        await at.kit.record("acme", "words", 130)
        assert (await at.kit.statement("acme", APRIL)).is_final
        assert figures_of(await at.kit.statement("acme")) == [("words", 30, 90)]


async def test_a_years_usage_costs_on_its_invoices_statement_alone(store_url: str, tmp_path: Path) -> None:
    """Each month's had its own, too, and was never final: 0.90 and 1.70, and 3.00 on the year's invoice."""
    url, plans = sqlite_in(tmp_path), PLANS.replace("1000, interval: month", "1000, interval: year")
    year, cheaper = APRIL.replace(year=2032), {"words": {"overage": {"bill": {"per": 1, "amount_cents": 2}}}}
    async with paying(store_url, plans, clock=Clock(APRIL), prices=PRICES, audit_url=url) as at:
        await at.kit.record("acme", "words", 130)
        await at.reach(MAY + DAY)
        await at.kit.record("acme", "words", 150)
        await at.flush()
        at.clock.advance(DAY)
        await at.kit.customers.override("acme", cheaper)
        at.clock.advance(DAY)
        await at.kit.record("acme", "words", 10)
        await at.flush()
        await at.reach(year - DAY)
        await at.kit.record("acme", "words", 120)
        assert [(await at.kit.statement("acme", when)).total_cents for when in (APRIL, MAY)] == [1090, 170]
        await at.reach(year + timedelta(minutes=2))
        await at.close()
        await at.drain()
        april, may, last = [await at.kit.statement("acme", when) for when in (APRIL, MAY, year - DAY)]
    assert [(of.total_cents, of.is_final) for of in (april, may, last)] == [(1000, 1), (0, 1), (1300, 1)]
    bills_it = f"invoice {last.invoices[0].id} bills it, with usage of other periods"
    assert [(line.quantity, line.note) for of in (april, may) for line in usage_of(of, "words")] == [
        (30, bills_it),
        (60, bills_it),
    ]
    assert sorted((line.quantity, line.counted, line.note) for line in usage_of(last, "words")) == [
        (30, 20, "10 of its units are of earlier periods: see their statements"),
        (80, 0, "usage of the period before: the statement of that period has its events"),
    ]


async def test_usage_that_no_invoice_bills_costs_nothing(at: Ending) -> None:
    """Of a period that a trial cut short: its statement was never final, with $0.90 on no invoice."""
    await at.kit.record("acme", "words", 130)
    await at.reach(APRIL + 5 * DAY)
    await at.flush()
    (sold,) = (await at.found.client.v1.subscriptions.list_async()).data
    trial: Any = {"trial_end": int((APRIL + 20 * DAY).timestamp()), "proration_behavior": "none"}
    await at.found.client.v1.subscriptions.update_async(sold.id, trial)
    await at.found.settle()
    await at.reach(APRIL + 20 * DAY + timedelta(minutes=2))
    await at.close()
    await at.drain()
    found = await at.kit.statement("acme", APRIL)
    assert (found.total_cents, found.is_final) == (1_000, True)
    (words,) = usage_of(found, "words")
    assert (words.quantity, words.amount_cents, words.note) == (30, 0, "not billed: it missed its invoice")


async def test_a_statement_stays_that_of_its_stripe_customer(at: Ending) -> None:
    """After a link to another one, closed periods had no invoice, and were not final."""
    await at.kit.record("acme", "words", 130)
    await at.reach(MAY + timedelta(minutes=2))
    await at.close()
    await at.drain()
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.reach(MAY + DAY)
    before = [await at.kit.statement("acme", when) for when in (APRIL, MAY)]
    assert (before[0].total_cents, before[0].is_final) == (2090, True)
    await at.kit.customers.unlink("acme")
    at.found.customer("other")
    await at.kit.customers.link("acme", "cus_other")
    assert [await at.kit.statement("acme", when) for when in (APRIL, MAY)] == before
    assert (await at.kit.statement("acme")).invoices == ()


async def test_the_statement_of_a_period_that_was_cut_short_is_final(at: Ending) -> None:
    """Here it ends with the minute after which usage is late, and at Stripe a minute before."""
    await at.reach(MAY + 2 * DAY)
    await at.kit.record("acme", "words", 130)
    at.clock.advance(timedelta(seconds=20))
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.found.settle()
    await at.drain()
    assert not (await at.kit.statement("acme", MAY + DAY)).is_final
    at.clock.advance(2 * HOUR)
    at.stripe.advance()
    statement = await at.kit.statement("acme", MAY + DAY)
    assert (statement.is_final, statement.total_cents) == (True, 90)
    assert_sums(statement)


@pytest.mark.parametrize("behavior", ["none", "create_prorations"])
async def test_usage_before_a_cycle_begun_anew_is_on_one_statement(at: Ending, behavior: str) -> None:
    """Both statements had it, and the first was never final."""
    await at.kit.record("acme", "words", 130)
    await at.reach(APRIL + 9 * DAY)
    await at.flush()
    await at.reach(APRIL + 10 * DAY)
    (sold,) = (await at.found.client.v1.subscriptions.list_async()).data
    anew: Any = {"billing_cycle_anchor": "now", "proration_behavior": behavior}
    await at.found.client.v1.subscriptions.update_async(sold.id, anew)
    await at.reach(APRIL + 11 * DAY)
    await at.drain()
    former, now = [await at.kit.statement("acme", period) for period in (APRIL, None)]
    assert_sums(former)
    assert [line.amount_cents for line in usage_of(former, "words")] == [90]
    assert (former.is_final, len(former.invoices)) == (True, 2)
    assert (now.invoices, usage_of(now, "words"), now.total_cents) == ((), [], 1000)


async def test_a_subscription_that_ends_charges_no_further_period(store_url: str, tmp_path: Path) -> None:
    """Its last statement had the plan's price, which the one before has, and was never final."""
    url, prices = sqlite_in(tmp_path), ("price_pro",)
    async with paying(store_url, PLANS, clock=Clock(APRIL), prices=prices, audit_url=url) as at:
        await at.reach(MAY + DAY)
        await at.kit.subscriptions.cancel("acme")
        await at.found.settle()
        await at.reach(MAY + 2 * DAY)
        found = await at.kit.statement("acme")
        assert (found.lines, found.is_final) == ((), False)
        await at.reach(JUNE + 2 * DAY)
        last = await at.kit.statement("acme", MAY + DAY)
        assert (last.lines, last.total_cents, last.is_final) == ((), 0, True)
        await at.found.subscribe(items=[{"price": "price_pro"}])
        await at.reach(JUNE + 3 * DAY)
        assert await at.kit.statement("acme", MAY + DAY) == last
        assert (await at.kit.statement("acme", APRIL)).total_cents == 2000


async def test_another_products_invoices_are_on_no_statement(at: Ending) -> None:
    """A subscription of another product counted as the plan's, its renewal as the period's."""
    at.stripe.add_price(7_700, price_id="price_garden")
    await at.kit.record("acme", "words", 130)
    await at.found.subscribe(items=[{"price": "price_garden"}], metadata={})
    await at.found.settle()
    at.clock.advance(HOUR)
    await at.drain()
    before = await at.kit.statement("acme")
    assert before.total_cents == 1_000 + 90
    await at.reach(MAY + 5 * MINUTE)
    await at.close()
    found = await at.kit.statement("acme", APRIL + DAY)
    assert (found.total_cents, len(found.invoices), found.is_final) == (2_000 + 90, 2, True)


async def test_invoices_from_before_a_link_are_on_their_statements(at: Ending) -> None:
    """No subscription of that time is known here."""
    at.found.customer("bob")
    bought: Any = {"customer": "cus_bob", "items": [{"price": "price_pro"}]}
    subscriptions = at.found.client.v1.subscriptions
    first = await subscriptions.create_async(bought)
    at.go(APRIL + 5 * DAY)
    await subscriptions.cancel_async(first.id)
    at.go(MAY)
    await subscriptions.create_async(bought)
    await at.kit.customers.link("bob", "cus_bob")
    found = await at.kit.statement("bob", APRIL)
    assert (found.total_cents, len(found.invoices)) == (1_000, 1)
