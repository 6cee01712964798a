"""Three months of three customers, worked out by hand: every cent of invoices, ledgers and spend.

All expected figures are literals. A person can check them line by line, with the prices of the plans file
below. A call of ``n`` input and ``m`` output tokens is charged, in micro-dollars::

    small-1  (n * 0.15 + m * 0.60) * 1.3       large-1  (n * 3 + m * 15) * 1.3

=======  ==========================  =====================================================================
call     tokens in, out              micro-dollars
=======  ==========================  =====================================================================
tiny     small-1, 7, 3               (1.05 + 1.80) * 1.3                 =       3.705
small    small-1, 1,000, 500         (150 + 300) * 1.3                   =     585
large    large-1, 100,000, 20,000    (300,000 + 300,000) * 1.3           = 780,000
=======  ==========================  =====================================================================

Ada pays beforehand; below USD 5.00 her card is charged for USD 20.00.

======  ========================  ===================================  ============  =====================
day     what                      charged                              balance       carried
======  ========================  ===================================  ============  =====================
1 Jun   buys USD 10.00                                                   10,000,000
3 Jun   3 small                   3 * 585               =      1,755      9,998,245
10 Jun  1 tiny                    3.705                 =          3      9,998,242  0.705
12 Jun  6 large                   6 * 780,000           =  4,680,000      5,318,242  0.705
20 Jun  1 large                                              780,000      4,538,242  0.705
        top-up 1, USD 20.00                                              24,538,242
5 Jul   2 tiny                    0.705 + 2 * 3.705     =          8     24,538,234  0.115
9 Jul   20 large                  20 * 780,000          = 15,600,000      8,938,234  0.115
15 Jul  6 large                   6 * 780,000           =  4,680,000      4,258,234  0.115
        top-up 2, USD 20.00                                              24,258,234
20 Aug  10 large                  10 * 780,000          =  7,800,000     16,458,234  0.115
======  ========================  ===================================  ============  =====================

June: 1,755 + 3 + 4,680,000 + 780,000 = 5,461,758. July: 8 + 15,600,000 + 4,680,000 = 20,280,008.
August: 7,800,000.

- Grant 1 pays all of June, and 10,000,000 - 5,461,758 = 4,538,242 of July.
- Grant 2 pays the rest of July, 20,280,008 - 4,538,242 = 15,741,766, and 20,000,000 - 15,741,766 = 4,258,234
  of August.
- Grant 3 pays the rest of August, 7,800,000 - 4,258,234 = 3,541,766.

Bob pays USD 20.00 a month and USD 0.02 for each 1,000 output tokens beyond 100,000, at most USD 50.00.

======  ==================  ========================  =============================================
day     output tokens       beyond 100,000            spent
======  ==================  ========================  =============================================
10 Jun    900,000             800,000                 USD 16.00
15 Jun    700,000           1,500,000                 USD 30.00, 60 %: he hears that 50 % are reached
18 Jun    500,000           2,000,000                 USD 40.00, 80 %: he hears it
19 Jun    500,000           2,500,000                 USD 50.00, 100 %: he hears it
19 Jun  refused
30 Jun  refused
12 Jul    350,000             250,000                 USD 5.00
2 Aug      40,000                   0                 nothing
======  ==================  ========================  =============================================

Eve buys USD 50.00 on a page, and wants the money back.

======  ========================  ===================================  ============
day     what                      charged                              balance
======  ========================  ===================================  ============
2 Jun   buys USD 50.00                                                   50,000,000
8 Jun   10 large                  10 * 780,000          =  7,800,000     42,200,000
11 Jul  5 large                   5 * 780,000           =  3,900,000     38,300,000
20 Jul  refund of USD 50.00       38,300,000 are taken back                       0
21 Aug  refused, and her card is not charged
======  ========================  ===================================  ============
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from faults import eventually
from hooking import hooked
from llm_apps import read_all
from meterkit import MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.subscriptions.webhooks.customer_sync import NIGHTLY
from meterkit.subscriptions.webhooks.queue import HookQueue
from meterkit.testing import Clock, StripeEmulator
from tokens.recordings import compact

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from hooking import Hooked

pytestmark = pytest.mark.anyio

CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: payg
meters:
  input_tokens:  {unit: token}
  output_tokens: {unit: token, stripe: {event_name: out}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 30%}
    models:
      "small-*": {input_tokens: 0.15 per 1_000_000, output_tokens: 0.60 per 1_000_000}
      "large-*": {input_tokens: 3 per 1_000_000, output_tokens: 15 per 1_000_000}
    top_up: {packs: [1000, 5000], auto: {below: 500, amount: 2000, at_most: 3 per month}}
routes:
  - {match: "POST /webhooks/stripe", exempt: true}
  - match: "POST /v1/chat/completions"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 1_000, ceiling: 1_000_000}}
plans:
  payg: {price: {amount_cents: 0, interval: month}}
  metered:
    rank: 10
    price: {amount_cents: 2000, interval: month, stripe_price: price_metered}
    budget: {amount_cents: 5000, warn_at: [50, 80, 100]}
    meters:
      usd_charged:   {included: unlimited}
      output_tokens: {included: 100_000, overage: {bill: {per: 1000, amount_cents: 2}}}
""")
PATH: Final = "/v1/chat/completions"
BACK: Final[dict[str, Any]] = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example"}
TINY: Final = ("small-1", 7, 3)
SMALL: Final = ("small-1", 1_000, 500)
LARGE: Final = ("large-1", 100_000, 20_000)


