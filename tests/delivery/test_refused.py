"""Meter events that Stripe takes and refuses later: its reports are read, and totals corrected."""
# Internals: reports on intents in each state.

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.audited_kit import sqlite_in
from drivers.delivery import RENAMED, Caplog, Desk, alerts, api_of, desk, kit_for
from drivers.kept_intents import ObjectsAtStripe, kit_alone
from drivers.webhooks import SECRET
from meterkit import MeterkitError
from meterkit.delivery.error_reports import (
    BATCH,
    IntentRefuser,
    ReportedIntent,
    find_in_batches,
    identifiers_of,
    park_refused,
    read_report,
)
from meterkit.insights.audit.async_database import AuditDatabase, open_audit_database
from meterkit.outbox.journal import Journal
from meterkit.starlette import stripe_webhook
from meterkit.stripe.api import StripeApi
from servers.stores import Server

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def streaming(store_url: str, *lost: str, **settings: Any) -> AsyncGenerator[tuple[Desk, StripeApi]]:
    """A desk that sends streams, and customers who are linked to Stripe customers that are not there."""
    settings = {"stripe_transport": "v2-stream", **settings}
    async with desk(store_url, **settings) as at, api_of(at.kit) as api:
        for name in lost:
            await at.kit.customers.link(name, f"cus_{name}", force=True)
            await at.kit.record(name, "requests", 7)
        yield at, api


async def compare(at: Desk) -> None:
    """Have compared what was redriven: three hours later, and ten minutes after that."""
    for hours, minutes in ((3, 1), (0, 10)):
        await at.flush(everything=True, timeout_s=0, after=timedelta(hours=hours, minutes=minutes))


async def switch(api: StripeApi, event_name: str, what: str) -> None:
    """Deactivate the meter of an event name at Stripe, or reactivate it."""
    for meter in await api.list("/v1/billing/meters"):
        if meter["event_name"] == event_name:
            await api.post(f"/v1/billing/meters/{meter['id']}/{what}")


async def take_all(at: Desk, api: StripeApi, journal: Journal | None = None) -> None:
    for event in at.emulator.thin_events:
        await park_refused(at.kit.store, api, event.id, journal)


@pytest.mark.parametrize("is_away", [False, True])
async def test_what_is_refused_later_is_taken_off_the_journal(
    store_url: str, tmp_path: Path, caplog: Caplog, is_away: bool
) -> None:
    url = sqlite_in(tmp_path)
    async with streaming(store_url, "lost", audit_url=url) as (at, api):
        journal = open_audit_database(at.kit.settings)
        assert journal is not None
        await at.use("acme", requests=7)
        await at.kit.flush(everything=True)
        assert len(await journal.read("lost", "api_requests", 0)) == 1
        away = AuditDatabase("sqlite:////no/such/directory/audit.db")
        await take_all(at, api, away if is_away else journal)
        assert await at.places("lost") == {"dead": 7}
        assert len(await journal.read("lost", "api_requests", 0)) == is_away
        assert len(await journal.read("acme", "api_requests", 0)) == 1
        assert ("the journal of deliveries still has intents that Stripe refuses" in caplog.text) == is_away


async def test_a_report_that_comes_twice_or_weeks_later_is_taken_once(store_url: str, caplog: Caplog) -> None:
    async with streaming(store_url, "lost") as (at, api):
        await at.flush(everything=True)
        at.clock.advance(timedelta(days=29))
        for _ in range(3):
            await take_all(at, api)
        assert sum(line["dead"] for line in (await at.kit.usage("lost"))["meters"].values()) <= 7
        totals = await at.totals("lost")
    assert sorted(name[-1] for name, value in totals.items() if value == 7 and name[-1] in "dx") == ["x"]
    (told,) = alerts(caplog)
    assert "7 units of api_requests of customer 'lost' are dead" in told


async def test_what_was_dropped_and_billed_by_hand_does_not_come_back(store_url: str) -> None:
    async with streaming(store_url) as (at, api):
        await at.use("acme", requests=60)
        await at.flush(everything=True)
        await at.kit.record("acme", "requests", 50)
        at.emulator.fail_next("drop", when="after")
        await at.flush(everything=True, timeout_s=0, after=timedelta(minutes=1))
        (intent,) = await at.kit.outbox.list()
        await at.kit.outbox.drop(intent.identifier, reason="billed by hand")
        assert await at.places("acme") == {"delivered": 60, "dead": 50}
        at.emulator.report_meter_errors(
            "api_requests", code="archived_meter", identifiers=[intent.identifier], count=1
        )
        await take_all(at, api)
        assert (await at.places("acme"), await at.kit.outbox.list()) == ({"delivered": 60, "dead": 50}, [])


