"""What single functions write to the store and read from it."""

# Internals: single functions that no other test tells apart: python mutants need them.

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest

from meterkit import MeterKit, QuantityError
from meterkit.catalog import loads
from meterkit.customers.drifts import Drift, Drifts
from meterkit.customers.states import States
from meterkit.customers.stranding import Switch, hold_usage, strand_usage
from meterkit.decisions.asked import Demand
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import from_ms, to_ms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.outbox.batches import batch_text, intents_in
from meterkit.outbox.closes import Close, Closes, ends_to_close, note_renewal
from meterkit.outbox.intents import intents_of
from meterkit.outbox.invoice_ends import InvoiceEnd, Stamped, keep_invoice_end, too_late
from meterkit.redis.scripts import Script
from meterkit.store.degraded_minutes import DegradedMinutes
from meterkit.store.hold import Used
from meterkit.store.jobs import claim_job, has_ended
from meterkit.store.server_lives import ServerLife, ServerLives
from meterkit.store.settlement import Settlement
from meterkit.store.spool import Spool
from meterkit.store.tasks import TaskLease, Upkeep
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


async def change_state(store: Store, state: CustomerState) -> None:
    """Have ada's state be this one, and known to this process."""
    await States(store).change("ada", lambda _: state)
    await store.check(store.cache.get("ada"), {"requests": Demand(needed=1, taken=0)})


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


