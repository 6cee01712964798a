"""What single functions write to the store and read from it."""

# Internals: single functions that no other test tells apart: python mutants need them.

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import pytest

from drivers.delivery import sealed
from drivers.plans import completed
from drivers.subscribed_customer import kit_of, subscription
from meterkit import MeterKit, QuantityError
from meterkit.catalog import loads, override
from meterkit.customers.drift_records import Drift, DriftRecords
from meterkit.customers.late_usage_on_price_change import PriceSwitch, hold_usage, mark_usage_late
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import overrides_at, with_overrides
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.periods import to_ms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.outbox.close_queue import (
    CloseQueue,
    InvoiceEnd,
    PeriodClose,
    ends_to_close,
    find_too_late,
    note_renewal,
    store_invoice_end,
)
from meterkit.outbox.intents import pack_batch, parse_intents, unpack_batch
from meterkit.redis.scripts import Script
from meterkit.store.daily_counts import DegradedMinutes
from meterkit.store.provider_jobs import claim_job, has_ended
from meterkit.store.server_restarts import ServerLife, ServerLives
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import UsedQuantities
from meterkit.store.settlement_spool import EventLoopSpool
from meterkit.store.store import Store
from meterkit.store.task_lease import StorageUpkeep, TaskLease
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
NOW: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
NOW_MS: Final = to_ms(NOW)
PLANS: Final = completed("""
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens:   {unit: token, stripe: {event_name: tokens}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 0, overage: {bill: {per: 1, amount_cents: 2}}}
      tokens:   {included: 0, overage: {bill: {per: 1, amount_cents: 3}}}
""")


@pytest.fixture
async def kit() -> AsyncGenerator[MeterKit]:
    async with kit_of("memory://", Clock(NOW), PLANS, shards=1) as kit:
        yield kit


@pytest.fixture
def store(kit: MeterKit) -> Store:
    return kit.store


async def client_of(store: Store) -> Any:
    return (await store.admin()).client


async def noted(store: Store) -> list[bytes]:
    """Closes that wait for their hour."""
    found: list[bytes] = await (await client_of(store)).zrange(store.keys.shard(0, "closes"), 0, -1)
    return found


async def change_state(store: Store, state: CustomerState) -> None:
    """Have ada's state be this one, and known to this process."""
    await CustomerStates(store).change("ada", lambda _: state)
    await store.check(store.cache.get("ada"), {"requests": Demand(needed=1, taken=0)})


def renewed(start_ms: int) -> SubscriptionState:
    """A subscription that was renewed at an instant, and made a period before."""
    times = {"start_ms": start_ms, "end_ms": start_ms + 30 * DAY_MS, "anchor_ms": start_ms}
    return subscription(plan="free", created_ms=start_ms - 31 * DAY_MS, **times)


async def test_a_nightly_look_replaces_what_was_found_before(store: Store) -> None:
    drifts = DriftRecords(store)
    first, second = (Drift(subscription=name, kind="seats", message="4 for 5") for name in ("sub_1", "sub_2"))
    assert await drifts.put("ada", [first]) == [first]
    await drifts.replace({"bob": [second]})
    assert (await drifts.put("bob", [second]), await drifts.put("ada", [first])) == ([], [first])


@pytest.mark.parametrize(("till_ms", "forgot"), [(0, b"5-7"), (6, b"5-6")])
async def test_a_compared_restart_is_kept_with_its_span(store: Store, till_ms: int, forgot: bytes) -> None:
    life = ServerLife(now="b", known="a", noticed="b", noticed_ms=7, seen_ms=5, till_ms=till_ms)
    await ServerLives(store).confirm(0, life)
    assert await (await client_of(store)).hget(store.keys.shard(0, "life"), "forgot") == forgot


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


