"""The close of each period: confirmed in silence, or told once and in time to do something about it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from drivers.delivery import NOW, Caplog, Desk, api_of, desk, have_at_stripe, until
from drivers.health_findings import findings
from drivers.period_ends import AFTER_JUNE, Closing, closing_of
from drivers.store_keys import meter_token

pytestmark = pytest.mark.anyio

MINUTE: Final = timedelta(minutes=1)
EVENTS: Final = "/v1/billing/meter_events"


@pytest.fixture
async def closing(at: Desk) -> AsyncGenerator[Closing]:
    async with closing_of(at) as opened:
        yield opened


def errors(caplog: Caplog) -> list[str]:
    found = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    return [message for message in found if "not confirmed" in message]


async def test_a_close_that_stripe_confirms_is_silent(at: Desk, closing: Closing, caplog: Caplog) -> None:
    await at.use("acme", "zeta", requests=7)
    await at.flush(everything=True)
    assert await closing.closer.confirm_due() == (0, 0, [])
    at.clock.set(AFTER_JUNE - MINUTE)
    await at.kit.record("acme", "requests", 5)
    at.clock.set(AFTER_JUNE + 2 * MINUTE)
    await at.record_and_flush(1)
    assert [await closing.at(minutes) for minutes in (9, 11, 60)] == [(0, 0, 0), (2, 0, 0), (0, 0, 0)]
    assert await closing.unconfirmed() == (0, 0)
    # July is closed in its turn.
    at.clock.set(datetime(2031, 8, 1, 0, 11, tzinfo=UTC))
    assert ((await closing.closer.confirm_due()).confirmed, errors(caplog)) == (1, [])


async def test_a_close_waits_for_what_adds_up_to_nothing_too(
    at: Desk, closing: Closing, caplog: Caplog
) -> None:
    await at.use("acme", requests=7)
    await at.flush(everything=True)
    at.emulator.fail_next("error", status=500, times=None, path=EVENTS)
    at.clock.set(AFTER_JUNE - 2 * MINUTE)
    await at.kit.correct("acme", {"requests": 7}, reason="a loop", correction_id="c-1")
    await at.kit.record("acme", "requests", 7)
    assert not await at.deliver("acme", timeout_s=0)
    assert "14 units that customer 'acme' has used are not delivered" in caplog.text
    assert await closing.at(46) == (0, 0, 1)
    assert "14 of requests are not delivered (0 wait, 0 parked, less 7 that take" in caplog.text
    at.emulator.clear_faults()
    await at.flush(everything=True)
    assert await closing.at(107) == (1, 0, 0)


@pytest.mark.usefixtures("valkey")
async def test_units_stripe_did_not_count_are_reported_once(
    at: Desk, closing: Closing, caplog: Caplog
) -> None:
    caplog.set_level(logging.INFO, "meterkit.delivery")
    await at.use("acme", requests=7)
    at.emulator.fail_next("lose")
    await at.flush(everything=True)
    # It is not asked again each minute.
    assert [await closing.at(minutes) for minutes in (11, 12, 30)] == [(0, 1, 0), (0, 0, 0), (0, 1, 0)]
    assert (errors(caplog), await closing.at(46)) == ([], (0, 0, 1))
    (line,) = errors(caplog)
    assert line.startswith(
        "the close of 1 billing period is not confirmed 45 minutes after the period's end, and Stripe makes"
        " an invoice final after an hour: customer 'acme', until 2031-07-01 00:00 UTC: requests:"
        " Stripe has counted 7 less than it accepted"
    )
    assert (await closing.unconfirmed(), await closing.at(107)) == ((1, 46 * 60), (0, 1, 0))
    assert len(errors(caplog)) == 1
    (finding,) = await findings(at.kit, "closes")
    assert "customer acme, until 2031-07-01 00:00 UTC" in finding.problem
    assert "meterkit reconcile CUSTOMER --period" in finding.cure
    # What Stripe lacked comes there by hand.
    await have_at_stripe(at, 7, minute=AFTER_JUNE - timedelta(hours=1))
    assert (await closing.at(170), await closing.unconfirmed()) == ((1, 0, 0), (0, 0))
    assert "until 2031-07-01 00:00:00+00:00 is confirmed now" in caplog.text


async def test_usage_that_misses_its_invoice_is_reported(at: Desk, closing: Closing, caplog: Caplog) -> None:
    at.clock.set(AFTER_JUNE - 30 * MINUTE)
    await at.use(*(f"c{number}" for number in range(7)), requests=7)
    at.emulator.fail_next("error", status=500, times=None, path=EVENTS)
    await at.flush(everything=True, timeout_s=0)
    assert await closing.at(46) == (0, 0, 7)
    (line,) = errors(caplog)
    assert line.startswith("the closes of 7 billing periods are not confirmed")
    assert "7 of requests are not delivered (7 wait, 0 parked)" in line
    assert "and 2 more. `meterkit reconcile" in line
    at.emulator.clear_faults()
    await at.flush(everything=True)
    assert (await closing.at(107), at.accepted("c0")) == ((7, 0, 0), 7)


async def test_a_refused_comparison_is_reported_and_closed_later(
    at: Desk, closing: Closing, caplog: Caplog
) -> None:
    await at.use("acme", "zeta", requests=7)
    await at.flush(everything=True)
    at.emulator.fail_next("error", status=401, times=None, path="/v1/billing/meters")
    assert (await closing.at(11), errors(caplog), await closing.at(47)) == ((0, 2, 0), [], (0, 0, 2))
    (line,) = errors(caplog)
    assert "Stripe does not say what it has counted: " in line
    at.emulator.clear_faults()
    assert await closing.at(110) == (2, 0, 0)


@pytest.mark.parametrize("status", [402, 503])
async def test_a_customer_stripe_fails_for_delays_no_other_close(
    at: Desk, closing: Closing, status: int
) -> None:
    # F-229: the first customer whose summaries Stripe did not show left all others of the pass unconfirmed.
    await at.use("acme", "zeta", "beta", requests=7)
    await at.flush(everything=True)
    async with api_of(at.kit) as api:
        meters = await api.list("/v1/billing/meters")
    (meter,) = (one["id"] for one in meters if one["event_name"] == "api_requests")
    at.emulator.fail_next("error", status=status, path=f"/v1/billing/meters/{meter}/event_summaries")
    assert [await closing.at(minutes) for minutes in (11, 17)] == [(2, 1, 0), (1, 0, 0)]


async def test_a_moved_close_is_looked_at_when_the_period_is_over(at: Desk, closing: Closing) -> None:
    """The usage was sealed while the period was to end on the 20th, and nothing is sealed after that."""
    await at.use("acme", requests=7)
    await at.flush(everything=True)
    keys, admin = at.kit.store.keys, await at.kit.store.admin()
    key = keys.shard(keys.customer("acme").shard, "closes")
    early, july = (int(at.timestamp() * 1000) for at in (datetime(2031, 6, 20, tzinfo=UTC), AFTER_JUNE))
    await admin.ask(admin.client.zrem(key, f"{july}:acme"))
    await admin.ask(admin.client.zadd(key, {f"{early}:acme": early + 600_000}))
    at.clock.set(datetime(2031, 6, 20, 0, 11, tzinfo=UTC))
    await closing.closer.confirm_due()
    assert await admin.ask(admin.client.zrange(key, 0, -1)) == [f"{july}:acme".encode()]
    assert [await closing.at(minutes) for minutes in (9, 11)] == [(0, 0, 0), (1, 0, 0)]


async def test_what_cannot_be_noted_holds_up_no_delivery(at: Desk, caplog: Caplog) -> None:
    keys, admin = at.kit.store.keys, await at.kit.store.admin()
    odd = keys.shard(keys.customer("acme").shard, "closes")
    await admin.ask(admin.client.set(odd, "of another program", px=600_000))
    await at.use("acme", requests=7)
    assert (await at.flush(everything=True)).is_complete
    assert at.accepted("acme") == 7
    assert "ends of billing periods cannot be stored, and are not confirmed: " in caplog.text


async def test_damaged_books_do_not_delay_other_closes(at: Desk, closing: Closing, caplog: Caplog) -> None:
    await at.use("acme", "zeta", "beta", requests=7)
    await at.flush(everything=True)
    keys, admin = at.kit.store.keys, await at.kit.store.admin()
    june = int(NOW.replace(day=1, hour=0, minute=0, second=0).timestamp() * 1000)
    field = f"{june}|{meter_token('requests')}d"
    await admin.ask(admin.client.hset(keys.customer("acme").totals, field, "odd"))
    await admin.ask(admin.client.set(keys.customer("beta").totals, "of another program", px=600_000))
    assert await closing.at(46) == (1, 0, 2)
    (line,) = errors(caplog)
    assert "customer 'acme', until 2031-07-01 00:00 UTC: it cannot be read: ValueError" in line
    assert "customer 'beta', until 2031-07-01 00:00 UTC: it cannot be read: StoreError" in line


@pytest.mark.usefixtures("valkey")
@pytest.mark.parametrize("member", ["soon:acme", f"{10**18}:acme", "1922313600000:", b"1922313600000:\xff"])
async def test_a_damaged_close_delays_no_other(
    at: Desk, closing: Closing, member: str | bytes, caplog: Caplog
) -> None:
    await at.use("acme", requests=7)
    at.emulator.fail_next("lose")
    await at.flush(everything=True)
    keys, admin = at.kit.store.keys, await at.kit.store.admin()
    shard = keys.customer("acme").shard
    for name in ("closes", "unclosed"):
        await admin.ask(admin.client.zadd(keys.shard(shard, name), {member: 1}))
    await admin.ask(admin.client.zadd(keys.shard(shard, "closes"), {f"odd {n}": 2 for n in range(100)}))
    assert await closing.at(46) == (0, 0, 1)
    assert "customer 'acme', until 2031-07-01" in errors(caplog)[0]
    assert len(await findings(at.kit, "closes")) == 1
    assert await admin.ask(admin.client.zcard(keys.shard(shard, "closes"))) == 1
    told = [one for one in caplog.messages if "cannot be read and is skipped" in one]
    assert told[0].startswith(f"a close of a billing period in shard {shard} cannot be read")


async def test_processes_that_deliver_look_by_themselves(
    store_url: str, caplog: Caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.delivery.period_closer._EVERY_S", 0.02)
    async with desk(store_url, flush=True, flush_interval=0.05) as at:
        at.clock.set(AFTER_JUNE - 30 * MINUTE)
        at.emulator.fail_next("lose")
        await at.use("acme", requests=7)
        at.clock.advance(timedelta(minutes=2))
        await until(lambda: any(one.path == EVENTS for one in at.emulator.requests))
        at.clock.set(AFTER_JUNE + 46 * MINUTE)
        await until(lambda: len(errors(caplog)) == 1)
    assert len(errors(caplog)) == 1
