"""Whole lives: three months of three customers, worked out by hand to the cent, and a year of one customer.

All expected figures are literals. ``worked_by_hand.rst`` beside this file works out those of the months.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from drivers.audit_database import drain
from drivers.audited_kit import sqlite_in
from drivers.llm_apps import read_all
from drivers.plans import plans_text
from drivers.sync_queue import queue_sync
from drivers.top_ups import BACK, balance, refund
from drivers.webhooks import Hooked, hooked
from faults.refusals import eventually
from llm_payloads.recordings import compact
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.errors import SeatsInUseError
from meterkit.testing import Clock, StripeEmulator
from subscriptions.looks import pending

pytestmark = pytest.mark.anyio

CATALOG: Final = loads(plans_text("worked_by_hand"))
PATH: Final = "/v1/chat/completions"
BOBS_PRICES: Final = ("_output_tokens", "_output_tokens:small-*", "_output_tokens:large-*")
TINY: Final = ("small-1", 7, 3)
SMALL: Final = ("small-1", 1_000, 500)
LARGE: Final = ("large-1", 100_000, 20_000)


def on(month: int, day: int, hour: int = 12, *, year: int = 2031) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    await read_all(receive)
    model, entered, left = dict(scope["headers"])[b"x-call"].decode().split()
    usage = {"prompt_tokens": int(entered), "completion_tokens": int(left)}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    said: Any = {"id": "1", "object": "chat.completion", "model": model, "choices": [], "usage": usage}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": compact(said)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Months:
    at: Hooked
    client: httpx.AsyncClient
    told: dict[str, list[Any]]

    async def go(self, to: datetime) -> None:
        """Let days pass. Stripe does what is due, its webhooks come, and usage goes to Stripe each day."""
        while (now := self.at.clock()) < to.timestamp():
            self.at.clock.set(min(to, datetime.fromtimestamp(now, UTC) + timedelta(days=1)))
            self.at.emulator.advance()
            await self.at.settle()
            await self.at.kit.flush(everything=True)

    async def calls(self, *calls: tuple[datetime, str, tuple[str, int, int], int, int, int]) -> None:
        """Call models: when, who, model and tokens, how often, the status, and the balance afterwards."""
        for when, customer, what, times, status, micros in calls:
            await self.go(when)
            headers = {"x-customer-id": customer, "x-call": " ".join(map(str, what))}
            asked = compact({"model": what[0], "max_tokens": what[2], "messages": []})
            for _ in range(times):
                assert (await self.client.post(PATH, content=asked, headers=headers)).status_code == status
            await self.has(customer, micros)

    async def has(self, customer: str, micros: int) -> None:
        """The balance is, or becomes, so many micro-dollars."""

        async def found() -> bool:
            return await balance(self.at, customer) == micros

        await eventually(found)

    async def spent(self, period: datetime) -> int:
        return (await self.at.kit.usage("bob", period=period))["meters"]["spend"]["recorded"]

    async def invoices(self, customer: str) -> list[tuple[str, str, list[int]]]:
        """The invoices at Stripe, the oldest first: day, status, cents of each line that is not 0."""
        asked: Any = {"customer": f"cus_{customer}", "limit": 100}
        found = (await self.at.client.v1.invoices.list_async(asked)).data[::-1]
        return [
            (
                f"{datetime.fromtimestamp(invoice.created, UTC):%d %b}",
                str(invoice.status),
                sorted(line.amount for line in invoice.lines.data if line.amount),
            )
            for invoice in found
        ]


async def june(months: Months) -> None:
    at = months.at
    assert (await at.kit.credits.buy("ada", 1000)).status == "paid"
    await months.go(on(6, 2))
    assert (await at.kit.credits.buy("eve", 5000, **BACK)).status == "open"
    (session,) = (await at.client.v1.checkout.sessions.list_async()).data
    at.emulator.complete_checkout(session.id)
    await at.settle()
    await months.has("eve", 50_000_000)
    await months.calls(
        (on(6, 3), "ada", SMALL, 3, 200, 9_998_245),
        (on(6, 8), "eve", LARGE, 10, 200, 42_200_000),
        (on(6, 10), "ada", TINY, 1, 200, 9_998_242),
        (on(6, 10), "bob", ("small-1", 0, 900_000), 1, 200, 0),
        (on(6, 12), "ada", LARGE, 6, 200, 5_318_242),
        (on(6, 15), "bob", ("large-1", 0, 500_000), 1, 200, 0),
        (on(6, 18), "bob", ("large-1", 0, 300_000), 1, 200, 0),
        # The 19th: one token more than fits is refused, what fits is served, and then nothing is.
        (on(6, 19), "bob", ("small-1", 0, 600_000), 1, 200, 0),
        (on(6, 19), "bob", ("large-1", 0, 100_001), 1, 402, 0),
        (on(6, 19), "bob", ("large-1", 0, 100_000), 1, 200, 0),
        (on(6, 19), "bob", ("small-1", 0, 1), 1, 402, 0),
    )
    assert await months.spent(on(6, 19)) == 50_000_000
    await months.calls(
        (on(6, 20), "ada", LARGE, 1, 200, 24_538_242), (on(6, 30), "bob", ("small-1", 0, 1), 1, 402, 0)
    )


async def july(months: Months) -> None:
    at = months.at
    await months.calls(
        (on(7, 5), "ada", TINY, 2, 200, 24_538_234),
        (on(7, 9), "ada", LARGE, 20, 200, 8_938_234),
        (on(7, 11), "eve", LARGE, 5, 200, 38_300_000),
        (on(7, 12), "bob", ("large-1", 0, 350_000), 1, 200, 0),
        (on(7, 15), "ada", LARGE, 6, 200, 24_258_234),
        (on(7, 20), "bob", ("other-1", 0, 10_001), 1, 200, 0),
    )
    (grant,) = await at.kit.grants.list("eve")
    await refund(at, grant.grant_id, cents=5000)
    await at.settle()
    await queue_sync(at.kit, "eve")
    await months.has("eve", 0)


async def august(months: Months) -> None:
    await months.calls(
        (on(8, 2), "bob", ("small-1", 0, 40_000), 1, 200, 0),
        (on(8, 20), "ada", LARGE, 10, 200, 16_458_234),
        (on(8, 21), "eve", LARGE, 1, 402, 0),
    )
    await months.go(on(9, 2))


async def ledger(months: Months, customer: str) -> list[tuple[int | None, str, str, int]]:
    """The lines of a customer's ledger: the month, the entry, which of the grants, micro-dollars."""
    at = months.at
    grants = sorted(await at.kit.grants.list(customer), key=lambda grant: grant.created_at)
    names = {grant.grant_id: f"grant {place}" for place, grant in enumerate(grants, 1)}
    return sorted(
        (line.period_start.month if line.period_start else 0, line.entry, names[line.grant_id], line.quantity)
        for line in await at.kit.grants.ledger(customer)
    )