@pytest.mark.parametrize(("age_ms", "is_late"), [(120_000, False), (121_000, True), (240_000, True)])
async def test_usage_is_late_2_minutes_after_its_invoice(store: Store, age_ms: int, *, is_late: bool) -> None:
    subscribed = renewed(NOW_MS - 60_000)
    state = CustomerState(stripe_customer="cus_1", subscription=subscribed)
    keys, client = store.keys.customer("ada"), await client_of(store)
    await client.hset(keys.state, mapping={"rev": "2:1", "data": state.dump()})
    period_ms = subscribed.created_ms or 0
    await store_invoice_end(store, "ada", period_ms, InvoiceEnd(final_ms=NOW_MS - 1))
    of = {"customer": "ada", "stripe_customer": "cus_1", "period": str(period_ms)}
    intent = sealed("one", 1, (NOW_MS - age_ms) // 1000, **of)
    assert await find_too_late(store, keys.shard, [intent]) == ({"one"} if is_late else set())


@pytest.mark.parametrize(("age_ms", "is_late"), [(180_000, False), (181_000, True)])
async def test_the_next_invoice_has_what_its_renewals_instant_has(
    store: Store, age_ms: int, *, is_late: bool
) -> None:
    subscribed = renewed(NOW_MS - 180_000)
    keys, client = store.keys.customer("ada"), await client_of(store)
    state = CustomerState(stripe_customer="cus_1", subscription=subscribed)
    await client.hset(keys.state, mapping={"rev": "2:1", "data": state.dump()})
    period_ms = subscribed.created_ms
    await store_invoice_end(store, "ada", period_ms, InvoiceEnd(final_ms=NOW_MS - 1))
    await client.hset(keys.totals, f"{period_ms}|e", "1")
    of = {"customer": "ada", "stripe_customer": "cus_1", "period": str(period_ms)}
    intent = sealed("one", 1, (NOW_MS - age_ms) // 1000, **of)
    assert await find_too_late(store, keys.shard, [intent]) == ({"one"} if is_late else set())


async def test_what_is_noted_lives_as_long_as_it_is_asked_for(store: Store) -> None:
    shard = partial(store.keys.shard, 0)
    await store_invoice_end(store, "ada", NOW_MS, InvoiceEnd(final_ms=NOW_MS))
    await hold_usage(store, "bob", till_ms=NOW_MS + 90_000)
    closes, close = (
        CloseQueue(store, await store.admin()),
        PeriodClose(shard=0, customer="ada", end_ms=NOW_MS),
    )
    await closes.note(0, {close.member: NOW_MS})
    await closes.mark_unconfirmed(close)
    await StorageUpkeep(store).record_listing({})
    minutes = DegradedMinutes(store.keys, store.admin, store.now_ms)
    minutes.note()
    await minutes.send()
    lives = {
        store.keys.customer("ada").totals: 400,
        store.keys.customer("bob").totals: 400,
        shard("closes"): 45,
        shard("unclosed"): 45,
        store.keys.shard(HOOKS_SHARD, "storage"): 7,
        store.keys.shard(HOOKS_SHARD, f"degraded:{NOW_MS // DAY_MS}"): 36,
    }
    client = await client_of(store)
    for key, days in lives.items():
        assert days * DAY_MS - HOUR_MS < await client.pttl(key) <= days * DAY_MS


async def ends_of(store: Store, subscribed: SubscriptionState | None, at_ms: int) -> list[int]:
    """When the periods end that are to be closed at an instant, each ten minutes later."""
    await change_state(store, CustomerState(stripe_customer="cus_1", subscription=subscribed))
    found = ends_to_close([store.cache.get("ada")], at_ms)
    ends = {member: PeriodClose.read(0, member.encode()).end_ms for member in found}
    assert found == {member: end_ms + 600_000 for member, end_ms in ends.items()}
    return sorted(ends.values())


@pytest.mark.parametrize(("since_ms", "months"), [(-1, [6]), (0, [6, 7]), (2 * HOUR_MS, [7])])
async def test_for_two_hours_the_period_before_closes(store: Store, since_ms: int, months: list[int]) -> None:
    ends = [to_ms(datetime(2031, month, 1, tzinfo=UTC)) for month in months]
    assert await ends_of(store, None, to_ms(datetime(2031, 6, 1, tzinfo=UTC)) + since_ms) == ends
    # That of a subscription is the one by the clock.
    begun_ms = NOW_MS - HOUR_MS
    assert await ends_of(store, renewed(begun_ms), NOW_MS - 3 * HOUR_MS) == [begun_ms]


async def test_a_subscription_that_is_replaced_closes_its_period(store: Store) -> None:
    known = renewed(NOW_MS - 40 * DAY_MS)
    successor = replace(renewed(NOW_MS - 10 * DAY_MS), id="sub_2", created_ms=NOW_MS - 5)
    await note_renewal(store, "ada", CustomerState(subscription=successor), known=known)
    assert await noted(store) == [f"{NOW_MS - 5}:ada".encode()]


@pytest.mark.parametrize("damaged", [b"{},{}", b'{"value":"6"}', b"[]"])
async def test_an_intent_that_cannot_be_read_leaves_the_others(
    store: Store, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = dict.fromkeys(("period", "value", "time", "first", "attempts", "at"), "6")
    whole = numbers | dict.fromkeys(("state", "customer", "stripe", "meter", "event", "key"), "a")
    texts = [damaged, None, json.dumps(whole).encode()]
    assert parse_intents(await store.admin(), 0, ["x", "y", "z"], texts) == [{}, {}, whole]
    assert "intent x of shard 0 cannot be read" in caplog.text


@pytest.mark.parametrize(("hours", "is_noted"), [(1, True), (25, True), (26, False)])
async def test_a_renewal_checks_its_close_for_26_hours(store: Store, hours: int, *, is_noted: bool) -> None:
    renewed_ms = NOW_MS - hours * HOUR_MS
    subscribed = renewed(renewed_ms)
    await note_renewal(store, "ada", CustomerState(subscription=subscribed), known=subscribed)
    assert await noted(store) == ([f"{renewed_ms}:ada".encode()] if is_noted else [])


async def test_late_units_are_logged_for_each_meter(kit: MeterKit, caplog: pytest.LogCaptureFixture) -> None:
    await kit.customers.link("ada", "cus_1")
    await kit.customers.set_plan("ada", "pro")
    await kit.record("ada", {"requests": 5, "tokens": 7})
    state = CustomerState(stripe_customer="cus_1", plan="pro")
    switch = PriceSwitch(rev="2:1", events={"requests", "tokens"}, changed_ms=NOW_MS, cause="test")
    await mark_usage_late(kit.store, "ada", state, state, switch)
    late = {message.partition(" that customer")[0] for message in caplog.messages if "are late" in message}
    assert late == {"5 units of requests", "7 units of tokens"}


async def test_what_is_spooled_is_sent_once_the_store_is_there(store: Store, tmp_path: Path) -> None:
    told: dict[str, Any] = {"keys": store.keys, "store": "memory://", "now_ms": store.now_ms}
    spool = EventLoopSpool(tmp_path / "spools", lane=await store.lane(), cache=lambda: store.cache, **told)
    assert (spool.lost, spool.kept) == (0, 0)
    used = Settlement(store.cache.get("ada"), used=UsedQuantities.of({"requests": 5}))
    spool.keep(0, [(used, None)])
    assert spool.kept == 1
    await spool.send_all(within_s=60)
    assert (await spool.close(), spool.lost, spool.kept) == ([], 0, 0)
    assert (await store.usage("ada"))["meters"]["requests"]["used"] == 5


async def test_a_settlement_beyond_what_can_be_counted_is_refused(store: Store) -> None:
    view, most = store.cache.get("ada"), 10**15 - 1
    for _ in range(9):
        await store.record(view, UsedQuantities.of({"requests": most}), event_id=None)
    with pytest.raises(QuantityError, match="total would pass"):
        await store.record(view, UsedQuantities.of({"requests": most}), event_id=None)
    assert (await store.usage("ada"))["meters"]["requests"]["used"] == 9 * most


async def test_one_has_a_lease_and_gives_it_back_however_it_ends(store: Store) -> None:
    one, other = (TaskLease(store, store.keys.shard(0, "closing"), lasts_ms=60_000) for _ in range(2))
    assert await one.left_s() == 1  # No process has it.
    with anyio.CancelScope() as scope:
        async with one.held() as is_held:
            assert is_held
            assert 50 < await one.left_s() <= 60
            assert await one.acquire()  # It keeps it.
            async with other.held() as is_had:
                assert not is_had
            assert not await other.acquire()
            scope.cancel()
            await anyio.sleep(60)
    async with other.held(), one.held(within_s=0.1) as is_held:
        assert not is_held
    assert await one.acquire()


def test_what_is_kept_of_a_batch_gives_back_what_was_sent() -> None:
    random = Random(0)  # noqa: S311 - repeatable, not secret
    pages = [f"{random.getrandbits(112):028x}" for _ in range(2)]
    nonces = [f"{page}{number:04x}" for page in pages for number in range(20)]
    nonces += [f"{random.getrandbits(128):032x}"]
    sent = [nonce + end for nonce in nonces for end in ("", "r", "-1", "-2", "-10", "-999999", "-1r", "-1rr")]
    random.shuffle(sent)
    assert sorted(unpack_batch(pack_batch(sent))) == sorted(sent)
    sealed_together = [f"{pages[0]}{customer:04x}-{meter}" for customer in range(33) for meter in (1, 2, 3)]
    assert len(pack_batch(sealed_together)) < 5.5 * len(sealed_together)


def test_i12_an_older_release_keeps_an_override_it_cannot_read() -> None:
    """An older one lays over what it can read: an override with an end, or of features, it cannot."""
    catalog = loads(PLANS)
    plan, until_ms = catalog.plans["free"], NOW_MS + 3 * DAY_MS
    stored = with_overrides(
        {"tokens": {"included": 60}},
        {"requests": {"included": 50}},
        {"full": True},
        until_ms=until_ms,
        now_ms=NOW_MS,
    )
    assert override(catalog, plan, stored) == override(catalog, plan, {"tokens": {"included": 60}})
    kept = json.loads(json.dumps(stored))
    assert overrides_at(kept, NOW_MS) == overrides_at(stored, NOW_MS)
    assert overrides_at(kept, until_ms).features == {}
    assert overrides_at(kept, NOW_MS).ends == {"requests": until_ms, "feature full": until_ms}


async def test_calls_without_a_price_are_told_apart_by_100_names(store: Store) -> None:
    for number in range(102):
        for _ in range(2):
            store.unpriced.note(f"model-{number}", 1)
    found = await store.unpriced.read()
    assert (len(found), found["model-99"], found["other"]) == (101, 2, 4)
    assert store.unpriced.has_noted
