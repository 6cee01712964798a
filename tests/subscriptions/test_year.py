"""A year of one customer, from the trial to the end: by the clock, and by webhooks late and twice."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.plans import plans_text
from drivers.webhooks import hooked
from meterkit.catalog import loads
from meterkit.errors import SeatsInUseError
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

SECOND: Final = timedelta(seconds=1)
CATALOG: Final = loads(plans_text("year"))


def at(month: int, day: int, hour: int = 12, *, year: int = 2031) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


# A meter event is of a whole minute; a subscription that ends at its first instant would not bill it.
CANCELED: Final = at(12, 17) + timedelta(seconds=30)


@dataclass(kw_only=True)
class Year:
    kit: MeterKit
    stripe: StripeEmulator
    clock: Clock

    async def look(self) -> tuple[str, str | None, str, bool]:
        """Plan, status, access, and whether the next request is served, which is counted."""
        customer = await self.kit.customers.get("acme")
        decision = await self.kit.consume("acme", "requests")
        return customer.plan, customer.status, customer.access, decision.allowed

    async def linked(self) -> str:
        return (await self.kit.customers.get("acme")).stripe_customer or ""

    async def use(self, quantity: int) -> None:
        for _ in range(quantity):
            assert (await self.kit.consume("acme", "requests")).allowed

    async def counted(self) -> tuple[datetime, datetime, int, int | str, int]:
        """The period's bounds; what is recorded of requests, included, overage."""
        usage = await self.kit.usage("acme")
        requests, period = usage["meters"]["requests"], usage["period"]
        return period["start"], period["end"], requests["recorded"], requests["included"], requests["overage"]

    async def webhooks(self) -> None:
        due = await self.stripe.deliver()
        await self.stripe.deliver(*(delivery.event for delivery in reversed(due)))
        await self.kit.webhooks.work_off()

    async def go(self, to: datetime) -> None:
        """Go to an instant: at Stripe all happens that is due, and is told."""
        await self.kit.flush(everything=True)
        self.clock.set(to)
        self.stripe.advance()
        await self.webhooks()

    async def ledger(self, kind: str) -> list[tuple[datetime, str | None, str]]:
        """What the ledger has of a kind: when, what, and by whom."""
        history = await self.kit.customers.history("acme")
        return [
            (entry.at, entry.after, "event" if entry.cause.startswith("evt_") else entry.cause)
            for entry in history
            if entry.kind == kind
        ]

    async def invoices(self) -> list[tuple[str, int, str]]:
        found = await self.kit.subscriptions.invoices("acme")
        return [
            (f"{invoice.created_at:%m-%d}", invoice.total_cents, invoice.status)
            for invoice in reversed(found)
        ]


@asynccontextmanager
async def acme(store_url: str) -> AsyncGenerator[Year]:
    clock = Clock(at(1, 31))
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False, after_retries="past_due")
    stripe.add_plans(CATALOG)
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=CATALOG) as found:
        yield Year(kit=found.kit, stripe=stripe, clock=clock)


async def begin(year: Year) -> None:
    assert await year.look() == ("free", None, "full", True)
    assert (await year.counted())[:3] == (at(1, 1, 0), at(2, 1, 0), 1)


async def be_tried(year: Year) -> None:
    kit, clock = year.kit, year.clock
    await kit.subscriptions.create("acme", "pro", seats=2)
    assert await year.look() == ("pro", "trialing", "full", True)
    assert await year.counted() == (at(1, 31), at(2, 14), 1, 10, 0)
    year.stripe.add_payment_method(await year.linked())
    await year.webhooks()

    # Its end binds at its second, before Stripe tells of it.
    clock.set(at(2, 14) - SECOND)
    assert await year.look() == ("pro", "trialing", "full", True)
    clock.set(at(2, 14))
    assert await year.look() == ("pro", "active", "full", True)
    assert await year.counted() == (at(2, 14), at(3, 14), 1, 10, 0)
    await year.go(at(2, 14, 14))
    assert await year.invoices() == [("01-31", 0, "paid"), ("02-14", 1000, "paid")]


async def upgrade(year: Year) -> None:
    """Beyond what is included, then an upgrade in mid-period, and seats up and down."""
    kit = year.kit
    await year.go(at(2, 20))
    await year.use(11)
    assert await year.counted() == (at(2, 14), at(3, 14), 12, 10, 2)
    await year.go(at(2, 28))
    preview = await kit.subscriptions.preview("acme", plan="max")
    changed = await kit.subscriptions.change_plan("acme", "max")
    # 14 of 28 days are left: of 10 and 100 included requests, half each.
    assert preview.proration == changed.proration
    assert (changed.proration.credit_cents, changed.proration.charge_cents) == (500, 1500)
    assert await year.look() == ("max", "active", "full", True)
    assert await year.counted() == (at(2, 14), at(3, 14), 13, 55, 2)

    # Seats up; down no further than those in use.
    assert (await kit.subscriptions.set_seats("acme", 7)).proration.net_cents == 200
    await kit.gauges.set("acme", "seats", 6)
    with pytest.raises(SeatsInUseError):
        await kit.subscriptions.set_seats("acme", 5)
    await kit.gauges.set("acme", "seats", 4)
    assert (await kit.subscriptions.set_seats("acme", 5)).proration.net_cents == -200