async def check_ada(months: Months) -> None:
    assert await months.invoices("ada") == [
        ("01 Jun", "paid", [1000]),
        ("20 Jun", "paid", [2000]),
        ("15 Jul", "paid", [2000]),
    ]
    assert await ledger(months, "ada") == [
        (0, "grant", "grant 1", 10_000_000),
        (0, "grant", "grant 2", 20_000_000),
        (0, "grant", "grant 3", 20_000_000),
        (6, "burn", "grant 1", -5_461_758),
        (7, "burn", "grant 1", -4_538_242),
        (7, "burn", "grant 2", -15_741_766),
        (8, "burn", "grant 2", -4_258_234),
        (8, "burn", "grant 3", -3_541_766),
    ]
    await months.has("ada", 16_458_234)
    for period, charged in ((on(6, 9), 5_461_758), (on(7, 9), 20_280_008), (on(8, 9), 7_800_000)):
        usage = await months.at.kit.usage("ada", period=period)
        assert usage["meters"]["usd_charged"]["recorded"] == charged


async def check_bob(months: Months) -> None:
    assert [await months.spent(on(month, 25)) for month in (6, 7, 8)] == [50_000_000, 10_300_030, 0]
    # 1,400,000 small ones and 900,000 large ones; 250,000 large ones and 30.003 cents of another one.
    assert await months.invoices("bob") == [
        ("01 Jun", "paid", [2000]),
        ("01 Jul", "paid", [1400, 2000, 3600]),
        ("01 Aug", "paid", [30, 1000, 2000]),
        ("01 Sep", "paid", [2000]),
    ]
    sent = [months.at.emulator.accepted("cus_bob", f"out{row}") for row in (":small-*", ":large-*", "")]
    assert sent == [1_400_000, 900_000 + 250_000, 10_001]
    warned = [event for event in months.told["usage.threshold"] if event.customer == "bob"]
    warnings = [(event.meter, event.percent) for event in warned]
    assert warnings == [("spend", 50), ("spend", 80), ("spend", 100)]
    assert await ledger(months, "bob") == []


