"""The customers that a process knows: who is forgotten first, and how much memory each one takes."""

# Internals: how much memory a process keeps of a customer shows nowhere else.

# pyright: reportPrivateUsage=false

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.keys import Keys
from meterkit.redis import scripts
from meterkit.store.known_customers import KnownCustomers
from meterkit.store.views import CustomerCache

NOW_MS = 1_938_859_230_000
DAY_MS = 86_400_000
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