async def test_i6_a_late_report_on_an_earlier_try_never_bills_twice(store_url: str) -> None:
    async with streaming(store_url) as (at, api):
        await at.use("acme", requests=7)
        await switch(api, "api_requests", "deactivate")
        at.emulator.fail_next("drop", when="after")  # Taken and refused, and nobody hears of either.
        await at.flush(everything=True, timeout_s=0)
        await switch(api, "api_requests", "reactivate")
        assert (await at.flush(everything=True, after=timedelta(minutes=1))).delivered == 1
        await take_all(at, api)
        assert await at.places("acme") == {"parked": 7}
        (intent,) = await at.kit.outbox.list()
        assert intent.first_attempt_at == at.clock.now()
        redriven = await at.kit.outbox.redrive(intent.identifier)
        assert (redriven.state, redriven.compared_at) == ("parked", at.clock.now() + timedelta(hours=3))
        await compare(at)
        assert (await at.places("acme"), at.accepted("acme")) == ({"delivered": 7}, 7)


async def test_a_refused_event_is_of_its_meters_present_name(store_url: str) -> None:
    """An earlier period has as many units under the former name."""
    async with streaming(store_url, stripe_transport="v1") as (at, api):
        await at.use("acme", requests=7)
        await at.flush(everything=True)
        async with kit_for(at.store_url, at.url, clock=at.clock, catalog=RENAMED) as renamed:
            at.clock.advance(timedelta(days=31))
            await renamed.record("acme", "calls", 4)
            await renamed.flush(everything=True)
            sent = at.emulator.events[-1].identifier
            at.emulator.report_meter_errors(
                "api_requests", code="archived_meter", identifiers=[sent], count=1
            )
            await take_all(at, api)
            found = (await renamed.usage("acme"))["meters"]["calls"]
            assert (found["parked"], found["delivered"]) == (4, 0)
            (intent,) = await renamed.outbox.list()
            assert (intent.meter, intent.period_start) == ("calls", datetime(2031, 7, 1, tzinfo=UTC))


async def test_damaged_totals_of_a_former_name_change_nothing(store_url: str, valkey: Server) -> None:
    """The event may have been delivered under either name of the meter."""
    async with streaming(store_url, stripe_transport="v1") as (at, api):
        await at.use("acme", requests=7)
        await at.flush(everything=True)
        async with kit_for(at.store_url, at.url, clock=at.clock, catalog=RENAMED) as renamed:
            await renamed.record("acme", "calls", 9)
            await renamed.flush(everything=True)
        sent = at.emulator.events[0].identifier
        totals = at.kit.store.keys.customer("acme").totals
        counts = valkey.command("HGETALL", totals).items()
        (delivered,) = [name for name, count in counts if name.endswith("d") and count == "7"]
        valkey.command("HSET", totals, delivered, "x")
        at.emulator.report_meter_errors("api_requests", code="archived_meter", identifiers=[sent], count=1)
        await take_all(at, api)
        assert await at.kit.outbox.list() == []


async def by_key(at: Desk, *customers: str) -> str:
    """Send requests of customers, all but the first in one call; the idempotency key of that."""
    at.emulator.reports_name = "idempotency_key"
    await at.use(*customers, requests=7)
    await at.flush(everything=True)
    keys = [sent.idempotency_key or "" for sent in at.emulator.requests if "stream" in sent.path]
    assert [key.startswith("batch-") for key in keys] == [False, True]
    return keys[-1]


async def test_a_batch_report_kills_events_of_unknown_customers(store_url: str) -> None:
    async with streaming(store_url, "gone", "lost", shards=1) as (at, api):
        await by_key(at, "acme", "beta", "zeta")
        await take_all(at, api)
        found = {name: await at.places(name) for name in ("acme", "beta", "gone", "lost", "zeta")}
        one = {"delivered": 7}
        assert found == {"acme": one, "beta": one, "gone": {"dead": 7}, "lost": {"dead": 7}, "zeta": one}


async def test_of_a_batch_all_are_parked_whose_meter_takes_nothing(store_url: str) -> None:
    async with streaming(store_url, shards=1) as (at, api):
        await switch(api, "api_requests", "deactivate")
        await at.kit.record("zeta", "tokens", 150)
        await by_key(at, "acme", "beta", "zeta")
        await take_all(at, api)
        assert [await at.places(name) for name in ("acme", "beta", "zeta")] == [{"parked": 7}] * 3
        assert await at.places("zeta", "tokens") == {"delivered": 50}


async def test_an_ambiguous_batch_report_names_all(store_url: str, caplog: Caplog) -> None:
    async with streaming(store_url, shards=1) as (at, api):
        key = await by_key(at, "acme", "beta", "zeta")
        at.emulator.report_meter_errors(
            "api_requests", code="timestamp_too_far_in_past", identifiers=[key], count=3
        )
        await take_all(at, api)
        assert [await at.places(name) for name in ("acme", "beta", "zeta")] == [{"delivered": 7}] * 3
        sent = [event.identifier for event in at.emulator.events[1:]]
    assert "refuses 3 of these intents, which were sent in one call, and does not say which" in caplog.text
    assert all(identifier in caplog.text for identifier in sent)


