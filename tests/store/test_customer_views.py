"""The customers that a process knows: of one state, whoever learns of another; and who is forgotten first."""

# Internals: what threads share of a customer shows nowhere else.

# pyright: reportPrivateUsage=false
# How much is kept of what was prepared shows nowhere else.

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.counters import put_head
from drivers.plans import completed
from drivers.subscribed_customer import NOW, fetched, kit_of, subscription
from faults.refusals import settle, settled, used
from meterkit import MeterKit, StoreError
from meterkit.catalog import loads
from meterkit.decisions.compiled_decision import Program
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.item_prices import ItemPrice
from meterkit.decisions.keys import Keys
from meterkit.redis import scripts
from meterkit.store.compiled_catalog import CatalogAlarms
from meterkit.store.views import CustomerCache, ViewLru
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW_MS = 1_938_859_230_000
LIMITS = {"free": 1_000_003, "pro": 2_000_003}
PLANS = completed("""
meters: {requests: {unit: request}}
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 1_000_003, overage: deny}}
  pro:
    price: {amount_cents: 100, interval: month}
    meters: {requests: {included: 2_000_003, overage: deny}}
""")
CATALOG = loads(PLANS)


def reply(rev: str, plan: str) -> list[Any]:
    """What a script answers to whoever knows another state."""
    return [2, NOW_MS, rev.encode(), CustomerState(plan=plan).dump().encode()]


class Interrupted(CustomerCache):
    """Customers of whom another thread learns something while a program is compiled."""

    meanwhile: list[list[Any]]

    def compile_route(self, *given: Any, **named: Any) -> Program:
        program = super().compile_route(*given, **named)
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
        on_unclaimed=lambda _call, _now_ms: None,
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
async def test_i4_threads_never_decide_by_two_states(kit: MeterKit) -> None:
    # F-17, with everything real.
    wrong: list[object] = []
    over = threading.Event()

    async def work() -> None:
        async with kit:
            while not over.is_set():
                decision = await kit.check("acme", "requests")
                if (decision.remaining or 0) // 1_000_000 != LIMITS[decision.plan or ""] // 1_000_000:
                    wrong.append(decision)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(asyncio.run, work()) for _ in range(3)]
        try:
            for flip in range(100):
                await kit.customers.set_plan("acme", ("pro", "free")[flip % 2])
        finally:
            over.set()
            sys.setswitchinterval(interval)
    assert [one.exception() for one in working] == [None] * 3
    assert wrong == []


@pytest.mark.leaves_keys("a state that nobody can read")
@pytest.mark.leaves_keys("a state that nobody can read")
async def test_a_state_that_cannot_be_read_is_not_half_taken(valkey: Server, clock: Clock) -> None:
    # F-17: its rev was, so the next decision was made by the plan before.
    async with kit_of(valkey.url, clock, PLANS, shards=1, store_timeout=1.0) as kit:
        keys = kit.store.keys.customer("acme")

        def change(rev: str, data: str) -> None:
            valkey.command("HSET", keys.state, "rev", rev, "data", data)
            put_head(valkey, keys.counters, r=rev)

        await kit.customers.set_plan("acme", "pro")
        assert (await kit.check("acme", "requests")).plan == "pro"
        change("2:unreadable", "[1]")
        for _ in range(2):
            with pytest.raises(StoreError, match="the state of customer 'acme' cannot be read"):
                await kit.check("acme", "requests")
        settle(kit, "acme", requests=2)  # Kept until the state can be read, and in no other's way.
        await kit.record("other", "requests", 1)
        change("2:mended", '{"plan":"free"}')
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


async def test_a_known_customer_takes_at_most_1200_bytes(valkey: Server) -> None:
    names = [f"customer-{number:07}" for number in range(300)]
    async with MeterKit(CATALOG, redis_url=valkey.url, flush=False) as kit:
        for name in names[:100]:
            await kit.consume(name, "requests")
        gc.collect()
        tracemalloc.start()
        try:
            for name in names[100:]:
                await kit.consume(name, "requests")
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert taken / 200 <= 1_200


def test_an_alarm_is_logged_once_in_ten_thousand(caplog: pytest.LogCaptureFixture) -> None:
    alarms = CatalogAlarms(CATALOG)
    for n in range(10_001):
        alarms.log_missing_plan("acme", f"p{n}")
        alarms.log_missing_plan("zeta", f"p{n}")
    assert len(caplog.records) == 10_001
    alarms.log_missing_plan("acme", "p0")
    assert caplog.messages[-1].startswith("plan 'p0', which customer 'acme' is on, is neither in plans.yaml")
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
    st.integers(1, 6), st.lists(st.tuples(st.sampled_from(["find", "put"]), st.integers(0, 8)), max_size=100)
)
def test_known_customers_against_a_model(most: int, steps: list[tuple[str, int]]) -> None:
    """Never more than the most; never an older view; and of the last half of the most, all."""
    known, newest, recent = ViewLru[str, Any](most), dict[str, Any](), list[str]()
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
    known = ViewLru[str, Any](50)

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


PRICED = """
default_plan: free
meters: {pages: {unit: page, stripe: {event_name: pages}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {pages: {included: 0, overage: deny}}}
  pro:
    price: {amount_cents: 3000, interval: month}
    budget: {amount_cents: 100_000}
    meters: {pages: {included: 0, overage: {bill: {per: 1, amount_cents: 900}}}}
"""


async def test_a_new_price_counts_where_the_clock_is_behind(store_url: str) -> None:
    """Two seconds behind the store's clock, a process took the price before for the new one, and kept it."""
    ahead, behind = Clock(NOW), Clock(NOW - timedelta(seconds=2))
    async with kit_of(store_url, ahead, PRICED) as other, kit_of(store_url, behind, PRICED) as kit:
        for price, used in (("1/400", 400), ("1/700", 1_100)):
            items = {"prices": (ItemPrice("pages", "pages", price),), "metered": f"mtr_1=price_{price}"}
            await fetched(other, subscription(**items))
            await kit.check("acme", "pages")
            for clock in (ahead, behind):
                clock.advance(timedelta(minutes=1))
            await kit.record("acme", "pages", 1)
            assert (await other.usage("acme"))["meters"]["spend"]["recorded"] == used * 10_000
