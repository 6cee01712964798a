"""What single functions write to the store and read from it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit import MeterKit, QuantityError
from meterkit.catalog import loads
from meterkit.customers.drifts import Drift, Drifts
from meterkit.customers.stranding import Switch, hold_usage, strand_usage
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.periods import to_ms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.outbox.closes import InvoiceEnd, Stamped, keep_invoice_end, note_renewal, too_late
from meterkit.redis.scripts import Script
from meterkit.store.hold import Used
from meterkit.store.jobs import claim_job, has_ended
from meterkit.store.server_lives import ServerLife, ServerLives
from meterkit.store.settlement import Settlement
from meterkit.store.spool import Spool
from meterkit.store.tasks import TaskLease
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from meterkit.store.store import Store

pytestmark = pytest.mark.anyio

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
NOW: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
NOW_MS: Final = to_ms(NOW)
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request, stripe: {event_name: requests}}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
""")


@pytest.fixture
async def store() -> AsyncGenerator[Store]:
    async with MeterKit(CATALOG, redis_url="memory://", shards=1, flush=False, clock=Clock(NOW)) as kit:
        yield kit.store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


async def client_of(store: Store) -> Any:
    return (await store.admin()).client


def renewed(start_ms: int) -> SubscriptionState:
    """A subscription that was renewed at an instant, and made a period before."""
    made_ms = start_ms - 31 * DAY_MS
    return SubscriptionState(
        id="sub_1",
        status="active",
        plan="free",
        start_ms=start_ms,
        end_ms=start_ms + 30 * DAY_MS,
        anchor_ms=start_ms,
        created_ms=made_ms,
    )


async def test_what_is_held_back_is_kept_for_400_days(store: Store) -> None:
    await hold_usage(store, "ada", till_ms=NOW_MS + 90_000)
    left_ms = await (await client_of(store)).pttl(store.keys.customer("ada").totals)
    assert 399 * DAY_MS < left_ms <= 400 * DAY_MS


async def test_a_nightly_look_replaces_what_was_found_before(store: Store) -> None:
    drifts = Drifts(store)
    first, second = (Drift(subscription=name, kind="seats", message="4 for 5") for name in ("sub_1", "sub_2"))
    assert await drifts.put("ada", [first]) == [first]
    await drifts.replace({"bob": [second]})
    assert await drifts.put("bob", [second]) == []
    assert await drifts.put("ada", [first]) == [first]


@pytest.mark.parametrize(("till_ms", "forgot"), [(0, b"5-7"), (6, b"5-6")])
async def test_a_restart_that_was_compared_is_remembered_with_its_span(
    store: Store, till_ms: int, forgot: bytes
) -> None:
    life = ServerLife(now="b", known="a", noticed="b", noticed_ms=7, seen_ms=5, till_ms=till_ms)
    await ServerLives(store).confirm(0, life)
    assert await (await client_of(store)).hget(store.keys.shard(0, "life"), "forgot") == forgot


async def test_a_lease_says_how_long_it_is_held(store: Store) -> None:
    lease = TaskLease(store, store.keys.shard(0, "closing"), lasts_ms=60_000)
    assert await lease.left_s() == 1  # No process has it.
    assert await lease.take()
    assert 50 < await lease.left_s() <= 60


async def test_the_end_of_a_job_is_seen_once(store: Store) -> None:
    view = store.cache.get("ada")
    assert not await has_ended(store, "job_1")
    assert (await claim_job(store, "job_1", view, "/ask", by="whole")).counts
    assert await has_ended(store, "job_1")
    claim = await claim_job(store, "job_1", store.cache.get("bob"), "/ask", by="lines")
    assert (claim.owner, claim.counts) == (view, False)


