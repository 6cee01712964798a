"""Six months of three customers with add-ons, credits that roll over, and three currencies, worked by hand.

All expected figures are literals, in minor units: cents of a dollar or euro, and whole yen. A change at
noon of the 16th of a month with 31 days, or at the first second of that of one with 30, leaves one half of
the period. Overage of ana costs 2.5 a call, that of ben 2.1 on team and 1.3 on pro, that of cho 3.3 and 2.

====  =====================================================================================================
ana   in USD, on team for 2000 with 100 calls and 500 credits a month
Apr   16th: call_pack 1, half of 500 = 250; 100 + 50 / 2 = 125 calls. 131 calls: 6 x 2.5 = 15
May   2000 + 500 + 15. 16th: call_pack 2 and boost 1, half of 500 + 900 = 700; 150 + 25 = 175 calls, and half
      of 100 credits. 182 calls: 7 x 2.5 = 17.5, which is 18
Jun   2000 + 1000 + 900 + 18. 16th: call_pack 0 at the end. 200 calls, which are all included
Jul   2000 + 900. 16th: call_pack 3, half of 1500 = 750, and boost 0 at the end; 100 + 75 = 175 calls.
      180 calls: 5 x 2.5 = 12.5, which is 13
Aug   2000 + 1500 + 13. 16th: call_pack 1 at the end. No call
Sep   2000 + 500. 161 calls: 11 x 2.5 = 27.5, which is 28
Oct   2000 + 500 + 28
ben   in EUR, on team for 1800 with boost for 800
Apr   112 calls: 12 x 2.1 = 25.2, which is 25
May   1800 + 800 + 25. 16th: call_pack 2, half of 900 = 450; 150 calls. 157 calls: 7 x 2.1 = 14.7, which is 15
Jun   1800 + 800 + 900 + 15. 205 calls: 5 x 2.1 = 10.5, which is 11. 16th: pro, which ends call_pack: half of
      4500 - 1800 - 900 = 900; (300 - 200) / 2 = 50 calls more. 60 calls: 10 x 1.3 = 13
Jul   4500 + 800 + 13. 310 calls: 10 x 1.3 = 13. 16th: team at the end
Aug   1800 + 800 + 13. 150 calls: 50 x 2.1 = 105. 16th: cancelled at the end
Sep   105
cho   in JPY, on pro for 7500 with boost 2 for 2400
Apr   11th: boost 4, two thirds of 2400 = 1600, and of 200 credits = 134. 333 calls: 33 x 2 = 66
May   7500 + 4800 + 66. 16th: boost 1 at the end. 300 calls
Jun   7500 + 1200. 21st: boost 3, a third of 2400 = 800, and of 200 credits = 67. 24th: boost 0 at the end.
      307 calls: 7 x 2 = 14
Jul   7500 + 14. 16th: team at the end
Aug   3000. 16th: call_pack 1, half of 700 = 350; 125 calls. 132 calls: 7 x 3.3 = 23.1, which is 23
Sep   3000 + 700 + 23. 16th: pro, which ends call_pack: half of 7500 - 3000 - 700 = 1900;
      150 + (300 - 150) / 2 = 225 calls. 230 calls: 5 x 2 = 10
Oct   7500 + 10
====  =====================================================================================================

Credits: of ``monthly`` (m), ``boost`` (b) and ``welcome`` (w), used in this order, the oldest first. What is
cut or at its end expires. The ledger gets what a plan gives when there is use: the 67 more of cho in June end
before, and neither their adjustment nor their expiry stays; its 500 + 200 of September are one grant.

====  ====================================================  =================================================
      when the month begins                                 in the month
====  ====================================================  =================================================
ana   at most 800 m for two periods, 150 b for one
Apr   500 m, 50 w                                           230 used: 270 m
May   270 + 500 m, 50 w                                     100 used; 50 b more; 260 used: 410 m, 50 b
Jun   300 + 500 m (110 cut), 50 + 100 b, 50 w               400 used: 400 m; the welcome ends on the 30th
Jul   300 + 500 m (100 cut), 50 + 100 b (50 ended, 50 cut)  950 used: nothing is left
Aug   500 m (no boost)
Sep   300 + 500 m (200 cut)                                 40 used: 260 + 500 m
Oct   300 + 500 m (260 and 200 cut)
ben   at most 800 m on team, 1500 on pro
Apr   500 m, 100 b, 50 w                                    640 used: 10 w
May   500 m, 100 b, 10 w
Jun   300 + 500 m (200 cut), 50 + 100 b (50 cut), 10 w      pro: 200 m more; 100 used: 200 + 700 m
Jul   600 + 900 m (200 and 100 cut), 50 + 100 b             700 used: 800 m
      (50 ended, 50 cut; the welcome ended)
Aug   300 + 500 m (500 cut), 50 + 100 b (50 ended, 50 cut)
Sep   nothing (950 ended)
cho   at most 150 b for each boost
Apr   900 m, 200 b, 50 w                                    134 b more; 1084 used: 150 b
May   900 m, 150 + 400 b, 50 w
Jun   600 + 900 m (300 cut), 50 + 100 b (150 ended,         1600 used: 50 b; 67 b more; the welcome ends
      350 cut), 50 w
Jul   900 m (117 b ended)                                   100 used: 800 m
Aug   300 + 500 m (500 cut)                                 800 used: nothing is left
Sep   500 m                                                 pro: 200 m more
Oct   600 + 900 m (100 cut)
====  ====================================================  =================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.plans import plans_text
from drivers.sampled import some
from drivers.webhooks import Hooked, hooked
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("six_months")
MICRO: Final = 1_000_000
HOUR: Final = timedelta(hours=1)
MOVED: Final = ("new", "expansion", "contraction", "churn", "reactivation")
CURRENCIES: Final = {"ana": "usd", "ben": "eur", "cho": "jpy"}


def on(month: int, day: int = 1, hour: int = 0) -> datetime:
    return datetime(2031, month, day, hour, tzinfo=UTC)


# Day, total, and the lines that are not 0.
# By lines, what ben used on team in June is with the rest of that month: 900, and then 5324.
INVOICES: Final[dict[str, list[tuple[str, int, list[int]]]]] = {
    "ana": [
        ("01 Apr", 2000, [2000]),
        ("16 Apr", 250, [250]),
        ("01 May", 2515, [15, 500, 2000]),
        ("16 May", 700, [-250, 450, 500]),
        ("01 Jun", 3918, [18, 900, 1000, 2000]),
        ("01 Jul", 2900, [900, 2000]),
        ("16 Jul", 750, [750]),
        ("01 Aug", 3513, [13, 1500, 2000]),
        ("01 Sep", 2500, [500, 2000]),
        ("01 Oct", 2528, [28, 500, 2000]),
    ],
    "ben": [
        ("01 Apr", 2600, [800, 1800]),
        ("01 May", 2625, [25, 800, 1800]),
        ("16 May", 450, [450]),
        ("01 Jun", 3515, [15, 800, 900, 1800]),
        ("16 Jun", 911, [-900, -450, 11, 2250]),
        ("01 Jul", 5313, [13, 800, 4500]),
        ("01 Aug", 2613, [13, 800, 1800]),
        ("01 Sep", 105, [105]),
    ],
    "cho": [
        ("01 Apr", 9900, [2400, 7500]),
        ("11 Apr", 1600, [-1600, 3200]),
        ("01 May", 12_366, [66, 4800, 7500]),
        ("01 Jun", 8700, [1200, 7500]),
        ("21 Jun", 800, [-400, 1200]),
        ("01 Jul", 7514, [14, 7500]),
        ("01 Aug", 3000, [3000]),
        ("16 Aug", 350, [350]),
        ("01 Sep", 3723, [23, 700, 3000]),
        ("16 Sep", 1900, [-1500, -350, 3750]),
        ("01 Oct", 7510, [10, 7500]),
    ],
}
# What the month's statement comes to, April first: the invoices of changes and the renewal at its end.
STATEMENTS: Final[dict[str, list[int]]] = {
    "ana": [2000 + 250 + 2515, 700 + 3918, 2900, 750 + 3513, 2500, 2528],
    "ben": [2600 + 2625, 450 + 3515, 911 + 5313, 2613, 105],
    "cho": [9900 + 1600 + 12_366, 8700, 800 + 7514, 3000, 350 + 3723, 1900 + 7510],
}
# Recorded, included, overage of calls, an hour before the month ends.
CALLS: Final[dict[str, list[tuple[int, int, int]]]] = {
    "ana": [(131, 125, 6), (182, 175, 7), (200, 200, 0), (180, 175, 5), (0, 250, 0), (161, 150, 11)],
    "ben": [(112, 100, 12), (157, 150, 7), (265, 250, 15), (310, 300, 10), (150, 100, 50), (0, 10, 0)],
    "cho": [(333, 300, 33), (300, 300, 0), (307, 300, 7), (0, 300, 0), (132, 125, 7), (230, 225, 5)],
}
# Credits by entry of the ledger.
LEDGERS: Final[dict[str, dict[str, int]]] = {
    "ana": {
        "grant": 7 * 500 + 50 + 50 + 100 + 100,
        "burn": -(230 + 360 + 400 + 950 + 40),
        "expire": -(110 + 50 + 100 + 50 + 50 + 200 + 260 + 200),
        "rollover": 0,
    },
    "ben": {
        "grant": 4 * 500 + 900 + 5 * 100 + 50,
        "adjustment": 200,
        "burn": -(640 + 100 + 700),
        "expire": -(200 + 50 + 200 + 100 + 50 + 50 + 10 + 500 + 50 + 50 + 950),
        "rollover": 0,
    },
    "cho": {
        "grant": 4 * 900 + 500 + 700 + 900 + 200 + 400 + 100 + 50,
        "adjustment": 134,
        "burn": -(1084 + 1600 + 100 + 800),
        "expire": -(300 + 150 + 350 + 50 + 50 + 500 + 100),
        "rollover": 0,
    },
}
# Monthly recurring revenue from a day on.
MRR: Final[dict[str, dict[str, int]]] = {
    "ana": {"04-01": 2000, "04-16": 2500, "05-16": 3900, "07-01": 2900, "07-16": 4400, "08-01": 3500}
    | {"09-01": 2500},
    "ben": {"04-01": 2600, "05-16": 3500, "06-16": 5300, "08-01": 2600, "09-01": 0},
    "cho": {"04-01": 9900, "04-11": 12_300, "06-01": 8700, "06-21": 11_100, "07-01": 7500, "08-01": 3000}
    | {"08-16": 3700, "09-16": 7500},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Months:
    at: Hooked
    calls: dict[str, list[tuple[int, object, int]]]

    async def go(self, to: datetime) -> None:
        """Go to an instant; at the end of a month usage is delivered, and its invoice waits and is paid."""
        now = datetime.fromtimestamp(self.at.clock(), UTC)
        if now.month != to.month:
            first = to.replace(day=1, hour=0)
            await self._stop(first - HOUR)
            for customer, seen in self.calls.items():
                usage = (await self.at.kit.usage(customer))["meters"]["calls"]
                seen.append((usage["recorded"], usage["included"], usage["overage"]))
            for stop in (first, first + 2 * HOUR, first + 26 * HOUR):
                await self._stop(stop)
        if self.at.clock() < to.timestamp():
            await self._stop(to)

    async def _stop(self, to: datetime) -> None:
        self.at.clock.set(to)
        self.at.emulator.advance()
        await self.at.settle()
        await self.at.kit.flush(everything=True)
        await self.at.settle()

    async def begin(self, customer: str, plan: str, **addons: int) -> None:
        service = self.at.kit.subscriptions
        made = await service.create(customer, plan, addons=addons, currency=CURRENCIES[customer])
        assert made.client_secret is not None
        self.at.emulator.confirm_payment(made.client_secret)
        await self.at.settle()
        await service.sync(customer)

    async def addons(self, customer: str, now: Mapping[str, int], later: Mapping[str, int]) -> None:
        """Buy add-ons and give some up: what there is then, and when the period ends."""
        wanted = {name: later.get(name, 0) for name in now}
        found = (await self.at.kit.subscriptions.set_addons(customer, wanted)).subscription
        change = found.pending_change
        assert dict(found.addons) == now
        assert (found.addons if change is None else change.addons) == later
        await self.at.settle()

    async def plan(self, customer: str, plan: str, ended: Mapping[str, int]) -> None:
        done = await self.at.kit.subscriptions.change_plan(customer, plan)
        assert done.ended_addons == ended
        await self.at.settle()

    async def use(self, customer: str, *, calls: int = 0, tokens: int = 0) -> None:
        if calls:
            await self.at.kit.record(customer, "calls", calls)
        if tokens:
            assert (await self.at.kit.consume(customer, "tokens", tokens)).allowed

    async def holds(self, customer: str, balance: int, rolled: int, **addons: int) -> None:
        """The balance, what of it has lived on, and what is bought; the ledger adds up to it."""
        usage = await self.at.kit.usage(customer)
        assert (usage["balance"]["ai"], usage["rolled_over"]["ai"]) == (balance, rolled)
        assert (usage["addons"], usage["currency"]) == (addons, CURRENCIES[customer])
        lines = await self.at.kit.grants.ledger(customer)
        assert sum(line.quantity for line in lines) == balance * MICRO
        held = [grant for grant in await self.at.kit.grants.list(customer) if grant.status == "active"]
        assert sum(grant.remaining for grant in held) == balance
        assert not (await self.at.kit.check(customer, "tokens", balance + 1)).allowed


async def april(months: Months) -> None:
    await months.begin("ana", "team")
    await months.begin("ben", "team", boost=1)
    await months.begin("cho", "pro", boost=2)
    await months.holds("ana", 550, 0)
    await months.holds("ben", 650, 0, boost=1)
    await months.holds("cho", 1150, 0, boost=2)
    await months.go(on(4, 1, 3))
    await months.at.kit.revenue.snapshot()  # Of the day before.
    await months.go(on(4, 5))
    await months.use("ana", calls=90, tokens=120)
    await months.use("ben", calls=112, tokens=640)
    await months.use("cho", calls=333)
    await months.go(on(4, 11))
    await months.addons("cho", {"boost": 4}, {"boost": 4})
    await months.holds("cho", 1284, 0, boost=4)
    await months.use("cho", tokens=1084)
    await months.go(on(4, 16))
    await months.addons("ana", {"call_pack": 1}, {"call_pack": 1})
    await months.use("ana", calls=41, tokens=110)
    await months.holds("ana", 320, 0, call_pack=1)
    await months.holds("ben", 10, 0, boost=1)


async def may(months: Months) -> None:
    await months.go(on(5, 3))
    await months.holds("ana", 820, 270, call_pack=1)
    await months.holds("ben", 610, 0, boost=1)
    await months.holds("cho", 1500, 150, boost=4)
    await months.use("ana", calls=60, tokens=100)
    await months.use("ben", calls=100)
    await months.use("cho", calls=300)
    await months.go(on(5, 16, 12))
    await months.addons("ana", {"boost": 1, "call_pack": 2}, {"boost": 1, "call_pack": 2})
    await months.addons("ben", {"boost": 1, "call_pack": 2}, {"boost": 1, "call_pack": 2})
    await months.addons("cho", {"boost": 4}, {"boost": 1})
    await months.holds("ana", 770, 170, boost=1, call_pack=2)
    await months.use("ana", calls=122, tokens=260)
    await months.use("ben", calls=57)
    await months.holds("ana", 510, 0, boost=1, call_pack=2)


async def june(months: Months) -> None:
    await months.go(on(6, 3))
    await months.holds("ana", 1000, 350, boost=1, call_pack=2)
    await months.holds("ben", 960, 350, boost=1, call_pack=2)
    await months.holds("cho", 1700, 650, boost=1)
    await months.use("ben", calls=205)
    await months.go(on(6, 16))
    await months.addons("ana", {"boost": 1, "call_pack": 2}, {"boost": 1})
    await months.use("ana", calls=200, tokens=400)
    await months.plan("ben", "pro", {"call_pack": 2})
    await months.holds("ben", 1160, 350, boost=1)
    await months.use("ben", calls=60, tokens=100)
    await months.use("cho", calls=307, tokens=1600)
    await months.holds("cho", 100, 0, boost=1)
    await months.go(on(6, 21))
    await months.addons("cho", {"boost": 3}, {"boost": 3})
    await months.holds("cho", 167, 0, boost=3)
    await months.go(on(6, 24))
    await months.addons("cho", {"boost": 3}, {})
    await months.go(on(6, 30))
    await months.holds("ana", 550, 50, boost=1, call_pack=2)
    await months.holds("cho", 117, 0, boost=3)


async def july(months: Months) -> None:
    await months.go(on(7, 3))
    await months.holds("ana", 950, 350, boost=1)
    await months.holds("ben", 1650, 650, boost=1)
    await months.holds("cho", 900, 0)
    await months.use("ana", calls=30)
    await months.use("ben", calls=310, tokens=700)
    await months.use("cho", tokens=100)
    await months.go(on(7, 16, 12))
    await months.addons("ana", {"boost": 1, "call_pack": 3}, {"call_pack": 3})
    await months.use("ana", calls=150, tokens=950)
    await months.holds("ana", 0, 0, boost=1, call_pack=3)
    await months.plan("ben", "team", {})
    await months.plan("cho", "team", {})
    await months.holds("ben", 950, 50, boost=1)


async def august(months: Months) -> None:
    await months.go(on(8, 3))
    await months.holds("ana", 500, 0, call_pack=3)
    await months.holds("ben", 950, 350, boost=1)
    await months.holds("cho", 800, 300)
    await months.use("ben", calls=150)
    await months.go(on(8, 16, 12))
    await months.addons("ana", {"call_pack": 3}, {"call_pack": 1})
    await months.at.kit.subscriptions.cancel("ben")
    await months.addons("cho", {"call_pack": 1}, {"call_pack": 1})
    await months.use("cho", calls=132, tokens=800)
    await months.holds("cho", 0, 0, call_pack=1)


async def september(months: Months) -> None:
    await months.go(on(9, 3))
    await months.holds("ana", 800, 300, call_pack=1)
    await months.holds("ben", 0, 0)
    await months.holds("cho", 500, 0, call_pack=1)
    await months.use("ana", calls=161, tokens=40)
    await months.holds("ana", 760, 260, call_pack=1)
    await months.go(on(9, 16))
    await months.plan("cho", "pro", {"call_pack": 1})
    await months.use("cho", calls=230)
    await months.holds("cho", 700, 0)
    await months.go(on(10, 3))
    await months.holds("ana", 800, 300, call_pack=1)
    await months.holds("cho", 1500, 600)


async def invoices(at: Hooked, customer: str) -> list[tuple[str, int, list[int]]]:
    """The invoices at Stripe, the oldest first: all are paid, and in the currency of the customer."""
    linked = (await at.kit.customers.get(customer)).stripe_customer
    asked: Any = {"customer": linked, "limit": 100}
    found = (await at.client.v1.invoices.list_async(asked)).data[::-1]
    assert {(one.status, one.currency) for one in found} == {("paid", CURRENCIES[customer])}
    return [
        (
            f"{datetime.fromtimestamp(one.created, UTC):%d %b}",
            one.total,
            sorted(line.amount for line in one.lines.data if line.amount),
        )
        for one in found
    ]


async def check_months(at: Hooked, customer: str) -> None:
    """The statement and the usage of each month."""
    totals: list[int] = []
    for place in range(len(STATEMENTS[customer])):
        statement = await at.kit.statement(customer, on(4 + place, 10))
        totals.append(statement.total_cents)
        assert (statement.is_final, statement.currency) == (True, CURRENCIES[customer])
        assert sum(line.amount_cents for line in statement.lines) == statement.total_cents
        # Of one meter's lines on one invoice, the first has the events.
        noted = {line.note for line in statement.lines if not line.note.startswith("its events are under")}
        assert (noted, {line.kind for line in statement.lines} & {"difference"}) == ({""}, set())
        usage = (await at.kit.usage(customer, period=on(4 + place, 10)))["meters"]["calls"]
        recorded, _, overage = CALLS[customer][place]
        assert (usage["recorded"], usage["overage"], usage["delivered"]) == (recorded, overage, overage)
        billed = [line.quantity or 0 for line in statement.lines if line.meter == "calls"]
        assert sum(billed) == overage
    assert totals == STATEMENTS[customer]


async def ledger(at: Hooked, customer: str) -> dict[str, int]:
    """The credits in a customer's ledger by entry; rollover takes as much as it adds."""
    found: Counter[str] = Counter()
    for line in await at.kit.grants.ledger(customer):
        found[line.entry] += line.quantity // MICRO
    return dict(found)


