"""A store that may have forgotten what Stripe has: what is told apart, sent, left to a person, and when.

That the store lacks something is Stripe having more than it: an event that it knows nothing of. Servers that
are really killed and restored are in ``tests/promises/test_i6_restored.py``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.delivery import NOW, RENAMED, Desk, desk, have_at_stripe, kit_for
from drivers.restored_store import LAG, begin_anew, come_back, linked, states
from faults.inner_steps import wrapped
from faults.proxy import TcpProxy
from faults.refusals import stats
from meterkit import FlushReport, MeterKit
from meterkit.errors import StoreError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("valkey")]

EVENTS_PATH: Final = "/v1/billing/meter_events"
MINUTE: Final = timedelta(minutes=1)
MAY: Final = NOW - timedelta(days=20)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Desk]:
    async with linked(store_url) as opened:
        yield opened


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


async def life_of(at: Desk) -> dict[bytes, bytes]:
    admin = await at.kit.store.admin()
    found: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(at.kit.store.keys.shard(0, "life")))
    return found


async def compare_after_restart(at: Desk, **fields: Any) -> FlushReport:
    """Begin a new life of the store, and flush when Stripe has counted what it was sent before."""
    await begin_anew(at, **fields)
    await come_back(at)
    return await at.flush(everything=True, timeout_s=0)


@pytest.mark.parametrize("field", ["seen_ms", "noticed_ms", "till_ms"])
async def test_a_damaged_life_is_compared_and_delays_no_other(store_url: str, field: str) -> None:
    async with desk(store_url) as at:
        await at.use("acme", "bolt", requests=5)
        await at.flush(everything=True)
        keys, admin = at.kit.store.keys, await at.kit.store.admin()
        life = keys.shard(keys.customer("acme").shard, "life")
        await admin.ask(admin.client.hset(life, field, "x"))
        for customer in ("acme", "bolt"):
            await at.kit.record(customer, "requests", 3)
        await at.flush(everything=True, timeout_s=0, after=5 * MINUTE)
        assert at.accepted("bolt") == 8
        await at.flush(everything=True, timeout_s=0, after=5 * MINUTE)
        assert at.accepted("acme") == 8
        assert await admin.ask(admin.client.hget(life, field)) != b"x"


async def use_all_minutes(at: Desk) -> None:
    """Seal more intents than there are minutes that may be ahead; Stripe takes none of them."""
    at.emulator.fail_next("error", status=401, times=None, path=EVENTS_PATH)
    for quantity in range(1, 7):
        await at.record_and_flush(quantity, timeout_s=0)


async def test_i6_each_connection_asks_for_the_servers_life(valkey: Server) -> None:
    async with linked(valkey.url) as at:
        await at.flush()
        before = stats(valkey, "info")["calls"]
        for _ in range(20):
            await at.flusher.flush()
        # A reading of the statistics is a call of its own.
        assert stats(valkey, "info")["calls"] == before + 1
        valkey.command("CLIENT", "KILL", "TYPE", "normal")
        with suppress(StoreError):  # The one that meets the end of the connection.
            await at.flusher.flush()
        await at.flusher.flush()
        assert stats(valkey, "info")["calls"] > before + 2


async def test_i6_minutes_tell_apart_what_is_sent(at: Desk) -> None:
    at.emulator.fail_next("error", status=401, times=None, path=EVENTS_PATH)
    for quantity in (5, 5, 7):
        await at.record_and_flush(quantity, timeout_s=0)
        at.clock.advance(MINUTE)
    at.emulator.clear_faults()
    minutes = sorted(intent.minute for intent in await at.kit.outbox.list())
    for minute in minutes[:2]:
        await have_at_stripe(at, 5, minute=minute)
    at.clock.advance(timedelta(minutes=10))
    report = await compare_after_restart(at)
    assert (report.delivered, report.parked, at.accepted("acme")) == (3, 0, 17)


async def test_i6_other_meters_and_periods_hide_nothing(at: Desk) -> None:
    at.clock.set(MAY)
    await at.record_and_flush(100)
    at.clock.set(NOW)
    await at.kit.record("acme", "tokens", 200)
    await at.flush(everything=True)
    await have_at_stripe(at, 6)
    await at.kit.record("acme", "requests", 6)
    await compare_after_restart(at)
    assert (await states(at), at.accepted("acme")) == ([(6, "parked")], 106)


async def test_i6_deliveries_of_each_waiting_period_are_compared(at: Desk) -> None:
    at.clock.set(MAY)
    await at.kit.record("acme", "requests", 20)
    await have_at_stripe(at, 6, minute=MAY)
    at.clock.set(NOW)
    await at.kit.record("acme", "requests", 3)
    await compare_after_restart(at)
    assert (await states(at), at.accepted("acme")) == ([(3, "parked"), (20, "parked")], 6)


@pytest.mark.parametrize(("passed_s", "is_over"), [(299, False), (300, True)])
async def test_i6_a_wait_for_a_minute_delays_5_minutes(at: Desk, passed_s: int, *, is_over: bool) -> None:
    await use_all_minutes(at)
    await begin_anew(at)
    await at.flush(everything=True, timeout_s=0)
    await begin_anew(at, noticed_ms=_ms(NOW) - passed_s * 1_000)
    await at.flush(everything=True, timeout_s=0)
    assert ((await life_of(at))[b"known"] != b"another life") == is_over


@pytest.mark.parametrize("forgotten", [0, 6])
async def test_i6_an_earlier_stripe_customer_hides_nothing(at: Desk, forgotten: int) -> None:
    await at.record_and_flush(50)
    await at.kit.customers.unlink("acme")
    at.emulator.add_customer("cus_other")
    await at.kit.customers.link("acme", "cus_other", force=True)
    at.clock.advance(timedelta(hours=1))
    await at.record_and_flush(20)
    at.clock.advance(timedelta(hours=1))
    if forgotten:
        await have_at_stripe(at, forgotten, customer="cus_other")
    await at.kit.record("acme", "requests", 6)
    report = await compare_after_restart(at)
    assert (report.delivered, report.parked) == ((0, 1) if forgotten else (1, 0))
    assert (at.accepted("acme"), at.accepted("other")) == (50, 26)


@pytest.mark.parametrize(
    ("pending", "fields"),
    [(0, {}), (6, {"noticed": "a third life", "noticed_ms": _ms(NOW - timedelta(hours=1))})],
)
async def test_i6_usage_after_each_restart_waits_for_a_comparison(
    at: Desk, pending: int, fields: dict[str, Any]
) -> None:
    # A page said that it does not wait.
    if pending:
        await at.kit.record("acme", "requests", pending)
    await begin_anew(at, **fields)
    await come_back(at, LAG - timedelta(seconds=1))
    assert (await at.record_and_flush(7, timeout_s=0)).delivered == 0
    await at.flush(everything=True, after=timedelta(seconds=1))
    assert at.accepted("acme") == 7 + pending


async def test_i6_tried_units_are_counted_before_a_comparison(at: Desk) -> None:
    await at.kit.record("acme", "requests", 6)
    at.emulator.fail_next("error", status=500, when="after", path=EVENTS_PATH)
    await at.flush(everything=True, timeout_s=0)
    at.clock.advance(timedelta(hours=1))
    await at.kit.record("acme", "requests", 7)
    await begin_anew(at)
    at.emulator.fail_next("error", status=503, times=None, path=EVENTS_PATH)
    await come_back(at, 10 * MINUTE)
    await at.flush(everything=True, timeout_s=0)
    at.emulator.clear_faults()
    at.clock.advance(10 * MINUTE)
    for _ in range(2):
        await at.flush(everything=True, timeout_s=0)
    assert (await states(at), at.accepted("acme")) == ([], 13)


async def test_i6_tried_units_delay_others_an_hour_at_most(store_url: str) -> None:
    async with linked(store_url, "acme", "zeta") as at:
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("drop", when="before", path=EVENTS_PATH)
        await at.flush(everything=True, timeout_s=0)
        await at.kit.record("zeta", "tokens", 107)
        await begin_anew(at)
        await have_at_stripe(at, 4)
        at.emulator.fail_next("error", status=503, times=None, path=EVENTS_PATH)
        await come_back(at, timedelta(hours=1))
        await at.flush(everything=True, timeout_s=0)
        assert (await life_of(at))[b"noticed"] == b""
        # What Stripe counts once by its identifier is left as it is.
        assert await states(at) == [(6, "queued"), (7, "queued")]


@pytest.mark.parametrize(("status", "state"), [(404, "parked"), (403, "queued"), (500, "queued")])
async def test_i6_an_unanswered_comparison_waits_or_is_parked(
    at: Desk, caplog: pytest.LogCaptureFixture, status: int, state: str
) -> None:
    await at.kit.record("acme", "requests", 6)
    await begin_anew(at)
    await come_back(at)
    # Which meters there are is asked first.
    at.emulator.fail_next("error", status=status, times=None, skip=1, path="*")
    await at.flush(everything=True, timeout_s=0)
    assert (await states(at), at.accepted("acme")) == ([(6, state)], 0)
    assert caplog.text.count("the store has started since the last delivery") == 1
    assert ("is parked: the store was restarted" in caplog.text) == (state == "parked")


async def test_i6_losing_the_store_while_comparing_sends_nothing(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TcpProxy(valkey.port) as proxy, linked(proxy.url) as at:
        await have_at_stripe(at, 6)
        await at.kit.record("acme", "requests", 6)
        await begin_anew(at)
        await come_back(at)

        def and_the_store_goes(counted: Any) -> Any:
            async def counting(*what: Any) -> Any:
                try:
                    return await counted(*what)
                finally:
                    await proxy.set("cut")

            return counting

        def once_it_is_back(confirm: Any) -> Any:
            async def confirming(*what: Any) -> None:
                await proxy.set("pass")
                await confirm(*what)

            return confirming

        wrapped(monkeypatch, "summaries are counted", and_the_store_goes)
        wrapped(monkeypatch, "a restart is confirmed", once_it_is_back)
        with pytest.raises(StoreError):
            await at.flush(everything=True, timeout_s=0)
        monkeypatch.undo()
        await proxy.set("pass")
        # The lease could not be given back; the server goes by a clock of its own.
        valkey.command("DEL", at.kit.store.keys.shard(0, "lease"))
        await at.flush(everything=True, timeout_s=0)
        assert (await states(at), at.accepted("acme")) == ([(6, "parked")], 6)


@pytest.mark.parametrize("damaged", ["history", "totals"])
async def test_i6_what_is_damaged_of_one_customer_holds_up_no_other(store_url: str, damaged: str) -> None:
    async with linked(store_url, "acme", "zeta") as at:
        await at.record_and_flush(3)
        at.clock.advance(MINUTE)
        for customer in ("acme", "zeta"):
            await at.kit.record(customer, "requests", 6)
        await begin_anew(at)
        await come_back(at)
        await have_at_stripe(at, 6)
        admin, keys = await at.kit.store.admin(), at.kit.store.keys.customer("acme")
        if damaged == "history":
            await admin.ask(admin.client.rpush(keys.history, "no entry"))
        else:
            for field in await admin.ask(admin.client.hkeys(keys.totals)):
                await admin.ask(admin.client.hset(keys.totals, field, "x"))
        at.clock.advance(LAG)
        for _ in range(2):
            await at.flush(everything=True, timeout_s=0)
        assert (at.accepted("acme"), at.accepted("zeta")) == (9, 6)
        if damaged == "history":
            assert await states(at) == [(6, "parked")]


async def correct_at_stripe(at: Desk, quantity: int, minute: datetime) -> None:
    """Deliver units and take them back, both unknown to the store."""
    await have_at_stripe(at, quantity, minute=minute)
    await have_at_stripe(at, -quantity, minute=minute + MINUTE)


async def test_i6_one_unit_the_store_lacks_is_enough(at: Desk) -> None:
    await correct_at_stripe(at, 30, NOW - 30 * MINUTE)  # Known before this life, as far as that goes.
    await at.kit.record("acme", "requests", 6)
    asked = len(at.emulator.requests)
    assert (await compare_after_restart(at)).delivered == 1
    assert len(at.emulator.requests) - asked < 20  # Of the minutes since then only.
    await have_at_stripe(at, 1)
    await at.kit.record("acme", "requests", 5)
    assert (await compare_after_restart(at)).parked == 1
    assert (await states(at), at.accepted("acme")) == ([(5, "parked")], 7)


async def test_i6_corrected_units_do_not_count_as_delivered(at: Desk) -> None:
    await at.record_and_flush(50)
    await at.kit.correct("acme", {"requests": 40}, reason="counted twice", correction_id="one")
    await at.flush(everything=True, after=MINUTE)
    assert at.accepted("acme") == 10
    at.clock.advance(timedelta(hours=1))
    await at.kit.record("acme", "requests", 6)
    assert (await compare_after_restart(at)).delivered == 1
    await have_at_stripe(at, 4)
    await at.kit.record("acme", "requests", 5)
    await compare_after_restart(at)
    assert (await states(at), at.accepted("acme")) == ([(5, "parked")], 20)


async def test_i6_what_waits_for_a_free_minute_is_compared_too(at: Desk) -> None:
    await use_all_minutes(at)
    at.emulator.clear_faults()
    await have_at_stripe(at, 100)
    await begin_anew(at)
    await at.flush(everything=True, timeout_s=0)
    await begin_anew(at, noticed_ms=_ms(NOW - LAG))
    await at.flush_times(3, every=MINUTE)
    assert {state for _, state in await states(at)} == {"parked"}
    assert (sum(quantity for quantity, _ in await states(at)), at.accepted("acme")) == (21, 100)


@pytest.fixture
async def renamed(at: Desk) -> AsyncGenerator[MeterKit]:
    """A kit of the plans file in which requests are called calls."""
    async with kit_for(at.store_url, at.url, clock=at.clock, catalog=RENAMED, shards=1) as kit:
        yield kit


async def test_i6_deliveries_under_a_meters_old_name_are_not_forgotten(at: Desk, renamed: MeterKit) -> None:
    await at.record_and_flush(50)
    at.clock.advance(timedelta(hours=1))
    await renamed.record("acme", "calls", 6)
    await begin_anew(at)
    async with renamed.flusher() as flusher:
        await flusher.flush(everything=True, timeout_s=0)
        at.clock.advance(LAG)
        report = await flusher.flush(everything=True, timeout_s=0)
    assert (report.delivered, report.parked, at.accepted("acme")) == (1, 0, 56)


@pytest.mark.parametrize("quantity", [6, 4], ids=["former", "present"])
async def test_i6_minutes_tell_both_names_apart(at: Desk, renamed: MeterKit, quantity: int) -> None:
    at.emulator.fail_next("error", status=401, times=None, path=EVENTS_PATH)
    await at.kit.record("acme", "requests", 6)
    await renamed.record("acme", "calls", 4)
    await at.flush(everything=True, timeout_s=0)
    at.emulator.clear_faults()
    (minute,) = [one.minute for one in await at.kit.outbox.list() if one.quantity == quantity]
    await have_at_stripe(at, quantity, minute=minute)
    at.clock.advance(timedelta(minutes=10))
    report = await compare_after_restart(at)
    assert (report.delivered, report.parked, at.accepted("acme")) == (2, 0, 10)


@pytest.mark.parametrize("is_known", [False, True])
async def test_i6_minutes_ahead_are_asked_for_if_one_is_in_use(at: Desk, is_known: bool) -> None:
    # An intent of the last minute of the gap waits, or is at Stripe.
    here = at.clock.now()
    await at.kit.record("acme", "requests", 6)
    if is_known:
        at.emulator.fail_next("error", status=401, times=None, path=EVENTS_PATH)
        await at.flush(everything=True, timeout_s=0)
        at.emulator.clear_faults()
    else:
        await have_at_stripe(at, 5, minute=here)
        await have_at_stripe(at, -5, minute=here + 3 * MINUTE)
    await have_at_stripe(at, 30, minute=here + MINUTE)
    await have_at_stripe(at, -30, minute=here + 2 * MINUTE)
    at.clock.advance(timedelta(seconds=20))
    await begin_anew(at, seen_ms=_ms(NOW))
    await come_back(at, 10 * MINUTE)
    assert (await at.flush(everything=True, timeout_s=0)).parked == 1


@pytest.mark.parametrize(("away", "known"), [(timedelta(minutes=9), True), (timedelta(hours=2), False)])
async def test_i6_deliveries_and_corrections_do_not_cancel(at: Desk, away: timedelta, known: bool) -> None:
    # F-120: 130 for 100, as the sum of what Stripe has was what the store knew of.
    await at.record_and_flush(100)
    await at.flush(after=5 * MINUTE)  # It notes when it delivers: what a backup of now forgets came later.
    await at.kit.record("acme", "requests", 30)
    at.clock.advance(away)
    await correct_at_stripe(at, 30, at.clock.now() - 4 * MINUTE)
    assert (await compare_after_restart(at, **({} if known else {"seen_ms": 0}))).parked == 1
    assert (await states(at), at.accepted("acme")) == ([(30, "parked")], 100)


async def test_i6_a_restart_asks_three_times_for_a_line_that_waits(store_url: str) -> None:
    customers = [f"customer{number}" for number in range(12)]
    async with linked(store_url, *customers) as at:
        await at.flush(after=10 * MINUTE)  # It notes when it delivers.
        for customer in customers:
            await at.kit.record(customer, "requests", 6)
        at.clock.advance(timedelta(seconds=20))
        await begin_anew(at)
        await come_back(at)
        asked = len(at.emulator.requests)
        assert (await at.flush(everything=True, timeout_s=0)).delivered == len(customers)
        summaries = [one for one in at.emulator.requests[asked:] if one.path.endswith("/event_summaries")]
        # For the period, and for the minutes between which it may have forgotten something.
        assert len(summaries) == 3 * len(customers)


async def test_i6_usage_after_a_restore_is_apart_from_pending_usage(at: Desk) -> None:
    # F-123: one intent had both, and neither `drop` nor `redrive` was right.
    await have_at_stripe(at, 50)
    await at.kit.record("acme", "requests", 6)
    await begin_anew(at)
    assert (await at.flush()).sealed == 1  # Long before it is due.
    await at.record_and_flush(7, timeout_s=0, after=LAG)
    await at.flush(everything=True)
    assert (await states(at), at.accepted("acme")) == ([(6, "parked")], 57)


async def test_i6_short_lived_embedded_servers_deliver_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, url = Clock(NOW), f"embedded://{tmp_path}/store"
    async with desk(url, clock=clock) as at:
        await at.use("acme", requests=5)
        await at.flush(everything=True)
        await at.kit.record("acme", "requests", 2)
        assert at.accepted("acme") == 5
        async with at.emulator.serve() as stripe:
            await at.kit.stop()
            for stays in (False, False, True):
                clock.advance(LAG)
                async with kit_for(url, stripe, clock=clock) as kit:
                    await kit.flush()
                    if stays:
                        clock.advance(LAG)
                    await kit.flush()
                assert at.accepted("acme") == (7 if stays else 5)
            await at.kit.start()
    # An embedded server starts with its app: its restart is no warning.
    assert "has started since" not in caplog.text


async def test_i6_a_restores_parked_units_are_redriven_if_unknown(at: Desk) -> None:
    # F-121: 160 for 130.
    await at.kit.record("acme", "requests", 6)
    await have_at_stripe(at, 6)
    await compare_after_restart(at)
    (parked,) = await at.kit.outbox.list()
    assert (parked.restored, parked.compared_at) == (True, None)
    redriven = await at.kit.outbox.redrive(parked.identifier, reason="the runbook says so")
    assert (redriven.state, redriven.restored, redriven.compared_at is None) == ("parked", True, False)
    await at.flush(everything=True, timeout_s=0)
    (parked,) = await at.kit.outbox.list()
    assert (parked.state, parked.compared_at, at.accepted("acme")) == ("parked", None, 6)
    assert "Stripe has 6 units of api_requests more" in parked.why
    assert f"parked: {parked.why}" in [one.after for one in await at.kit.customers.history("acme")]
    # Once the store knows what Stripe has, as after a rebuild, it is sent.
    admin, keys = await at.kit.store.admin(), at.kit.store.keys
    period = next(name for name in await at.totals("acme") if name.endswith("k"))
    await admin.ask(admin.client.hincrby(keys.customer("acme").totals, f"{period[:-1]}d", 6))
    delivered = keys.delivered(0, at.kit.store.now_ms())
    minute_s = (_ms(NOW) // 60_000 - 60) * 60
    line = json.dumps(["acme", "cus_acme", "api_requests", str(minute_s), "6"])
    await admin.ask(admin.client.hset(delivered, "known-1", line))
    await at.kit.outbox.redrive(parked.identifier)
    await at.flush(everything=True, timeout_s=0)
    assert (await states(at), at.accepted("acme")) == ([], 12)


@pytest.mark.parametrize("is_restored", [False, True])
async def test_i6_a_link_after_a_restore_is_compared_first(at: Desk, is_restored: bool) -> None:
    # The backup is older than the link: what that has delivered waits for one once more.
    at.emulator.add_customer("cus_zeta")
    await at.kit.record("zeta", "requests", 6)
    await have_at_stripe(at, 8, minute=NOW - MINUTE, customer="cus_zeta")
    if is_restored:
        await begin_anew(at)
    await at.record_and_flush(1, timeout_s=0)
    await at.flush(everything=True, timeout_s=0, after=LAG)
    at.clock.advance(timedelta(hours=1))
    await at.kit.customers.link("zeta", "cus_zeta", force=True)
    await at.flush(everything=True, timeout_s=0)
    await at.flush(everything=True, timeout_s=0, after=LAG)
    assert await states(at) == ([(6, "parked")] if is_restored else [])
    assert (at.accepted("acme"), at.accepted("zeta")) == (1, 8 if is_restored else 14)