def on(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2031, month, day, hour, tzinfo=UTC)


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    """Report the usage that the request's header asks for."""
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
    """A service, Stripe, one clock, and the events that handlers got."""

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
        """What Bob has spent in the period of an instant, in micro-dollars."""
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
    assert await months.call("bob", ("large-1", 0, 700_000)) == [200]
    await months.go(on(6, 18))
    assert await months.call("bob", ("small-1", 0, 500_000)) == [200]
    await months.go(on(6, 19))
    # The 19th: one token more than fits is refused, what fits is served, and then nothing is.
    assert await months.call("bob", ("small-1", 0, 500_001)) == [402]
    assert await months.call("bob", ("large-1", 0, 500_000)) == [200]
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
    (grant,) = await at.kit.grants.list("eve")
    payments = await at.client.v1.invoice_payments.list_async({"invoice": grant.grant_id})
    intent = str(payments.data[0].payment.payment_intent)
    await at.client.v1.refunds.create_async({"payment_intent": intent})
    await at.settle()
    await HookQueue(at.kit.store).look("cus_eve", NIGHTLY)
    await at.kit.webhooks.work_off()
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
    assert [await months.spent(on(month, 25)) for month in (6, 7, 8)] == [50_000_000, 5_000_000, 0]
    assert await months.invoices("bob") == [
        ("01 Jun", "paid", [2000]),
        ("01 Jul", "paid", [2000, 5000]),
        ("01 Aug", "paid", [500, 2000]),
        ("01 Sep", "paid", [2000]),
    ]
    assert int(months.at.emulator.accepted("cus_bob", "out")) == 2_500_000 + 250_000
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


async def test_three_months_of_three_customers_come_to_what_a_person_works_out(store_url: str) -> None:
    clock = Clock(on(6, 1, 0))
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    emulator.add_plans(CATALOG)
    settings: dict[str, Any] = {"catalog": CATALOG, "flush": True}
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
            await at.subscribe(
                "bob", items=[{"price": "price_metered"}, {"price": "price_metered_output_tokens"}]
            )
            await at.settle()
            months = Months(at=at, client=client, told=told)
            await june(months)
            await july(months)
            await august(months)
            await check_ada(months)
            await check_bob(months)
            await check_eve(months)
