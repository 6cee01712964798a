"""What a process knows of a customer is of one state, whoever else learns of another meanwhile."""

# Internals: what threads share of a customer shows nowhere else.

# pyright: reportPrivateUsage=false
# How much is kept of what was prepared shows nowhere else.

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from drivers.counters import flat_of, packed_of
from faults.refusals import settle, settled, used
from meterkit import MeterKit, StoreError
from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import Keys
from meterkit.redis import scripts
from meterkit.store.compiled import Alarms
from meterkit.store.views import CustomerCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement, Route
    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.program import Program
    from meterkit.store.subjects import Subjects

pytestmark = pytest.mark.anyio

NOW_MS = 1_938_859_230_000
LIMITS = {"free": 1_000_003, "pro": 2_000_003}
CATALOG = loads(
    """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 1_000_003, overage: deny}}
  pro:
    price: {amount_cents: 100, interval: month}
    meters: {requests: {included: 2_000_003, overage: deny}}
"""
)


def reply(rev: str, plan: str) -> list[Any]:
    """What a script answers to whoever knows another state."""
    return [2, NOW_MS, rev.encode(), CustomerState(plan=plan).dump().encode()]


def ignore(_call: Any, _now_ms: int) -> None:
    """Nobody was waiting."""


class Interrupted(CustomerCache):
    """Customers of whom another thread learns something while a program is compiled."""

    meanwhile: list[list[Any]]

    def program(
        self,
        entitlements: Mapping[str, Entitlement],
        route: Route,
        prepaid: Prepaid | None,
        *,
        keeps: bool = False,
        subjects: Subjects | None = None,
    ) -> Program:
        program = super().program(entitlements, route, prepaid, keeps=keeps, subjects=subjects)
        if getattr(self, "meanwhile", None):
            self.learn(self.get("acme"), self.meanwhile.pop())
        return program


def known(catalog: Catalog = CATALOG, kind: type[CustomerCache] = CustomerCache) -> Any:
    return kind(
        catalog,
        keys=Keys("mk", 4),
        decide=scripts.load("decide"),
        settle=scripts.load("settle"),
        seal_delay_ms=300_000,
        now_ms=lambda: NOW_MS,
        on_unclaimed=ignore,
    )


def test_a_state_learnt_while_packing_does_not_mix_with_the_old() -> None:
    # F-17: the new rev with the old plan's limit, and kept.
    customers = known(kind=Interrupted)
    route = CATALOG.routes[0]
    view = customers.learn(customers.get("acme"), reply("1:old", "free"))
    customers.meanwhile = [reply("1:new", "pro")]
    first = view.prepare(route)
    assert (b"1:old" in first.packed[0], b"1:new" in first.packed[0]) == (True, False)
    assert first.view.effective.plan.key == "free"
    second = customers.get("acme").prepare(route)
    assert (b"1:old" in second.packed[0], b"1:new" in second.packed[0]) == (False, True)
    assert second.program.measures[0].limit == LIMITS["pro"]
    assert second is customers.get("acme").decisions[id(route)]


@pytest.mark.dear("three threads decide all the time")
async def test_i4_threads_never_decide_by_two_states(store_url: str) -> None:
    # F-17, with everything real.
    wrong: list[object] = []
    kit = MeterKit(CATALOG, redis_url=store_url, shards=4, flush=False, store_timeout=10.0)
    over = threading.Event()

    async def work() -> None:
        async with kit:
            while not over.is_set():
                decision = await kit.check("acme", "requests")
                if (decision.remaining or 0) // 1_000_000 != LIMITS[decision.plan or ""] // 1_000_000:
                    wrong.append(decision)

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - shown by the test
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        async with kit:
            for flip in range(100):
                await kit.customers.set_plan("acme", ("pro", "free")[flip % 2])
    finally:
        over.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        sys.setswitchinterval(interval)
    assert wrong == []


async def know(client: Any, counters: str, rev: str) -> None:
    """Have counters know of another state."""
    head = flat_of({"h": await client.hget(counters, "h")})
    await client.hset(counters, "h", packed_of(head | {"r": rev})["h"])


@pytest.mark.leaves_keys("a state that nobody can read")
@pytest.mark.parametrize("data", ["no json", "[1]", '{"anchor_ms": "x"}'])
async def test_a_state_that_cannot_be_read_is_not_half_taken(store_url: str, data: str) -> None:
    # F-17: its rev was, so the next decision was made by the plan before.
    async with MeterKit(CATALOG, redis_url=store_url, shards=1, flush=False, store_timeout=10.0) as kit:
        await kit.customers.set_plan("acme", "pro")
        assert (await kit.check("acme", "requests")).plan == "pro"
        client: Any = (await kit.store.admin()).client
        key = kit.store.keys.customer("acme").state
        await client.hset(key, mapping={"rev": "2:unreadable", "data": data})
        await know(client, kit.store.keys.customer("acme").counters, "2:unreadable")
        for _ in range(2):
            with pytest.raises(StoreError, match="the state of customer 'acme' cannot be read"):
                await kit.check("acme", "requests")
        settle(kit, "acme", requests=2)  # Kept until the state can be read, and in no other's way.
        await kit.record("other", "requests", 1)
        await client.hset(key, mapping={"rev": "2:mended", "data": '{"plan":"free"}'})
        await know(client, kit.store.keys.customer("acme").counters, "2:mended")
        assert (await kit.check("acme", "requests")).plan == "free"
        await settled(kit)
        assert (await used(kit, "acme"), await used(kit, "other")) == ((2, 0), (1, 0))


@pytest.mark.dear("more customers than are remembered")
def test_forgotten_customers_share_what_they_have_in_common() -> None:
    # F-89: each of them was compiled and packed from nothing.
    customers, route = known(), CATALOG.routes[0]
    first, second = customers.get("acme"), customers.get("beta")
    assert first.effective is second.effective
    assert first.prepare(route).program is second.prepare(route).program
    assert first.prepare(route).packed[1] is second.prepare(route).packed[1]
    decisions = [customers.get(f"customer-{n}").prepare(route) for n in range(20_001)]
    assert len({decision.packed for decision in decisions}) == 20_001
    assert all(decision.view.effective is first.effective for decision in decisions)
    # A customer with a state has a packing of its own.
    second = customers.learn(second, reply("1:other", "free"))
    assert b"1:other" in second.prepare(route).packed[0]
    assert b"1:other" not in customers.get("gamma").prepare(route).packed[0]


def test_an_alarm_is_logged_once_in_ten_thousand(caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(CATALOG)
    for n in range(10_001):
        alarms.unknown_plan("acme", f"p{n}")
        alarms.unknown_plan("zeta", f"p{n}")
    assert len(caplog.records) == 10_001
    alarms.unknown_plan("acme", "p0")
    assert caplog.messages[-1].startswith("plan 'p0', which customer 'acme' is on, is not in plans.yaml")
    assert len(caplog.records) == 10_002
