"""The customers that a process knows: of one state, whoever learns of another; and who is forgotten first."""

# Internals: what threads share of a customer shows nowhere else.

# pyright: reportPrivateUsage=false
# How much is kept of what was prepared shows nowhere else.

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.counters import flat_of, packed_of
from faults.refusals import settle, settled, used
from meterkit import MeterKit, StoreError
from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import Keys
from meterkit.redis import scripts
from meterkit.store.compiled import Alarms
from meterkit.store.known_customers import KnownCustomers
from meterkit.store.views import CustomerCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement, Route
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


def known(kind: type[CustomerCache] = CustomerCache, **settings: Any) -> Any:
    return kind(
        CATALOG,
        keys=Keys("mk", 4),
        decide=scripts.load("decide"),
        settle=scripts.load("settle"),
        seal_delay_ms=300_000,
        now_ms=lambda: NOW_MS,
        on_unclaimed=ignore,
        **settings,
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
async def test_a_state_that_cannot_be_read_is_not_half_taken(store_url: str) -> None:
    # F-17: its rev was, so the next decision was made by the plan before.
    async with MeterKit(CATALOG, redis_url=store_url, shards=1, flush=False, store_timeout=1.0) as kit:
        await kit.customers.set_plan("acme", "pro")
        assert (await kit.check("acme", "requests")).plan == "pro"
        client: Any = (await kit.store.admin()).client
        key = kit.store.keys.customer("acme").state
        await client.hset(key, mapping={"rev": "2:unreadable", "data": "[1]"})
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


def test_forgotten_customers_share_what_they_have_in_common() -> None:
    # F-89: each of them was compiled and packed from nothing.
    customers, route = known(customers_kept=1_000), CATALOG.routes[0]
    first, second = customers.get("acme"), customers.get("beta")
    assert first.effective is second.effective
    assert first.prepare(route).program is second.prepare(route).program
    assert first.prepare(route).packed[1] is second.prepare(route).packed[1]
    decisions = [customers.get(f"customer-{n}").prepare(route) for n in range(2_001)]
    assert len({decision.packed for decision in decisions}) == 2_001
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


# Who is forgotten first.


def test_a_user_who_comes_again_and_again_is_never_forgotten() -> None:
    cache = known(customers_kept=100)
    named = cache.get("acme")
    regular = cache.get("acme", subjects=(("user", "regular"),))
    for nth in range(2_000):
        cache.get("acme", subjects=(("user", f"u{nth}"),))
        cache.get(f"10.0.0.{nth}", anonymous=True)  # Displaces nobody whom the app names.
        if nth % 40 == 0:
            assert cache.get("acme", subjects=(("user", "regular"),)) is regular
    assert cache.get("acme", subjects=(("user", "u0"),)).base is cache.get("acme") is named
    for nth in range(300):
        cache.get(f"customer-{nth}")
    assert len(cache.named) == 100


class _View:
    def __init__(self, customer: str) -> None:
        self.customer = customer


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["find", "put"]), st.integers(0, 8)), max_size=100),
)
def test_known_customers_against_a_model(most: int, steps: list[tuple[str, int]]) -> None:
    """Never more than the most; never an older view; and of the last half of the most, all."""
    known, newest, recent = KnownCustomers[str, Any](most), dict[str, Any](), list[str]()
    for what, nth in steps:
        customer = f"c{nth}"
        if what == "put":
            newest[customer] = _View(customer)
            known.put(customer, newest[customer])
        found = known.find(customer)
        assert found in {None, newest.get(customer)}
        assert found is not None or customer not in recent[: most // 2]
        if found is not None:
            recent = [customer, *(other for other in recent if other != customer)]
        assert len(known) <= most


def test_threads_may_use_it_at_once() -> None:
    known = KnownCustomers[str, Any](50)

    def work(seed: int) -> None:
        for step in range(5_000):
            customer = f"c{(step * 7 + seed * 13) % 90}"
            found = known.find(customer)
            assert found is None or found.customer == customer
            if found is None:
                known.put(customer, _View(customer))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(known) <= 50
