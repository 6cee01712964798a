"""What Stripe refuses, loses or answers late: counted once all the same, or kept, and said."""
# Internals: a pure table of meters at Stripe.

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.delivery import CATALOG, NOW, STRIPE_KEY, aclosing_transport, desk, flusher_of, kit_for
from drivers.near_stripe import served
from meterkit.stripe.meters import meter_differences
from meterkit.testing import Clock, StripeEmulator
from servers.fixed_answers import answer, answering

if TYPE_CHECKING:
    from drivers.delivery import Desk

pytestmark = pytest.mark.anyio


async def intents(at: Desk, customer: str) -> list[dict[str, str]]:
    """All intents of a customer that are kept."""
    store = at.kit.store
    client: Any = (await store.admin()).client
    key = store.keys.shard(store.keys.customer(customer).shard, "intents")
    found = [json.loads(data) for data in await client.hvals(key)]
    return [intent for intent in found if intent["customer"] == customer]


async def test_a_retry_after_an_error_has_a_new_key_and_the_same_id(
    store_url: str,
) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("error", when="after", status=500)
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(minutes=1))
        await at.flush()
    first, second = at.emulator.requests
    assert first.identifier == second.identifier
    assert first.idempotency_key != second.idempotency_key
    assert (first.status, second.status) == (500, 400)  # Stripe has it already.
    assert at.accepted("acme") == 6


async def test_a_retry_is_early_only_in_a_flush_of_everything(
    store_url: str,
) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("error", status=429, times=2)
        first = await at.flush(everything=True, timeout_s=0.5)
        # Tried at once, and then not again and again while it waits.
        assert (first.retried, first.left, len(at.emulator.requests)) == (1, 1, 1)
        assert (await at.flush()).retried == 0
        assert (await at.flush(everything=True, timeout_s=0)).retried == 1
        at.clock.advance(timedelta(seconds=2))
        assert (await at.flush()).delivered == 1


class Stopping:
    """A transport that stops its flusher when it gets the usage of one customer."""

    def __init__(self, inner: Any, stripe_customer: str) -> None:
        self._inner, self._stripe_customer = inner, stripe_customer
        self.flusher: Any = None

    @property
    def most(self) -> int:
        most: int = self._inner.most
        return most

    async def ready(self) -> Any:
        return await self._inner.ready()

    async def send(self, *sealed: Any) -> Any:
        if self.flusher is not None and sealed[0].stripe_customer == self._stripe_customer:
            self.flusher.stop()
        return await self._inner.send(*sealed)

    async def close(self) -> None:
        await self._inner.close()


async def test_what_is_given_back_unsent_keeps_its_first_try(store_url: str) -> None:
    # F-140: it was sent again after 23 hours, as if Stripe could not have it.
    async with desk(store_url, shards=1) as at:
        await at.link("mira", "acme", "zeta")
        way = Stopping(at.transport, "cus_zeta")
        steady = way.flusher = flusher_of(at.kit, way, calls_at_once=1)
        await at.kit.record("mira", "requests", 1)
        assert (await steady.flush(everything=True)).delivered == 1
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("drop", when="before", times=1)
        await at.flush(everything=True, timeout_s=0)
        # As after many tries without an answer: it waits for longer than what has just been sealed.
        outbox, client = at.kit.store.keys.shard(0, "outbox"), (await at.kit.store.admin()).client
        await client.zadd(outbox, {(await client.zrange(outbox, 0, -1))[0]: at.clock() * 1000 + 120_000})
        await at.kit.record("zeta", "requests", 8)
        at.clock.advance(timedelta(minutes=1))
        await steady.flush(everything=True, timeout_s=0)
        (left,) = await intents(at, "acme")
        assert (left["state"], at.accepted("zeta"), at.accepted("acme")) == ("queued", 8, 0)
        assert int(left["first"]) == NOW.timestamp() * 1000
        at.clock.advance(timedelta(hours=24))
        before = len(at.emulator.requests)
        assert (await at.flush(everything=True, timeout_s=0)).parked == 1
        assert (len(at.emulator.requests), at.accepted("acme")) == (before, 0)