async def test_scripts_run_many_times_on_a_server_that_does_not_know_them(store: Store) -> None:
    text = "return KEYS[1]"
    script = Script("unknown", text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    admin = await store.admin()
    found = await admin.run_many(script, [["mk:{0}:a"], ["mk:{0}:b"]])
    assert found == [b"mk:{0}:a", b"mk:{0}:b"]


@pytest.mark.parametrize(("age_ms", "is_late"), [(120_000, False), (120_001, True), (240_000, True)])
async def test_usage_older_than_two_minutes_is_late_where_its_invoice_is_final(
    store: Store, age_ms: int, *, is_late: bool
) -> None:
    subscription = renewed(NOW_MS - 60_000)
    state = CustomerState(stripe_customer="cus_1", subscription=subscription)
    keys, client = store.keys.customer("ada"), await client_of(store)
    await client.hset(keys.state, mapping={"rev": "2:1", "data": state.dump()})
    period_ms = subscription.created_ms or 0
    await keep_invoice_end(store, "ada", period_ms, InvoiceEnd(final_ms=NOW_MS - 1))
    stamped = Stamped(
        customer="ada", stripe_customer="cus_1", period=str(period_ms), minute_ms=NOW_MS - age_ms
    )
    found = await too_late(store, keys.shard, [stamped])
    assert found == ({stamped} if is_late else set())


@pytest.mark.parametrize(("hours", "is_noted"), [(1, True), (25, True), (26, False)])
async def test_for_26_hours_a_renewal_has_the_close_of_the_period_before_looked_at(
    store: Store, hours: int, *, is_noted: bool
) -> None:
    renewed_ms = NOW_MS - hours * HOUR_MS
    subscription = renewed(renewed_ms)
    await note_renewal(store, "ada", subscription, known=subscription)
    found = await (await client_of(store)).zrange(store.keys.shard(0, "closes"), 0, -1)
    assert found == ([f"{renewed_ms}:ada".encode()] if is_noted else [])


async def test_of_each_meter_whose_price_others_changed_it_is_logged_what_is_late(
    caplog: pytest.LogCaptureFixture,
) -> None:
    catalog = loads("""
schema: 1
currency: usd
default_plan: pro
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens: {unit: token, stripe: {event_name: tokens}}
plans:
  pro:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 0, overage: {bill: {per: 1, amount_cents: 2}}}
      tokens: {included: 0, overage: {bill: {per: 1, amount_cents: 3}}}
""")
    async with MeterKit(catalog, redis_url="memory://", shards=1, flush=False, clock=Clock(NOW)) as kit:
        await kit.customers.link("ada", "cus_1")
        await kit.record("ada", "requests", 5)
        await kit.record("ada", "tokens", 7)
        state = CustomerState(stripe_customer="cus_1")
        switch = Switch(rev="2:1", events={"requests", "tokens"}, changed_ms=NOW_MS, cause="test")
        await strand_usage(kit.store, "ada", state, state, switch)
    late = {message.partition(" that customer")[0] for message in caplog.messages if "are late" in message}
    assert late == {"5 units of requests", "7 units of tokens"}


async def test_what_is_spooled_is_sent_once_the_store_is_there(store: Store, directory: Path) -> None:
    lane = await store.lane()
    spool = Spool(
        directory,
        lane=lane,
        cache=lambda: store.cache,
        keys=store.keys,
        store="memory://",
        now_ms=store.now_ms,
    )
    assert (spool.lost, spool.kept) == (0, 0)
    used = Settlement(store.cache.get("ada"), used=Used.of({"requests": 5}))
    spool.keep(0, [(used, None)])
    assert spool.kept == 1
    await spool.send_all()
    assert await spool.close() == []
    assert (spool.lost, spool.kept) == (0, 0)
    assert (await store.usage("ada"))["meters"]["requests"]["used"] == 5


async def test_a_settlement_beyond_what_can_be_counted_is_refused(store: Store) -> None:
    view, most = store.cache.get("ada"), 10**15 - 1
    for _ in range(9):
        await store.record(view, Used.of({"requests": most}), event_id=None)
    with pytest.raises(QuantityError, match="total would pass"):
        await store.record(view, Used.of({"requests": most}), event_id=None)
    assert (await store.usage("ada"))["meters"]["requests"]["used"] == 9 * most