async def check_eve(months: Months) -> None:
    assert await months.invoices("eve") == [("02 Jun", "paid", [5000])]
    assert await ledger(months, "eve") == [
        (0, "grant", "grant 1", 50_000_000),
        (0, "refund", "grant 1", -38_300_000),
        (6, "burn", "grant 1", -7_800_000),
        (7, "burn", "grant 1", -3_900_000),
    ]
    (refunded,) = months.told["top_up.refunded"]
    assert (refunded.refunded_cents, refunded.taken_back_cents) == (5000, 3830)


async def margins(months: Months, customer: str, month: int) -> dict[str, tuple[int | None, int, int | None]]:
    """Cost, revenue and margin of a month, in micro-dollars: of each model, and of all."""
    found = await months.at.kit.usage(customer, period=on(month, 9), by="model")
    assert found["period"]["start"] == on(month, 1, 0)
    return {
        model: (one["cost_micros"], one["revenue_micros"], one["margin_micros"])
        for model, one in (*found["models"].items(), ("all", found))
    }


async def check_margins(months: Months) -> None:
    """The columns of costs, of what is charged or paid, and of margin."""
    assert await margins(months, "ada", 6) == {
        "small-1": (1_352, 1_758, 406),
        "large-1": (4_200_000, 5_460_000, 1_260_000),
        "all": (4_201_352, 5_461_758, 1_260_406),
    }
    assert await margins(months, "ada", 7) == {
        "small-1": (6, 8, 2),
        "large-1": (15_600_000, 20_280_000, 4_680_000),
        "all": (15_600_006, 20_280_008, 4_680_002),
    }
    large = (6_000_000, 7_800_000, 1_800_000)
    assert await margins(months, "ada", 8) == {"large-1": large, "all": large}
    assert await margins(months, "bob", 6) == {
        "small-1": (900_000, 14_000_000, 13_100_000),
        "large-1": (13_500_000, 36_000_000, 22_500_000),
        "all": (14_400_000, 50_000_000, 35_600_000),
    }
    assert await margins(months, "bob", 7) == {
        "large-1": (5_250_000, 10_000_000, 4_750_000),
        "other-1": (20_002, 300_030, 280_028),
        "all": (5_270_002, 10_300_030, 5_030_028),
    }
    small = (24_000, 0, -24_000)
    assert await margins(months, "bob", 8) == {"small-1": small, "all": small}
    assert await margins(months, "eve", 6) == {"large-1": large, "all": large}
    large = (3_000_000, 3_900_000, 900_000)
    assert await margins(months, "eve", 7) == {"large-1": large, "all": large}
    assert await margins(months, "eve", 8) == {"all": (0, 0, 0)}


@pytest.mark.dear("three months of three customers")
async def test_three_months_match_a_calculation_by_hand(store_url: str, tmp_path: Path) -> None:
    clock = Clock(on(6, 1, 0))
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    emulator.add_plans(CATALOG)
    settings: dict[str, Any] = {"catalog": CATALOG, "flush": True, "audit_url": sqlite_in(tmp_path)}
    async with hooked(store_url, clock=clock, emulator=emulator, **settings) as at:
        app = MeterMiddleware(provider, kit=at.kit, identify=identify.header("x-customer-id"))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client:
            told: dict[str, list[Any]] = {"usage.threshold": [], "top_up.refunded": []}
            for kind, events in told.items():
                at.kit.on(kind)(events.append)
            await at.kit.stripe.sync()
            for customer in ("ada", "bob", "eve"):
                await at.kit.customers.link(customer, at.customer(customer))
            await at.subscribe("bob", items=[{"price": f"price_metered{of}"} for of in ("", *BOBS_PRICES)])
            await at.settle()
            months = Months(at=at, client=client, told=told)
            await june(months)
            await july(months)
            await august(months)
            await check_ada(months)
            await check_bob(months)
            await check_eve(months)
            assert await drain(at.kit) == 0
            await check_margins(months)


SECOND: Final = timedelta(seconds=1)
YEAR: Final = loads(plans_text("year"))


# A meter event is of a whole minute; a subscription that ends at its first instant would not bill it.
CANCELED: Final = on(12, 17) + timedelta(seconds=30)


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
        return [(f"{one.created_at:%m-%d}", one.total_cents, one.status) for one in reversed(found)]


@asynccontextmanager
async def acme(store_url: str) -> AsyncGenerator[Year]:
    clock = Clock(on(1, 31))
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False, after_retries="past_due")
    stripe.add_plans(YEAR)
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=YEAR) as found:
        yield Year(kit=found.kit, stripe=stripe, clock=clock)


async def begin(year: Year) -> None:
    assert await year.look() == ("free", None, "full", True)
    assert (await year.counted())[:3] == (on(1, 1, 0), on(2, 1, 0), 1)