async def fail_to_pay(year: Year) -> None:
    kit, clock = year.kit, year.clock
    year.stripe.fail_payments(await year.linked())
    await year.go(at(3, 14, 14))
    assert await year.look() == ("max", "past_due", "grace", True)
    await year.go(at(3, 17, 14))
    assert await year.look() == ("max", "past_due", "grace", True)
    clock.set(at(3, 21, 13) - SECOND)
    assert (await kit.customers.get("acme")).access == "grace"
    clock.set(at(3, 21, 13))  # Seven days after the first failure, whether the third has come or not.
    assert await year.look() == ("free", "past_due", "restricted", True)
    assert not await kit.allows("acme", "export")
    await year.go(at(3, 22, 14))
    clock.set(at(3, 28, 13) - SECOND)
    assert (await kit.customers.get("acme")).access == "restricted"
    clock.set(at(3, 28, 13))
    assert await year.look() == ("max", "past_due", "suspended", False)
    assert (await kit.consume("acme", "requests")).reason == "suspended"

    # Paid: everything is back at once.
    year.stripe.mend_payments(await year.linked())
    (unpaid,) = [invoice for invoice in await kit.subscriptions.invoices("acme") if invoice.status == "open"]
    year.stripe.confirm_payment(unpaid.id)
    await year.webhooks()
    assert await year.look() == ("max", "active", "full", True)
    assert await kit.allows("acme", "export")


async def downgrade(year: Year) -> None:
    kit, clock = year.kit, year.clock
    changed = await kit.subscriptions.change_plan("acme", "pro")
    pending = changed.subscription.pending_change
    assert pending is not None
    assert (pending.plan, pending.effective_at) == ("pro", at(4, 14))
    clock.set(at(4, 14) - SECOND)
    assert (await year.look())[0] == "max"
    clock.set(at(4, 14))
    assert await year.look() == ("pro", "active", "full", True)
    assert await year.counted() == (at(4, 14), at(5, 14), 1, 10, 0)
    await year.go(at(4, 14, 14))


async def pay_by_the_year(year: Year) -> None:
    """From months to years: the anchor stays, and what is included goes on by the month."""
    kit = year.kit
    await year.go(at(5, 1))
    await kit.subscriptions.change_plan("acme", "pro_yearly")
    found = await kit.subscriptions.get("acme")
    assert found is not None
    assert (found.plan, found.current_period_end) == ("pro_yearly", at(2, 14, year=2032))
    assert (await year.counted())[:2] == (at(4, 14), at(5, 14))
    for month in range(5, 13):
        await year.go(at(month, 14))
        assert await year.look() == ("pro_yearly", "active", "full", True)
        assert (await year.counted())[2] == 1


async def end(year: Year) -> None:
    """Canceled at once: what was used is billed, and what was paid in advance is given back."""
    kit = year.kit
    await year.go(CANCELED)
    await year.use(13)
    await kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    await year.webhooks()
    assert await year.look() == ("free", "canceled", "full", True)
    assert not await kit.allows("acme", "export")
    assert (await kit.usage("acme"))["meters"]["requests"]["pending"] == 0
    await year.go(at(12, 17, 14))
    assert await year.invoices() == [
        ("01-31", 0, "paid"),
        ("02-14", 1000, "paid"),
        ("02-28", 1000 + 2 * 5, "paid"),
        ("03-14", 3000 + 200 - 200, "paid"),
        ("04-14", 1000, "paid"),
        ("05-01", 7918 - 433, "paid"),
        ("12-17", 4 * 5 - 1616, "paid"),
    ]


async def ledger(year: Year) -> None:
    """The ledger has it all at its own instant, also what nobody looked at then."""
    assert await year.ledger("access") == [
        (at(3, 14, 14), "grace", "event"),
        (at(3, 21, 13), "restricted", "clock"),
        (at(3, 28, 13), "suspended", "clock"),
        (at(3, 28, 13), "full", "event"),
    ]
    assert await year.ledger("plan") == [
        (at(1, 31), "pro", "api"),
        (at(2, 28), "max", "api"),
        (at(3, 21, 13), "free", "clock"),
        (at(3, 28, 13), "max", "clock"),
        (at(4, 14), "pro", "clock"),
        (at(5, 1), "pro_yearly", "api"),
        (CANCELED, "free", "api"),
    ]


@pytest.mark.dear("a year of a customer, event by event")
async def test_i4_a_year_of_a_customer(store_url: str) -> None:
    async with acme(store_url) as year:
        await begin(year)
        await be_tried(year)
        await upgrade(year)
        await fail_to_pay(year)
        await downgrade(year)
        await pay_by_the_year(year)
        await end(year)
        await ledger(year)