async def check_revenue(at: Hooked) -> None:
    """The revenue of each day, by currency: each customer is alone in its own."""
    revenue = at.kit.revenue
    await revenue.snapshot()
    changed = {date.fromisoformat(f"2031-{day}") for days in MRR.values() for day in days}
    before = dict.fromkeys(CURRENCIES.values(), 0)
    for day in sorted(changed | {day + timedelta(days=1) for day in changed} | {date(2031, 10, 1)}):
        found = await revenue.at(day)
        for customer, currency in CURRENCIES.items():
            mrr = MRR[customer].get(f"{day:%m-%d}", before[currency])
            change, before[currency] = mrr - before[currency], mrr
            moved = {name: getattr(found, name).get(currency, 0) for name in ("mrr", *MOVED)}
            assert (day, customer, moved) == (
                day,
                customer,
                {
                    "mrr": mrr * MICRO,
                    "new": change * MICRO if change == mrr else 0,
                    "expansion": change * MICRO if 0 < change < mrr else 0,
                    "contraction": -change * MICRO if change < 0 < mrr else 0,
                    "churn": -change * MICRO if not mrr else 0,
                    "reactivation": 0,
                },
            )


@pytest.mark.dear("six months of three customers")
@pytest.mark.parametrize("usage", some(["meters", "lines"], {"meters"}))
async def test_six_months_match_a_calculation_by_hand(store_url: str, tmp_path: Path, usage: str) -> None:
    clock, url = Clock(on(4)), sqlite_in(tmp_path)
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    settings: dict[str, Any] = {
        "catalog": loads(PLANS.replace("usage: meters", f"usage: {usage}")),
        "audit_url": url,
    }
    async with hooked(store_url, clock=clock, emulator=emulator, **settings) as at:
        await at.kit.stripe.sync()
        months = Months(at=at, calls={customer: [] for customer in CURRENCIES})
        for live in (april, may, june, july, august, september):
            await live(months)
        assert months.calls == CALLS
        await drain_all(at.kit, url)
        for customer in CURRENCIES:
            wanted = INVOICES[customer]
            if (customer, usage) == ("ben", "lines"):
                later = [("16 Jun", 900, [-900, -450, 2250]), ("01 Jul", 5324, [11, 13, 800, 4500])]
                wanted = [*wanted[:4], *later, *wanted[6:]]
            assert await invoices(at, customer) == wanted
            assert await ledger(at, customer) == LEDGERS[customer]
            await check_months(at, customer)
        await check_revenue(at)