@pytest.mark.parametrize("status", [302, 429])
async def test_i6_a_foreign_refusal_is_not_resent_after_23_hours(store_url: str, status: int) -> None:
    # R4: a gateway that passes the request on and keeps the answer back had it billed anew each day.
    page = answer(status, "<html>Blocked</html>")
    async with desk(store_url) as at, answering(page) as proxy, aclosing_transport(proxy.url) as way:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        flusher = flusher_of(at.kit, way)
        await flusher.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(hours=22))
        await flusher.flush(everything=True, timeout_s=0)
        assert len(proxy.asked) == 2
        at.clock.advance(timedelta(hours=2))
        report = await flusher.flush(everything=True, timeout_s=0)
        assert (report.parked, len(proxy.asked)) == (1, 2)
        assert "more than 23 hours ago" in report.undelivered[0].why


async def test_with_clocks_apart_delivery_waits(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with desk(store_url, shards=1) as at:
        at.emulator.clock = lambda: at.clock() - 420
        await at.link("acme", "zeta")
        for customer in ("acme", "zeta"):
            await at.kit.record(customer, "requests", 6)
        report = await at.flush(everything=True, timeout_s=0)
        # One was sent to see, and is kept as it was; the other waits.
        assert (report.delivered, report.dead, report.parked, report.retried) == (0, 0, 0, 1)
        assert "clock and Stripe's differ by 420 s" in caplog.text
        at.clock.advance(timedelta(minutes=10))
        at.emulator.clock = at.clock
        assert (await at.flush()).delivered == 2
    assert at.accepted("acme") == 6


@pytest.mark.parametrize("apart_s", [61, 299])
async def test_no_unit_dies_of_a_clock_that_is_ahead(store_url: str, apart_s: int) -> None:
    # F-51: 40 of 100 units were dead with 61 to 240 s.
    async with desk(store_url, shards=1) as at:
        at.emulator.clock = lambda: at.clock() - apart_s
        await at.link("acme")
        for _ in range(8):
            await at.kit.record("acme", "requests", 10)
            await at.flush(everything=True, timeout_s=0)
        usage = (await at.kit.usage("acme"))["meters"]["requests"]
        assert (usage["dead"], usage["parked"]) == (0, 0)
        at.clock.advance(timedelta(minutes=15))
        at.emulator.clock = at.clock
        assert (await at.flush(everything=True, timeout_s=120)).is_complete
    assert at.accepted("acme") == 80


async def test_a_meter_with_other_payload_keys_parks_its_usage(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # F-53: every unit was dead.
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    async with served(emulator) as url, kit_for(store_url, url, clock=clock) as kit:
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {STRIPE_KEY}"}) as http:
            form = {
                "event_name": "api_requests",
                "display_name": "requests",
                "default_aggregation[formula]": "sum",
                "customer_mapping[event_payload_key]": "user_id",
                "customer_mapping[type]": "by_id",
            }
            assert (await http.post("/v1/billing/meters", data=form)).status_code == 200
        for customer in ("acme", "zeta", "yara"):
            emulator.add_customer(f"cus_{customer}")
            await kit.customers.link(customer, f"cus_{customer}", force=True)
            await kit.record(customer, "requests", 6)
        report = await kit.flush(everything=True, timeout_s=0)
        assert (report.parked, report.dead, report.left, report.is_complete) == (3, 0, 0, False)
        assert {(one.customer, one.meter, one.quantity) for one in report.undelivered} == {
            (customer, "requests", 6) for customer in ("acme", "zeta", "yara")
        }
        assert "payload[user_id]" in report.undelivered[0].why
        (alert,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert "api_requests is parked" in alert.getMessage()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, "<html>Bad Request</html>"),
        (404, "{}"),
        (200, "<html>Log in</html>"),
    ],
)
async def test_a_proxys_page_ends_nothing_and_is_met_once(
    store_url: str, status: int, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    # F-50: a proxy's page killed every intent for good; F-56: one alert, one probe, a growing delay.
    async with (
        desk(store_url) as at,
        answering(answer(status, body)) as proxy,
        aclosing_transport(proxy.url) as way,
    ):
        customers = [f"c{n}" for n in range(20)]
        await at.link(*customers)
        for customer in customers:
            await at.kit.record(customer, "requests", 6)
        flusher = flusher_of(at.kit, way)
        asked: list[int] = []
        for _ in range(40):
            report = await flusher.flush(everything=True, timeout_s=0)
            assert (report.dead, report.parked, report.delivered) == (0, 0, 0)
            asked.append(len(proxy.asked))
            at.clock.advance(timedelta(seconds=30))
        # After 1, 2, 4, 8 minutes; 20 minutes in all.
        assert (asked[0], asked[-1]) == (1, 5)
        alerts = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(alerts) == 1
        at.clock.advance(timedelta(minutes=20))
        assert (await at.flush(everything=True)).is_complete
        assert [at.accepted(customer) for customer in customers] == [6] * 20


async def test_a_revoked_key_costs_one_call_and_one_alert(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # F-56: one call and one line for each intent and pass.
    async with desk(store_url) as at:
        customers = [f"c{n}" for n in range(60)]
        await at.link(*customers)
        for customer in customers:
            await at.kit.record(customer, "requests", 6)
        at.emulator.fail_next("error", status=401, times=None)
        for _ in range(5):
            await at.flush(everything=True, timeout_s=0)
        assert len(at.emulator.requests) == 1
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
        at.emulator.clear_faults()
        at.clock.advance(timedelta(seconds=61))
        assert (await at.flush(everything=True)).is_complete


async def test_a_missing_meter_costs_one_call_after_its_pause(store_url: str) -> None:
    # R18: all that had waited was sent at once, to be refused again.
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    emulator.add_meter("ai_tokens")
    customers = [f"c{number}" for number in range(30)]
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=clock, shards=4) as kit,
        kit.flusher() as flusher,
    ):
        for customer in customers:
            emulator.add_customer(f"cus_{customer}")
            await kit.customers.link(customer, f"cus_{customer}", force=True)
        await kit.record("c0", "tokens", 101)
        assert (
            await flusher.flush(everything=True)
        ).delivered == 1  # Nothing waits for a first call any more.
        for customer in customers:
            await kit.record(customer, "requests", 6)
        await flusher.flush(everything=True, timeout_s=0)
        for pause in (timedelta(minutes=1), timedelta(minutes=2)):
            clock.advance(pause + timedelta(seconds=1))
            before = len(emulator.requests)
            report = await flusher.flush(everything=True, timeout_s=0)
            assert (len(emulator.requests) - before, report.left) == (1, 30)
        emulator.add_meter("api_requests")
        clock.advance(timedelta(minutes=4, seconds=1))
        before = len(emulator.requests)
        assert (await flusher.flush(everything=True)).delivered == 30
        assert len(emulator.requests) - before == 30


async def test_meters_that_do_not_take_what_is_sent_are_named() -> None:
    # F-53
    emulator = StripeEmulator()
    emulator.add_meter("api_requests")
    key = {"authorization": "Bearer sk_test_1"}
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url, headers=key) as http:
        form = {
            "event_name": "ai_tokens",
            "display_name": "tokens",
            "default_aggregation[formula]": "sum",
            "customer_mapping[event_payload_key]": "user_id",
            "customer_mapping[type]": "by_id",
            "value_settings[event_payload_key]": "amount",
        }
        made = (await http.post("/v1/billing/meters", data=form)).json()
        at_stripe = (await http.get("/v1/billing/meters")).json()["data"]
        first, second, third = meter_differences(CATALOG, at_stripe)
        assert first.startswith(f"meter tokens: the meter {made['id']} at Stripe has customer_mapping")
        assert "value_settings.event_payload_key amount; what is sent has value" in second
        assert third == "meter pages: Stripe has no active meter with the event name pdf_pages"
        emulator.add_meter("pdf_pages")
        await http.post(f"/v1/billing/meters/{made['id']}/deactivate")
        emulator.add_meter("ai_tokens")
        assert meter_differences(CATALOG, (await http.get("/v1/billing/meters")).json()["data"]) == []