async def be_tried(year: Year) -> None:
    kit, clock = year.kit, year.clock
    await kit.subscriptions.create("acme", "pro", seats=2)
    assert await year.look() == ("pro", "trialing", "full", True)
    assert await year.counted() == (on(1, 31), on(2, 14), 1, 10, 0)
    year.stripe.add_payment_method(await year.linked())
    await year.webhooks()

    # Its end binds at its second, before Stripe tells of it.
    clock.set(on(2, 14) - SECOND)
    assert await year.look() == ("pro", "trialing", "full", True)
    clock.set(on(2, 14))
    assert await year.look() == ("pro", "active", "full", True)
    assert await year.counted() == (on(2, 14), on(3, 14), 1, 10, 0)
    await year.go(on(2, 14, 14))
    assert await year.invoices() == [("01-31", 0, "paid"), ("02-14", 1000, "paid")]


async def upgrade(year: Year) -> None:
    """Beyond what is included, then an upgrade in mid-period, and seats up and down."""
    kit = year.kit
    await year.go(on(2, 20))
    await year.use(11)
    assert await year.counted() == (on(2, 14), on(3, 14), 12, 10, 2)
    await year.go(on(2, 28))
    preview = await kit.subscriptions.preview("acme", plan="max")
    changed = await kit.subscriptions.change_plan("acme", "max")
    # 14 of 28 days are left: of 10 and 100 included requests, half each.
    assert preview.proration == changed.proration
    assert (changed.proration.credit_cents, changed.proration.charge_cents) == (500, 1500)
    assert await year.look() == ("max", "active", "full", True)
    assert await year.counted() == (on(2, 14), on(3, 14), 13, 55, 2)

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
    await year.go(on(3, 14, 14))
    assert await year.look() == ("max", "past_due", "grace", True)
    await year.go(on(3, 17, 14))
    assert await year.look() == ("max", "past_due", "grace", True)
    clock.set(on(3, 21, 13) - SECOND)
    assert (await kit.customers.get("acme")).access == "grace"
    clock.set(on(3, 21, 13))  # Seven days after the first failure, whether the third has come or not.
    assert await year.look() == ("free", "past_due", "restricted", True)
    assert not await kit.allows("acme", "export")
    await year.go(on(3, 22, 14))
    clock.set(on(3, 28, 13) - SECOND)
    assert (await kit.customers.get("acme")).access == "restricted"
    clock.set(on(3, 28, 13))
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
    assert pending(changed.subscription) == ("pro", 2, on(4, 14))
    clock.set(on(4, 14) - SECOND)
    assert (await year.look())[0] == "max"
    clock.set(on(4, 14))
    assert await year.look() == ("pro", "active", "full", True)
    assert await year.counted() == (on(4, 14), on(5, 14), 1, 10, 0)
    await year.go(on(4, 14, 14))


async def pay_by_the_year(year: Year) -> None:
    """From months to years: the anchor stays, and what is included goes on by the month."""
    kit = year.kit
    await year.go(on(5, 1))
    await kit.subscriptions.change_plan("acme", "pro_yearly")
    found = await kit.subscriptions.get("acme")
    assert found is not None
    assert (found.plan, found.current_period_end) == ("pro_yearly", on(2, 14, year=2032))
    assert (await year.counted())[:2] == (on(4, 14), on(5, 14))
    for month in range(5, 13):
        await year.go(on(month, 14))
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
    await year.go(on(12, 17, 14))
    assert await year.invoices() == [
        ("01-31", 0, "paid"),
        ("02-14", 1000, "paid"),
        ("02-28", 1000 + 2 * 5, "paid"),
        ("03-14", 3000 + 200 - 200, "paid"),
        ("04-14", 1000, "paid"),
        ("05-01", 7918 - 433, "paid"),
        ("12-17", 4 * 5 - 1616, "paid"),
    ]


async def check_ledger(year: Year) -> None:
    """The ledger has it all at its own instant, also what nobody looked at then."""
    assert await year.ledger("access") == [
        (on(3, 14, 14), "grace", "event"),
        (on(3, 21, 13), "restricted", "clock"),
        (on(3, 28, 13), "suspended", "clock"),
        (on(3, 28, 13), "full", "event"),
    ]
    assert await year.ledger("plan") == [
        (on(1, 31), "pro", "api"),
        (on(2, 28), "max", "api"),
        (on(3, 21, 13), "free", "clock"),
        (on(3, 28, 13), "max", "clock"),
        (on(4, 14), "pro", "clock"),
        (on(5, 1), "pro_yearly", "api"),
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
        await check_ledger(year)
