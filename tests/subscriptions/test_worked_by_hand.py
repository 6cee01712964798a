"""Three months of three customers, worked out by hand: every cent of invoices, ledgers, spend and margin.

All expected figures are literals. ``worked_by_hand.rst`` beside this file works out each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from drivers.audit_database import drain
from drivers.audited_kit import sqlite_in
from drivers.llm_apps import read_all
from drivers.plans import plans_text
from drivers.sync_queue import queue_sync
from drivers.webhooks import hooked
from faults.refusals import eventually
from meterkit import MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator
from tokens.recordings import compact

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio

CATALOG: Final = loads(plans_text("worked_by_hand"))
PATH: Final = "/v1/chat/completions"
BACK: Final[dict[str, Any]] = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example"}
BOBS_PRICES: Final = ("_output_tokens", "_output_tokens:small-*", "_output_tokens:large-*")
TINY: Final = ("small-1", 7, 3)
SMALL: Final = ("small-1", 1_000, 500)
LARGE: Final = ("large-1", 100_000, 20_000)


def on(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2031, month, day, hour, tzinfo=UTC)


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    await read_all(receive)
    model, entered, left = dict(scope["headers"])[b"x-call"].decode().split()
    usage = {"prompt_tokens": int(entered), "completion_tokens": int(left)}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    said: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "model": model,
        "choices": [],
        "usage": usage,
    }
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

    async def call(self, customer: str, what: tuple[str, int, int], *, times: int = 1) -> list[int]:
        """Call a model so often; the statuses."""
        found: list[int] = []
        for _ in range(times):
            headers = {"x-customer-id": customer, "x-call": " ".join(map(str, what))}
            asked = compact({"model": what[0], "max_tokens": what[2], "messages": []})
            found.append((await self.client.post(PATH, content=asked, headers=headers)).status_code)
        return found

    async def has(self, customer: str, micros: int) -> None:
        """The balance is, or becomes, so many micro-dollars."""

        async def found() -> bool:
            return (await self.at.kit.usage(customer))["balance_micros"].get("usd", 0) == micros

        await eventually(found)

    async def spent(self, period: datetime) -> int:
        usage = await self.at.kit.usage("bob", period=period)
        return usage["meters"]["spend"]["recorded"]

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
    page = await at.kit.credits.buy("eve", 5000, **BACK)
    assert page.status == "open"
    (session,) = (await at.client.v1.checkout.sessions.list_async()).data
    at.emulator.complete_checkout(session.id)
    await at.settle()
    await months.has("eve", 50_000_000)
    await months.go(on(6, 3))
    assert await months.call("ada", SMALL, times=3) == [200] * 3
    await months.has("ada", 9_998_245)
    await months.go(on(6, 8))
    assert await months.call("eve", LARGE, times=10) == [200] * 10
    await months.has("eve", 42_200_000)
    await months.go(on(6, 10))
    assert await months.call("ada", TINY) == [200]
    await months.has("ada", 9_998_242)
    assert await months.call("bob", ("small-1", 0, 900_000)) == [200]
    await months.go(on(6, 12))
    assert await months.call("ada", LARGE, times=6) == [200] * 6
    await months.has("ada", 5_318_242)
    await months.go(on(6, 15))
    assert await months.call("bob", ("large-1", 0, 500_000)) == [200]
    await months.go(on(6, 18))
    assert await months.call("bob", ("large-1", 0, 300_000)) == [200]
    await months.go(on(6, 19))
    # The 19th: one token more than fits is refused, what fits is served, and then nothing is.
    assert await months.call("bob", ("small-1", 0, 600_000)) == [200]
    assert await months.call("bob", ("large-1", 0, 100_001)) == [402]
    assert await months.call("bob", ("large-1", 0, 100_000)) == [200]
    assert await months.call("bob", ("small-1", 0, 1)) == [402]
    assert await months.spent(on(6, 19)) == 50_000_000
    await months.go(on(6, 20))
    assert await months.call("ada", LARGE) == [200]
    await months.has("ada", 24_538_242)
    await months.go(on(6, 30))
    assert await months.call("bob", ("small-1", 0, 1)) == [402]


async def july(months: Months) -> None:
    at = months.at
    await months.go(on(7, 5))
    assert await months.call("ada", TINY, times=2) == [200] * 2
    await months.has("ada", 24_538_234)
    await months.go(on(7, 9))
    assert await months.call("ada", LARGE, times=20) == [200] * 20
    await months.has("ada", 8_938_234)
    await months.go(on(7, 11))
    assert await months.call("eve", LARGE, times=5) == [200] * 5
    await months.has("eve", 38_300_000)
    await months.go(on(7, 12))
    assert await months.call("bob", ("large-1", 0, 350_000)) == [200]
    await months.go(on(7, 15))
    assert await months.call("ada", LARGE, times=6) == [200] * 6
    await months.has("ada", 24_258_234)
    await months.go(on(7, 20))
    assert await months.call("bob", ("other-1", 0, 10_001)) == [200]
    (grant,) = await at.kit.grants.list("eve")
    payments = await at.client.v1.invoice_payments.list_async({"invoice": grant.grant_id})
    intent = str(payments.data[0].payment.payment_intent)
    await at.client.v1.refunds.create_async({"payment_intent": intent})
    await at.settle()
    await queue_sync(at.kit, "eve")
    await months.has("eve", 0)


async def august(months: Months) -> None:
    await months.go(on(8, 2))
    assert await months.call("bob", ("small-1", 0, 40_000)) == [200]
    await months.go(on(8, 20))
    assert await months.call("ada", LARGE, times=10) == [200] * 10
    await months.has("ada", 16_458_234)
    await months.go(on(8, 21))
    assert await months.call("eve", LARGE) == [429]
    await months.go(on(9, 2))


async def ledger(months: Months, customer: str) -> list[tuple[int | None, str, str, int]]:
    """The lines of a customer's ledger: the month, the entry, which of the grants, micro-dollars."""
    at = months.at
    grants = sorted(await at.kit.grants.list(customer), key=lambda grant: grant.created_at)
    names = {grant.grant_id: f"grant {place}" for place, grant in enumerate(grants, 1)}
    return sorted(
        (
            line.period_start.month if line.period_start else 0,
            line.entry,
            names[line.grant_id],
            line.quantity,
        )
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
    assert [(event.meter, event.percent) for event in warned] == [
        ("spend", 50),
        ("spend", 80),
        ("spend", 100),
    ]
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


async def margins(months: Months, customer: str, month: int) -> dict[str, tuple[int, int, int | None]]:
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
