"""The close of each period: confirmed in silence, or told once and in time to do something about it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from drivers.delivery import NOW, STRIPE_KEY, desk, until
from drivers.period_ends import AFTER_JUNE, closing_of
from drivers.store_keys import meter_token

if TYPE_CHECKING:
    from drivers.delivery import Desk

pytestmark = pytest.mark.anyio

MINUTE: Final = timedelta(minutes=1)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR and "not confirmed" in record.getMessage()
    ]


async def used_in_june(at: Desk, *customers: str, quantity: int = 7) -> None:
    await at.link(*customers)
    for customer in customers:
        await at.kit.record(customer, "requests", quantity)


async def test_a_close_that_stripe_confirms_is_silent(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at, closing_of(at) as closing:
        await used_in_june(at, "acme", "zeta")
        await at.flush(everything=True)
        assert await closing.closer.look() == (0, 0, [])
        at.clock.set(AFTER_JUNE - MINUTE)
        await at.kit.record("acme", "requests", 5)
        at.clock.set(AFTER_JUNE + 2 * MINUTE)
        await at.kit.record("acme", "requests", 1)
        await at.flush(everything=True)
        assert await closing.at(9) == (0, 0, 0)
        assert await closing.at(11) == (2, 0, 0)
        assert await closing.at(60) == (0, 0, 0)
        assert await closing.unconfirmed() == (0, 0)
        # July is closed in its turn.
        at.clock.set(datetime(2031, 8, 1, 0, 11, tzinfo=UTC))
        assert (await closing.closer.look()).confirmed == 1
    assert errors(caplog) == []


async def test_a_close_waits_for_what_adds_up_to_nothing_too(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at, closing_of(at) as closing:
        await used_in_june(at, "acme")
        await at.flush(everything=True)
        at.emulator.fail_next("error", status=500, times=None, path="/v1/billing/meter_events")
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
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "meterkit.delivery")
    async with desk(store_url) as at, closing_of(at) as closing:
        await used_in_june(at, "acme")
        at.emulator.fail_next("lose")
        await at.flush(everything=True)
        assert await closing.at(11) == (0, 1, 0)
        assert await closing.at(12) == (0, 0, 0)  # It is not asked again each minute.
        assert await closing.at(30) == (0, 1, 0)
        assert errors(caplog) == []
        assert await closing.at(46) == (0, 0, 1)
        (line,) = errors(caplog)
        assert line.startswith(
            "the close of 1 billing period is not confirmed 45 minutes after the period's end, and Stripe"
            " makes"
            " an invoice final after an hour: customer 'acme', until 2031-07-01 00:00 UTC: requests:"
            " Stripe has counted 7 less than it accepted"
        )
        assert await closing.unconfirmed() == (1, 46 * 60)
        assert await closing.at(107) == (0, 1, 0)
        assert len(errors(caplog)) == 1
        (finding,) = [found for found in (await at.kit.health()).findings if found.check == "closes"]
        assert "customer acme, until 2031-07-01 00:00 UTC" in finding.problem
        assert "meterkit reconcile CUSTOMER --period" in finding.cure
        # What Stripe lacked comes there by hand.
        await sent_by_hand(at, 7)
        assert await closing.at(170) == (1, 0, 0)
        assert await closing.unconfirmed() == (0, 0)
        assert "until 2031-07-01 00:00:00+00:00 is confirmed now" in caplog.text


async def sent_by_hand(at: Desk, value: int) -> None:
    fields: dict[str, Any] = {
        "event_name": "api_requests",
        "timestamp": int((AFTER_JUNE - timedelta(hours=1)).timestamp()),
        "payload[stripe_customer_id]": "cus_acme",
        "payload[value]": value,
    }
    async with httpx.AsyncClient() as client:
        headers = {"authorization": f"Bearer {STRIPE_KEY}"}
        done = await client.post(f"{at.url}/v1/billing/meter_events", data=fields, headers=headers)
    assert done.status_code == 200, done.text


async def test_usage_that_misses_its_invoice_is_reported(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at, closing_of(at) as closing:
        at.clock.set(AFTER_JUNE - 30 * MINUTE)
        await used_in_june(at, *(f"c{number}" for number in range(7)))
        at.emulator.fail_next("error", status=500, times=None, path="/v1/billing/meter_events")
        await at.flush(everything=True, timeout_s=0)
        assert await closing.at(46) == (0, 0, 7)
        (line,) = errors(caplog)
        assert line.startswith("the closes of 7 billing periods are not confirmed")
        assert "7 of requests are not delivered (7 wait, 0 parked)" in line
        assert "and 2 more. `meterkit reconcile" in line
        at.emulator.clear_faults()
        await at.flush(everything=True)
        assert await closing.at(107) == (7, 0, 0)
        assert at.accepted("c0") == 7


async def test_a_refused_comparison_is_reported_and_closed_later(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at, closing_of(at) as closing:
        await used_in_june(at, "acme", "zeta")
        await at.flush(everything=True)
        at.emulator.fail_next("error", status=401, times=None, path="/v1/billing/meters")
        assert await closing.at(11) == (0, 2, 0)
        assert errors(caplog) == []
        assert await closing.at(47) == (0, 0, 2)
        (line,) = errors(caplog)
        assert "Stripe does not say what it has counted: " in line
        at.emulator.clear_faults()
        assert await closing.at(110) == (2, 0, 0)


async def test_a_moved_close_is_looked_at_when_the_period_is_over(store_url: str) -> None:
    """The usage was sealed while the period was to end on the 20th, and nothing is sealed after that."""
    async with desk(store_url) as at, closing_of(at) as closing:
        await used_in_june(at, "acme")
        await at.flush(everything=True)
        key = at.kit.store.keys.shard(at.kit.store.keys.customer("acme").shard, "closes")
        admin = await at.kit.store.admin()
        early = int(datetime(2031, 6, 20, tzinfo=UTC).timestamp() * 1000)
        july = int(AFTER_JUNE.timestamp() * 1000)
        await admin.ask(admin.client.zrem(key, f"{july}:acme"))
        await admin.ask(admin.client.zadd(key, {f"{early}:acme": early + 600_000}))
        at.clock.set(datetime(2031, 6, 20, 0, 11, tzinfo=UTC))
        await closing.closer.look()
        assert await admin.ask(admin.client.zrange(key, 0, -1)) == [f"{july}:acme".encode()]
        assert await closing.at(9) == (0, 0, 0)
        assert await closing.at(11) == (1, 0, 0)


async def test_what_cannot_be_noted_holds_up_no_delivery(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at:
        keys, admin = at.kit.store.keys, await at.kit.store.admin()
        odd = keys.shard(keys.customer("acme").shard, "closes")
        await admin.ask(admin.client.set(odd, "of somebody else", px=600_000))
        await used_in_june(at, "acme")
        assert (await at.flush(everything=True)).is_complete
        assert at.accepted("acme") == 7
    assert "ends of billing periods cannot be noted, and are not looked at: " in caplog.text


async def test_damaged_books_do_not_delay_other_closes(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at, closing_of(at) as closing:
        await used_in_june(at, "acme", "zeta", "beta")
        await at.flush(everything=True)
        keys, admin = at.kit.store.keys, await at.kit.store.admin()
        june = int(NOW.replace(day=1, hour=0, minute=0, second=0).timestamp() * 1000)
        field = f"{june}|{meter_token('requests')}d"
        await admin.ask(admin.client.hset(keys.customer("acme").totals, field, "odd"))
        assert await closing.at(46) == (2, 0, 1)
        (line,) = errors(caplog)
        assert "customer 'acme', until 2031-07-01 00:00 UTC: it cannot be read: ValueError" in line


async def test_processes_that_deliver_look_by_themselves(
    store_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.delivery.closing._EVERY_S", 0.02)
    async with desk(store_url, flush=True, flush_interval=0.05) as at:
        at.clock.set(AFTER_JUNE - 30 * MINUTE)
        at.emulator.fail_next("lose")
        await used_in_june(at, "acme")
        at.clock.advance(timedelta(minutes=2))
        await until(lambda: any(one.path == "/v1/billing/meter_events" for one in at.emulator.requests))
        at.clock.set(AFTER_JUNE + 46 * MINUTE)
        await until(lambda: len(errors(caplog)) == 1)
    assert len(errors(caplog)) == 1
