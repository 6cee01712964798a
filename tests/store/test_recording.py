"""What is recorded after the fact: under which id, in which period, and for how long it is known."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.app import answering
from drivers.store_keys import meter_token
from meterkit import MeterKit, MeterkitError, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
JUNE, JULY = datetime(2031, 6, 1, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: tokens}}
routes:
  - {match: "*", consume: {requests: 1}, charge_on: attempt}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 100/minute}
      tokens:   {included: 10, overage: bill}
"""
DEAD_LETTER = PLANS + "billing: {late_usage: dead_letter}\n"


@asynccontextmanager
async def kit_on(
    url: str, text: str = PLANS, now: datetime = NOW, **settings: Any
) -> AsyncGenerator[tuple[MeterKit, Clock]]:
    clock = Clock(now)
    given: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 10.0} | settings
    async with MeterKit(loads(text), clock=clock, redis_url=url, **given) as kit:
        yield kit, clock


def to_ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


async def totals_of(kit: MeterKit, customer: str = "acme") -> dict[str, str]:
    client: Any = (await kit.store.admin()).client
    found = await client.hgetall(kit.store.keys.customer(customer).totals)
    return {name.decode(): text.decode() for name, text in found.items()}


async def row_of(kit: MeterKit, customer: str = "acme") -> Any:
    return (await kit.usage(customer))["meters"]["tokens"]


@pytest.mark.parametrize("event_id", ["", "é" * 129, "a\ud800", 7])
async def test_an_event_id_is_a_text_of_1_to_256_bytes(store_url: str, event_id: Any) -> None:
    """F-27."""
    async with kit_on(store_url) as (kit, _):
        with pytest.raises(MeterkitError, match=r"event_id: found .*; allowed is a text of 1 to 256 bytes"):
            await kit.record("acme", "tokens", 1, event_id=event_id)
        for allowed in ("x" * 256, "é" * 128, "line\nline"):
            for _ in range(2):
                await kit.record("acme", "tokens", 1, event_id=allowed)
        assert (await row_of(kit))["recorded"] == 3


async def test_what_a_decision_records_lives_to_the_end_of_the_period(store_url: str, valkey: Server) -> None:
    """F-25."""
    async with kit_on(store_url) as (kit, _):
        app = MeterMiddleware(answering(200), kit=kit, identify=identify.header("x-customer-id"))
        await kit.customers.set_plan("known", "free")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for customer in ("stranger", "known"):
                assert (await client.get("/", headers={"x-customer-id": customer})).status_code == 200
        for customer, more in (("stranger", timedelta(minutes=15)), ("known", timedelta(days=40))):
            assert (await kit.usage(customer))["meters"]["requests"]["recorded"] == 1
            counters = kit.store.keys.customer(customer).counters
            assert valkey.command("PEXPIRETIME", counters) >= to_ms(JULY + more)


async def test_a_plan_that_the_file_does_not_have_is_named_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-23: a process with an older plans file."""
    newer = PLANS + "  gold: {extends: free, meters: {tokens: {included: 500}}}\n"
    async with kit_on(store_url, newer) as (kit, _), kit_on(store_url) as (older, _):
        for customer in ("acme", "zeta"):
            await kit.customers.set_plan(customer, "gold")
        with caplog.at_level(logging.WARNING, "meterkit"):
            for customer in ("acme", "zeta", "acme"):
                assert (await older.check(customer, "tokens")).plan == "free"
        (alarm,) = [record for record in caplog.records if "'gold'" in record.getMessage()]
        assert alarm.levelno == logging.ERROR
        assert "customer 'acme'" in alarm.getMessage()
        assert "default plan 'free'" in alarm.getMessage()


async def test_late_usage_is_billed_in_the_next_period(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-24."""
    async with kit_on(store_url) as (kit, clock):
        await kit.record("acme", "tokens", 8)
        clock.advance(timedelta(days=25))
        with caplog.at_level(logging.WARNING, "meterkit"):
            for _ in range(2):
                await kit.record("acme", "tokens", 7, occurred_at=JULY - timedelta(milliseconds=1))
            await kit.record("acme", "tokens", 1, occurred_at=JULY)
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1
        assert "customer 'acme'" in told[0]
        assert "7 of tokens" in told[0]
        assert "2031-06-01" in told[0]
        assert "is billed in this one" in told[0]
        row = await row_of(kit)
        assert (row["recorded"], row["overage"], row["unlinked"], row["late"]) == (15, 5, 5, 0)
        token = meter_token("tokens")
        totals = await totals_of(kit)
        assert totals[f"{to_ms(JUNE)}|{token}u"] == "14"
        clock.advance(timedelta(days=31))
        await kit.record("acme", "tokens", 1)
        totals = await totals_of(kit)
        assert (totals[f"{to_ms(JULY)}|{token}m"], totals[f"{to_ms(JULY)}|{token}i"]) == ("14", "10")


async def test_late_usage_goes_to_the_dead_letters_if_asked(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-24."""
    async with kit_on(store_url, DEAD_LETTER) as (kit, clock):
        await kit.record("acme", "tokens", 8)
        clock.advance(timedelta(days=25))
        with caplog.at_level(logging.WARNING, "meterkit"):
            for _ in range(3):
                await kit.record(
                    "acme", "tokens", 7, occurred_at=JULY - timedelta(days=1), event_id="only-once"
                )
        (told,) = [record.getMessage() for record in caplog.records]
        assert "7 of tokens" in told
        assert "is not billed" in told
        row = await row_of(kit)
        assert (row["recorded"], row["unlinked"]) == (0, 0)
        totals = await totals_of(kit)
        assert totals[f"{to_ms(JUNE)}|{meter_token('tokens')}u"] == "7"


async def test_usage_of_the_future_and_naive_times_are_refused(store_url: str) -> None:
    """F-24."""
    async with kit_on(store_url) as (kit, _):
        with pytest.raises(MeterkitError, match="occurred_at: found 2031-06-10T12:01:30"):
            await kit.record("acme", "tokens", 1, occurred_at=NOW + timedelta(seconds=60, milliseconds=1))
        with pytest.raises(MeterkitError, match="naive"):
            await kit.record("acme", "tokens", 1, occurred_at=datetime(2031, 6, 10))  # noqa: DTZ001
        with pytest.raises(MeterkitError, match="occurred_at: found 1969"):
            await kit.record("acme", "tokens", 1, occurred_at=datetime(1969, 12, 31, tzinfo=UTC))
        await kit.record("acme", "tokens", 1, occurred_at=NOW + timedelta(seconds=60))
        assert (await row_of(kit))["recorded"] == 1


async def test_i5_late_usage_is_reported_once(store_url: str) -> None:
    """F-24."""
    async with kit_on(store_url) as (kit, clock):
        await kit.customers.link("acme", "cus_acme")
        for month in range(3):
            for day in range(5):
                at = clock.now() - timedelta(days=9 * day)
                await kit.record("acme", "tokens", 10 + day, occurred_at=at)
            row = await row_of(kit)
            assert row["overage"] == row["pending"]
            assert row["recorded"] == 60
            clock.advance(timedelta(days=31 - month % 2))
        await kit.record("acme", "tokens", 0)
        totals = await totals_of(kit)
        token = meter_token("tokens")

        def total(kind: str) -> int:
            return sum(int(text) for name, text in totals.items() if name.endswith(f"|{token}{kind}"))

        assert total("i") + total("o") == 3 * 60
        assert total("p") + total("q") == total("o")
        assert total("u") == total("m") > 0
