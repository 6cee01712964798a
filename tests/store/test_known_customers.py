"""The customers that a process knows: who is forgotten first, and how much memory each one takes."""

# Internals: how much memory a process keeps of a customer shows nowhere else.

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import gc
import json
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import Keys
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.redis import scripts
from meterkit.store.known_customers import KnownCustomers
from meterkit.store.settlement import settlement_of
from meterkit.store.views import CustomerCache
from meterkit.testing import Clock

if TYPE_CHECKING:
    from meterkit.store.settlement import Settlement
    from meterkit.store.views import CustomerView

NOW_MS = 1_938_859_230_000
DAY_MS = 86_400_000
SLOT = NOW_MS // HOLD_SLOT_MS
CATALOG = loads(
    """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  seats:    {unit: seat, kind: gauge}
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: [1000/minute, 9000/hour], included: 1_000, overage: deny}
      seats:    {included: 1, overage: deny}
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {rate: [1000/minute, 9000/hour], included: 1_000, overage: bill}
      seats:    {included: 3, overage: deny}
"""
)
ROUTE = CATALOG.routes[0]


def ignore(_call: Any, _now_ms: int) -> None:
    """Nobody was waiting."""


def cache_of(kept: int) -> CustomerCache:
    return CustomerCache(
        CATALOG,
        keys=Keys("mk", 128),
        decide=scripts.load("decide"),
        settle=scripts.load("settle"),
        seal_delay_ms=300_000,
        now_ms=lambda: NOW_MS,
        on_unclaimed=ignore,
        customers_kept=kept,
    )


def subscription(nth: int, **others: Any) -> dict[str, Any]:
    start_ms = NOW_MS - 5 * DAY_MS - nth
    return {
        "id": f"sub_1N{nth:018d}",
        "status": "active",
        "plan": "pro",
        "start_ms": start_ms,
        "end_ms": start_ms + 30 * DAY_MS,
        "anchor_ms": start_ms,
        **others,
    }


def state_of(kind: str, nth: int) -> bytes:
    if kind == "by hand":
        return CustomerState(plan="pro").dump().encode()
    linked = {"stripe_customer": f"cus_N{nth:013d}", "subscription": subscription(nth)}
    return json.dumps(linked, separators=(",", ":")).encode()


def met(cache: CustomerCache, nth: int, kind: str) -> CustomerView:
    """A customer who was met by a request, with the state that the store answered with."""
    view = cache.get(f"customer-{nth:06d}")
    if kind == "none":
        return view
    return cache.learn(view, [2, NOW_MS, f"2:{nth:016x}".encode(), state_of(kind, nth)])


def served(cache: CustomerCache, nth: int, kind: str) -> Settlement:
    """One request of a customer, from the decision to its packed settlement."""
    settlement = settlement_of(met(cache, nth, kind).prepare(ROUTE), SLOT, billed=True)
    settlement.pack()
    return settlement


@pytest.mark.dear("each allocation is traced")
@pytest.mark.parametrize(("kind", "most"), [("none", 1_200), ("subscribed", 1_800)])
def test_a_served_customer_takes_so_many_bytes_of_a_process(kind: str, most: int) -> None:
    cache, customers = cache_of(10_000), 500
    for nth in range(100):
        served(cache, nth, kind)  # What all have in common.
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for nth in range(100, 100 + customers):
        served(cache, nth, kind)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(cache.named) == 100 + customers
    assert taken // customers <= most


async def consume_of(kit: MeterKit, numbers: range) -> None:
    await asyncio.gather(*(kit.consume(f"customer-{nth:06d}", "requests") for nth in numbers))


@pytest.mark.dear("each allocation is traced")
@pytest.mark.anyio
async def test_a_customer_whom_a_call_consumed_for_takes_as_little(store_url: str) -> None:
    async with MeterKit(CATALOG, redis_url=store_url, flush=False) as kit:
        await consume_of(kit, range(100))  # What all have in common.
        gc.collect()
        tracemalloc.start()
        for first in range(100, 400, 100):
            await consume_of(kit, range(first, first + 100))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert taken // 300 <= 1_800


@pytest.mark.anyio
async def test_a_view_keeps_a_settlement_from_its_second_use_on(store_url: str) -> None:
    clock = Clock(datetime(2031, 5, 30, 12, tzinfo=UTC))
    async with MeterKit(CATALOG, redis_url=store_url, flush=False, clock=clock) as kit:
        kept = list[int]()
        for _ in range(3):
            await kit.consume("acme", "requests")
            kept.append(len(kit.store.cache.get("acme").settlements))
        clock.advance(timedelta(days=1))
        await kit.consume("bolt", "requests")
        clock.advance(timedelta(milliseconds=HOLD_SLOT_MS))
        await kit.consume("bolt", "requests")
        assert [0, 1, 1, 0] == [*kept, len(kit.store.cache.get("bolt").settlements)]
        assert [3, 2] == [
            (await kit.usage(name))["meters"]["requests"]["recorded"] for name in ("acme", "bolt")
        ]


def test_a_user_who_comes_again_and_again_is_never_forgotten() -> None:
    cache = cache_of(100)
    regular = cache.get("acme", subjects=(("user", "regular"),))
    for nth in range(2_000):
        cache.get("acme", subjects=(("user", f"u{nth}"),))
        if nth % 40 == 0:
            assert cache.get("acme", subjects=(("user", "regular"),)) is regular
    assert cache.get("acme", subjects=(("user", "u0"),)).base is cache.get("acme")


def test_anonymous_customers_displace_nobody_whom_the_app_names() -> None:
    cache = cache_of(100)
    named = cache.get("acme")
    for nth in range(1_000):
        cache.get(f"10.0.0.{nth}", anonymous=True)
    assert cache.get("acme") is named


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
            newest[customer] = view_of(customer)
            known.put(customer, newest[customer])
        found = known.find(customer)
        assert found in {None, newest.get(customer)}
        assert found is not None or customer not in recent[: most // 2]
        if found is not None:
            recent = [customer, *(other for other in recent if other != customer)]
        assert len(known) <= most


class _View:
    def __init__(self, customer: str) -> None:
        self.customer = customer


def view_of(customer: str) -> Any:
    return _View(customer)


def test_threads_may_use_it_at_once() -> None:
    known = KnownCustomers[str, Any](50)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(5_000):
                customer = f"c{(step * 7 + seed * 13) % 90}"
                found = known.find(customer)
                assert found is None or found.customer == customer
                if found is None:
                    known.put(customer, view_of(customer))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failed, len(known) <= 50) == ([], True)


def test_the_setting_bounds_what_a_kit_knows() -> None:
    kit = MeterKit(CATALOG, redis_url="memory://", flush=False, customers_kept=100)
    for nth in range(300):
        kit.store.cache.get(f"customer-{nth}")
    assert len(kit.store.cache.named) == 100