async def test_one_event_by_itself_is_known_by_its_idempotency_key(store_url: str) -> None:
    async with streaming(store_url, "lost", stripe_transport="v1") as (at, api):
        at.emulator.reports_name = "idempotency_key"
        at.emulator.refuse_unknown_customers = False
        await at.flush(everything=True)
        await take_all(at, api)
        assert await at.places("lost") == {"dead": 7}


async def test_one_that_is_being_sent_is_looked_at_again(store_url: str, valkey: Server) -> None:
    async with streaming(store_url, "lost", shards=1) as (at, api):
        at.emulator.fail_next("drop", when="after")
        await at.flush(everything=True, timeout_s=0)
        ((name, kept),) = valkey.command("HGETALL", "mk:{0}:intents").items()
        valkey.command("HSET", "mk:{0}:intents", name, json.dumps({**json.loads(kept), "state": "leased"}))
        with pytest.raises(MeterkitError, match="being sent"):
            await take_all(at, api)
        assert await at.places("lost") == {"queued": 7}


async def test_a_thin_event_at_the_endpoint_does_all_of_it(store_url: str) -> None:
    async with streaming(store_url, "lost", stripe_webhook_secret=SECRET) as (at, _):
        at.emulator.automatic_webhooks = False
        at.emulator.add_endpoint("http://app/hooks", secret=SECRET, app=stripe_webhook(at.kit), thin=True)
        await at.flush(everything=True)
        assert [made.status for made in await at.emulator.deliver()] == [200]
        await at.kit.webhooks.work_off()
        assert (await at.places("lost"), (await at.kit.webhooks.backlog()).entries) == ({"dead": 7}, 0)


ID = "0123456789abcdef0123456789abcdef-1"


def told(*samples: dict[str, Any], code: str = "no_meter", count: int = 5) -> dict[str, Any]:
    """An event as https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api shows it."""
    kinds = [{"code": code, "error_count": count, "sample_errors": list(samples)}]
    return {
        "id": "evt_1",
        "related_object": {"id": "mtr_1", "type": "billing.meter"},
        "data": {
            "developer_message_summary": "There are 5 invalid events",
            "reason": {"error_count": count, "error_types": kinds},
            "validation_start": "2026-11-20T12:00:00.000Z",
            "validation_end": "2026-11-20T12:00:10.000Z",
        },
    }


def sample(message: str = "No.", **request: str) -> dict[str, Any]:
    return {"error_message": message, "request": request}


@pytest.mark.parametrize("name", ["", ID[:-3], ID + "-xyz"])
def test_what_names_no_intent_is_left_out(name: str) -> None:
    assert identifiers_of(read_report(told(sample(identifier=name)))) == {}


@pytest.mark.parametrize(
    "event",
    [
        {"data": {"reason": {"error_types": [None, 7, {"sample_errors": "x"}], "error_count": True}}},
        {"data": {"reason": {"error_types": [{"sample_errors": [{"request": [1]}]}]}}},
        {"data": None, "related_object": {"id": 7}},
    ],
)
def test_whatever_an_event_holds_it_is_read(event: dict[str, Any]) -> None:
    report = read_report(event)
    assert (report.meter, report.count, identifiers_of(report)) == (None, 0, {})


BATCH_KEY = f"{BATCH}{'0a' * 16}"


class Sent(IntentRefuser):
    """One call with an intent of each of two meters."""

    async def batches(self, batches: Iterable[str]) -> dict[str, list[str]]:
        return {batch: ["a-1", "b-1"] for batch in batches}

    async def find(self, identifiers: Iterable[str]) -> dict[str, ReportedIntent]:
        return {
            identifier: ReportedIntent(
                identifier=identifier,
                customer="acme",
                stripe_customer="cus_acme",
                event_name=identifier.partition("-")[0],
                value=1,
                shard=0,
                day_ms=0,
            )
            for identifier in identifiers
        }


@pytest.mark.anyio
@pytest.mark.parametrize(("meter", "meant"), [("mtr_1", "a-1"), (None, "b-1")])
async def test_a_report_of_no_meter_means_what_no_meter_has(meter: str | None, meant: str) -> None:
    event = told(sample("x" * 9_999, identifier=BATCH_KEY), count=1)
    report = read_report(event | {"related_object": {"id": meter}})
    known = {"event_name": "a"}
    stripe = ObjectsAtStripe({"/v1/billing/meters": [known], "/v1/billing/meters/mtr_1": known})
    async with kit_alone() as kit:
        assert await find_in_batches(stripe, Sent(kit.store), report) == {meant: ("no_meter", "x" * 200)}