async def test_scripts_run_many_times_on_a_server_without_them(store: Store) -> None:
    text = "return KEYS[1]"
    script = Script("unknown", text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    admin = await store.admin()
    found = await admin.run_many(script, [["mk:{0}:a"], ["mk:{0}:b"]])
    assert found == [b"mk:{0}:a", b"mk:{0}:b"]


@pytest.mark.parametrize(("age_ms", "is_late"), [(120_000, False), (120_001, True), (240_000, True)])
async def test_usage_is_late_two_minutes_after_its_invoice_is_final(
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


async def lives_ms(store: Store, key: str) -> int:
    """How long a key still lives."""
    return int(await (await client_of(store)).pttl(key))


async def test_what_is_noted_lives_as_long_as_it_is_asked_for(store: Store) -> None:
    shard = partial(store.keys.shard, 0)
    await keep_invoice_end(store, "ada", NOW_MS, InvoiceEnd(final_ms=NOW_MS))
    closes, close = Closes(store, await store.admin()), Close(shard=0, customer="ada", end_ms=NOW_MS)
    await closes.note(0, {close.member: NOW_MS})
    await closes.tell(close)
    await Upkeep(store).listed({})
    minutes = DegradedMinutes(store.keys, store.admin, store.now_ms)
    minutes.note()
    await minutes.send()
    lives = {
        store.keys.customer("ada").totals: 400,
        shard("closes"): 45,
        shard("unclosed"): 45,
        store.keys.shard(HOOKS_SHARD, "storage"): 7,
        store.keys.shard(HOOKS_SHARD, f"degraded:{NOW_MS // DAY_MS}"): 36,
    }
    for key, days in lives.items():
        assert days * DAY_MS - HOUR_MS < await lives_ms(store, key) <= days * DAY_MS


@pytest.mark.parametrize(
    ("since", "ends"),
    [
        (timedelta(milliseconds=-1), ["2031-06-01"]),
        (timedelta(0), ["2031-06-01", "2031-07-01"]),
        (timedelta(hours=2), ["2031-07-01"]),
    ],
)
async def test_for_two_hours_the_period_before_is_closed_too(
    store: Store, since: timedelta, ends: list[str]
) -> None:
    await change_state(store, CustomerState(stripe_customer="cus_1"))
    view = store.cache.get("ada")
    found = ends_to_close([view], to_ms(datetime(2031, 6, 1, tzinfo=UTC) + since))
    closes = [Close.read(0, member.encode()) for member in sorted(found)]
    assert [f"{from_ms(close.end_ms):%Y-%m-%d}" for close in closes] == ends
    assert {found[close.member] - close.end_ms for close in closes} == {600_000}


async def test_the_period_of_a_subscription_is_the_one_by_the_clock(store: Store) -> None:
    subscription = renewed(NOW_MS - HOUR_MS)
    await change_state(store, CustomerState(stripe_customer="cus_1", subscription=subscription))
    view = store.cache.get("ada")
    found = ends_to_close([view], NOW_MS - 3 * HOUR_MS)
    assert [Close.read(0, member.encode()).end_ms for member in found] == [NOW_MS - HOUR_MS]


async def test_a_subscription_that_is_replaced_closes_its_period(store: Store) -> None:
    known = renewed(NOW_MS - 40 * DAY_MS)
    successor = replace(renewed(NOW_MS - 10 * DAY_MS), id="sub_2", created_ms=NOW_MS - 5)
    await note_renewal(store, "ada", successor, known=known)
    found = await (await client_of(store)).zrange(store.keys.shard(0, "closes"), 0, -1)
    assert found == [f"{NOW_MS - 5}:ada".encode()]


@pytest.mark.parametrize("damaged", [b"{},{}", b'{"value":"6"}', b"[]"])
async def test_an_intent_that_cannot_be_read_leaves_the_others(
    store: Store, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = dict.fromkeys(("period", "value", "time", "first", "attempts", "at"), "6")
    whole = numbers | dict.fromkeys(("state", "customer", "stripe", "meter", "event", "key"), "a")
    texts = [damaged, None, json.dumps(whole).encode()]
    assert intents_of(await store.admin(), 0, ["x", "y", "z"], texts) == [{}, {}, whole]
    assert "intent x of shard 0 cannot be read" in caplog.text


@pytest.mark.parametrize(("hours", "is_noted"), [(1, True), (25, True), (26, False)])
async def test_a_renewal_checks_the_close_before_it_for_26_hours(
    store: Store, hours: int, *, is_noted: bool
) -> None:
    renewed_ms = NOW_MS - hours * HOUR_MS
    subscription = renewed(renewed_ms)
    await note_renewal(store, "ada", subscription, known=subscription)
    found = await (await client_of(store)).zrange(store.keys.shard(0, "closes"), 0, -1)
    assert found == ([f"{renewed_ms}:ada".encode()] if is_noted else [])


async def test_late_units_are_logged_for_each_meter_of_a_new_price(
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


async def test_one_has_a_lease_and_gives_it_back_however_it_ends(store: Store) -> None:
    one, other = (TaskLease(store, store.keys.shard(0, "closing"), lasts_ms=60_000) for _ in range(2))
    with anyio.CancelScope() as scope:
        async with one.held() as is_held:
            assert is_held
            assert await one.take()  # It keeps it.
            async with other.held() as is_had:
                assert not is_had
            assert not await other.take()
            scope.cancel()
            await anyio.sleep(60)
    async with other.held(), one.held(within_s=0.1) as is_held:
        assert not is_held
    assert await one.take()


def test_what_is_kept_of_a_batch_gives_back_what_was_sent() -> None:
    random = Random(0)  # noqa: S311 - repeatable, not secret
    pages = [f"{random.getrandbits(112):028x}" for _ in range(2)]
    nonces = [f"{page}{number:04x}" for page in pages for number in range(20)]
    nonces += [f"{random.getrandbits(128):032x}"]
    sent = [nonce + end for nonce in nonces for end in ("", "r", "-1", "-2", "-10", "-999999", "-1r", "-1rr")]
    random.shuffle(sent)
    assert sorted(intents_in(batch_text(sent))) == sorted(sent)
    assert intents_in(" ".join(sent)) == sent  # As releases before have kept it.
    sealed_together = [f"{pages[0]}{customer:04x}-{meter}" for customer in range(33) for meter in (1, 2, 3)]
    assert len(batch_text(sealed_together)) < 5.5 * len(sealed_together)
