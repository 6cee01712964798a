"""All lines that an invoice may have: seats, proration, discounts, tax, and what is left unexplained."""
# Internals: a pure table of invoice lines, and the index that pages of events are read by.

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from datetime import timedelta
from decimal import Decimal
from sqlite3 import connect
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy import event

from drivers.audited_kit import row_of, sqlite_in
from drivers.period_ends import HOUR, JUNE, MAY, paying
from drivers.plans import plans_text
from meterkit.insights.audit.database import Database
from meterkit.insights.statement.events import page_of
from meterkit.insights.statement.invoices import shown_invoice
from meterkit.insights.statement.lines import Wanted, invoice_lines
from meterkit.testing.emulator.invoicing.invoices import Invoice

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from drivers.period_ends import Ending
    from meterkit import Statement

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
PLANS: Final = plans_text("statement_lines")


@asynccontextmanager
async def shop(store_url: str, directory: Path) -> AsyncGenerator[Ending]:
    """Acme pays for ``pro`` with three seats since 10 May, taxed and at a discount."""
    prices = ("price_pro", "price_pro_requests")
    emulated = {"tax_percent": Decimal("8.25")}
    async with paying(
        store_url, PLANS, prices=prices, emulated=emulated, audit_url=sqlite_in(directory)
    ) as at:
        stripe: Any = at.found.client.v1
        await stripe.customers.update_async("cus_acme", {"address": {"country": "US", "state": "TX"}})
        coupon = await stripe.coupons.create_async({"percent_off": Decimal("12.5"), "duration": "forever"})
        (made,) = (await stripe.subscriptions.list_async({"customer": "cus_acme"})).data
        more = {"discounts": [{"coupon": coupon.id}], "automatic_tax": {"enabled": True}}
        await stripe.subscriptions.update_async(made.id, more)
        at.clock.advance(HOUR)
        await at.kit.subscriptions.set_seats("acme", 3)
        await at.found.settle()
        yield at


async def live(at: Ending) -> None:
    """A month with usage under two plans, other seats, and an item that support adds by hand."""
    await at.reach(MAY + 5 * DAY)
    await at.kit.record("acme", "requests", 41)
    at.clock.advance(HOUR)
    await at.kit.subscriptions.set_seats("acme", 5)
    await at.reach(MAY + 12 * DAY)
    await at.kit.subscriptions.change_plan("acme", "max")
    await at.found.settle()
    at.clock.advance(HOUR)
    await at.kit.record("acme", "requests", 23)
    (made,) = (await at.found.client.v1.subscriptions.list_async({"customer": "cus_acme"})).data
    item: Any = {"add_invoice_items": [{"price": at.stripe.add_price(1_234, interval=None)}]}
    await at.found.client.v1.subscriptions.update_async(made.id, item)
    await at.reach(JUNE - HOUR)
    await at.flush()
    await at.drain()
    await at.reach(JUNE + timedelta(minutes=2))
    await at.close()


def invoices_at(at: Ending) -> dict[str, Invoice]:
    stripe: Any = at.stripe
    return {one.id: one for one in stripe._account.invoices}


def assert_is_bill(statement: Statement, invoices: dict[str, Invoice]) -> None:
    """Each invoice's lines are there with their amounts, and come to its total; nothing is unexplained."""
    assert statement.total_cents == sum(line.amount_cents for line in statement.lines)
    for shown in statement.invoices:
        invoice = invoices[shown.id]
        own = [line for line in statement.lines if line.invoice == shown.id]
        amounts = {line.id: line.amount_cents for line in own}
        assert shown.total_cents == invoice.total == sum(amounts.values())
        assert {line.id: line.amount for line in invoice.all_lines}.items() <= amounts.items()
        assert "difference" not in {line.kind for line in own}


async def test_seats_changes_discounts_and_taxes_are_lines(store_url: str, tmp_path: Path) -> None:
    async with shop(store_url, tmp_path) as at:
        await live(at)
        invoices, found = invoices_at(at), await at.kit.statement("acme", MAY + DAY)
        assert {one.id for one in found.invoices} == set(invoices)
        assert_is_bill(found, invoices)
        renewal = found.invoices[-1].id
        last = [line for line in found.lines if line.invoice == renewal]
        # Max at 30.00, four seats at 7.00, 23 requests at 0.01, and the item by hand.
        assert sorted((line.kind, line.quantity, line.amount_cents) for line in last[:-2]) == [
            ("other", 1, 1_234),
            ("subscription", 1, 3_000),
            ("subscription", 4, 2_800),
            ("usage", 23, 23),
        ]
        gross = 1_234 + 3_000 + 2_800 + 23
        off, tax = last[-2:]
        assert [(line.kind, line.invoice, line.quantity) for line in (off, tax)] == [
            ("discount", renewal, None),
            ("tax", renewal, None),
        ]
        assert abs(off.amount_cents + gross * Decimal("0.125")) < len(last)
        assert abs(tax.amount_cents - (gross + off.amount_cents) * Decimal("0.0825")) < len(last)
        before = [line.kind for line in found.lines if line.invoice != renewal]
        assert {"subscription", "proration", "discount", "tax"} <= set(before)
        usage = [line for line in found.lines if line.kind == "usage"]
        assert [(line.quantity, line.unit_amount, line.amount_cents) for line in usage] == [
            (31, "2.5", 78),
            (23, "1", 23),
        ]
        assert [(line.counted, line.note) for line in usage] == [(31, ""), (23, "")]


async def test_what_no_line_explains_is_a_line_of_its_own(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: Any = Invoice.to_json
    async with shop(store_url, tmp_path) as at:
        await live(at)
        true = await at.kit.statement("acme", MAY + DAY)

        def shipped(invoice: Invoice) -> Any:
            """Shipping is in the total, and not among the lines."""
            told = shown(invoice)
            return {**told, "total": told["total"] + 700, "amount_shipping": 700}

        monkeypatch.setattr(Invoice, "to_json", shipped)
        found = await at.kit.statement("acme", MAY + DAY)
    differences = [line for line in found.lines if line.kind == "difference"]
    assert [line.invoice for line in differences] == [one.id for one in found.invoices]
    for line in differences:
        assert (line.amount_cents, line.quantity, line.description) == (
            700,
            None,
            "Not explained by the lines",
        )
        assert line.note == "the invoice's total differs from the sum of its lines"
    assert found.total_cents == true.total_cents + 700 * len(found.invoices)
    assert found.total_cents == sum(line.amount_cents for line in found.lines)


def invoice(total: int, **more: Any) -> dict[str, Any]:
    line = {"id": "il_1", "amount": 1_000, "quantity": 1}
    return {"id": "in_1", "created": 1, "status": "paid", "total": total, "lines": {"data": [line]}, **more}


@pytest.mark.parametrize(
    ("total", "more", "expected"),
    [
        (1_000, {}, []),
        # https://docs.stripe.com/api/invoices/object: inclusive tax is within the amounts of lines.
        (1_000, {"total_taxes": [{"amount": 160, "tax_behavior": "inclusive"}]}, []),
        (1_200, {"total_taxes": [{"amount": 200, "tax_behavior": "exclusive"}]}, [("tax", 200)]),
        (
            1_080,
            {
                "total_discount_amounts": [{"amount": 60}, {"amount": 40}],
                "total_taxes": [{"amount": 180, "tax_behavior": "exclusive"}],
            },
            [("discount", -100), ("tax", 180)],
        ),
        (950, {"total_discount_amounts": [{"amount": 60}]}, [("discount", -60), ("difference", 10)]),
        (0, {}, [("difference", -1_000)]),
    ],
)
def test_the_rest_of_an_invoice(total: int, more: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    lines = invoice_lines(invoice(total, **more), {}, ())
    assert [(line.kind, line.amount_cents) for line in lines[1:]] == expected
    assert sum(line.amount_cents for line in lines) == total


def test_credit_notes_are_told_beside_the_total() -> None:
    """A credit note leaves the total as it is (https://docs.stripe.com/invoicing/dashboard/credit-notes)."""
    noted = {"pre_payment_credit_notes_amount": 100, "post_payment_credit_notes_amount": 250}
    found = shown_invoice(invoice(1_000, **noted))
    assert (found.total_cents, found.credit_notes_cents) == (1_000, 350)
    assert shown_invoice(invoice(1_000)).credit_notes_cents == 0


def test_events_are_paged_by_an_index(tmp_path: Path) -> None:
    database, asked = Database(sqlite_in(tmp_path)), list[tuple[str, Any]]()
    database.insert([row_of(nth) for nth in range(1, 9)])
    engine: Any = database._engine  # pyright: ignore[reportPrivateUsage] - its statements are watched

    def watch(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", watch)
    page, after = page_of(database, "acme", 0, Wanted(("tokens",)), "5|0/p/5|tokens", 2)
    assert ([one.event for one in page], after) == (["0/p/6", "0/p/7"], "7|0/p/7|tokens")
    deletion, rows, prices = asked
    assert rows[1].count(5) == 2  # The index is entered at the place, and rows up to it are left out.
    for (statement, parameters), index in (
        (deletion, "meterkit_audit_of_period (customer=? AND period_start_ms=?)"),
        (rows, "meterkit_audit_of_period (customer=? AND period_start_ms=? AND recorded_at_ms>? "),
        (prices, "sqlite_autoindex_meterkit_audit_1 (event=?)"),
    ):
        with closing(connect(tmp_path / "audit.db")) as plain:
            plan = [row[3] for row in plain.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        assert any(index in step for step in plan), plan
        assert not any("FOR ORDER BY" in step for step in plan), plan
