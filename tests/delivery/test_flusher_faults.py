"""What Stripe refuses, loses or answers late, in batches too: counted once all the same, or kept and said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from random import Random
from time import monotonic
from typing import Any, Final

import httpx
import pytest

from drivers.delivery import (
    FAULTS,
    KEY_REFUSED,
    NOW,
    STRIPE_KEY,
    Caplog,
    Desk,
    WatchedTransport,
    aclosing_transport,
    alerts,
    desk,
    flusher_of,
)
from drivers.health_findings import findings
from drivers.sampled import whole
from servers.fixed_answers import answer, answering

pytestmark = pytest.mark.anyio


async def test_a_retry_after_an_error_has_a_new_key_and_the_same_id(at: Desk) -> None:
    await at.use("acme", requests=6)
    at.emulator.fail_next("error", when="after", status=500)
    await at.flush(everything=True, timeout_s=0)
    await at.flush(after=timedelta(minutes=1))
    first, second = at.emulator.requests
    assert first.identifier == second.identifier
    assert first.idempotency_key != second.idempotency_key
    assert (first.status, second.status) == (500, 400)  # Stripe has it already.
    assert at.accepted("acme") == 6


async def test_a_retry_is_early_only_in_a_flush_of_everything(at: Desk) -> None:
    await at.use("acme", requests=6)
    at.emulator.fail_next("error", status=429, times=2, customer="cus_acme")
    first = await at.flush(everything=True, timeout_s=0.5)
    # Tried at once, and then not again and again while it waits.
    assert (first.retried, first.left, len(at.emulator.requests)) == (1, 1, 1)
    assert ((await at.flush()).retried, (await at.flush(everything=True, timeout_s=0)).retried) == (0, 1)
    assert (await at.flush(after=timedelta(seconds=2))).delivered == 1


async def test_a_limited_account_waits_as_a_whole(store_url: str, caplog: Caplog) -> None:
    # F-319: each of its customers was sent, and met the same limit.
    async with desk(store_url, shards=1) as at:
        await at.use("mira", requests=1)
        assert (await at.flush(everything=True)).delivered == 1
        await at.use("acme", "zeta", "bob", requests=1)
        at.emulator.fail_next("error", status=429)
        before = len(at.emulator.requests)
        report = await flusher_of(at.kit, at.transport, calls_at_once=1).flush(everything=True, timeout_s=0)
        assert (len(at.emulator.requests) - before, report.left) == (1, 3)
        assert "delivery to Stripe is paused, and goes on by itself: HTTP 429" in caplog.text
        at.clock.advance(timedelta(seconds=2))
        assert (await at.flush(everything=True)).delivered == 3


async def test_a_limited_account_waits_as_long_as_stripe_says(at: Desk) -> None:
    limited = answer(429, {"error": {"type": "invalid_request_error"}}, Retry_After="90")
    await at.use("acme", requests=6)
    async with answering(limited) as stand_in, aclosing_transport(stand_in.url) as way:
        flusher = flusher_of(at.kit, way)
        for seconds, asked in ((0, 1), (89, 1), (1, 2)):
            at.clock.advance(timedelta(seconds=seconds))
            await flusher.flush(everything=True, timeout_s=0)
            assert len(stand_in.asked) == asked


async def test_what_is_given_back_unsent_keeps_its_first_try(store_url: str) -> None:
    # F-140: it was sent again after 23 hours, as if Stripe could not have it.
    async with desk(store_url, shards=1) as at:
        await at.link("acme", "zeta")

        def stop_before_zeta(intents: Any) -> None:
            if intents[0].stripe_customer == "cus_zeta":
                steady.stop()

        steady = flusher_of(at.kit, WatchedTransport(at.transport, stop_before_zeta), calls_at_once=1)
        await at.use("mira", requests=1)
        assert (await steady.flush(everything=True)).delivered == 1
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("drop", when="before", times=1)
        await at.flush(everything=True, timeout_s=0)
        # As after many tries without an answer: it waits for longer than what has just been sealed.
        client: Any = (await at.kit.store.admin()).client
        outbox, intents = (at.kit.store.keys.shard(0, name) for name in ("outbox", "intents"))
        await client.zadd(outbox, {(await client.zrange(outbox, 0, -1))[0]: at.clock() * 1000 + 120_000})
        await at.kit.record("zeta", "requests", 8)
        at.clock.advance(timedelta(minutes=1))
        await steady.flush(everything=True, timeout_s=0)
        (left,) = [json.loads(data) for data in await client.hvals(intents) if b"cus_acme" in data]
        assert (left["state"], at.accepted("zeta"), at.accepted("acme")) == ("queued", 8, 0)
        assert int(left["first"]) == NOW.timestamp() * 1000
        at.clock.advance(timedelta(hours=24))
        before = len(at.emulator.requests)
        assert (await at.flush(everything=True, timeout_s=0)).parked == 1
        assert (len(at.emulator.requests), at.accepted("acme")) == (before, 0)


@pytest.mark.parametrize("status", [302, 429])
async def test_i6_a_foreign_refusal_is_not_resent_after_23_hours(at: Desk, status: int) -> None:
    # R4: a gateway that passes the request on and keeps the answer back had it billed anew each day.
    await at.use("acme", requests=6)
    page = answer(status, "<html>Blocked</html>")
    async with answering(page) as proxy, aclosing_transport(proxy.url) as way:
        flusher = flusher_of(at.kit, way)
        await flusher.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(hours=22))
        await flusher.flush(everything=True, timeout_s=0)
        assert len(proxy.asked) == 2
        at.clock.advance(timedelta(hours=2))
        report = await flusher.flush(everything=True, timeout_s=0)
        assert (report.parked, len(proxy.asked)) == (1, 2)
        assert "more than 23 hours ago" in report.undelivered[0].why


async def test_with_clocks_apart_delivery_waits(store_url: str, caplog: Caplog) -> None:
    async with desk(store_url, shards=1) as at:
        at.emulator.clock = lambda: at.clock() - 420
        await at.use("acme", "zeta", requests=6)
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
            await at.record_and_flush(10, timeout_s=0)
        usage = (await at.kit.usage("acme"))["meters"]["requests"]
        assert (usage["dead"], usage["parked"]) == (0, 0)
        at.clock.advance(timedelta(minutes=15))
        at.emulator.clock = at.clock
        assert (await at.flush(everything=True, timeout_s=120)).is_complete
    assert at.accepted("acme") == 80


async def meter_problems(at: Desk) -> list[str]:
    return [one.problem for one in await findings(at.kit, "stripe") if one.problem[:6] == "meter "]


async def test_a_meter_with_other_payload_keys_parks_its_usage(store_url: str, caplog: Caplog) -> None:
    # F-53: every unit was dead.
    key = {"authorization": f"Bearer {STRIPE_KEY}"}
    async with (
        desk(store_url, events=["ai_tokens"]) as at,
        httpx.AsyncClient(base_url=at.url, headers=key) as http,
    ):
        form = {
            "event_name": "api_requests",
            "display_name": "requests",
            "default_aggregation[formula]": "sum",
            "customer_mapping[event_payload_key]": "user_id",
            "customer_mapping[type]": "by_id",
            "value_settings[event_payload_key]": "amount",
        }
        made = (await http.post("/v1/billing/meters", data=form)).json()
        first, second = await meter_problems(at)
        assert first.startswith(f"meter requests: the meter {made['id']} at Stripe has customer_mapping")
        assert "value_settings.event_payload_key amount; the events have value" in second
        await at.use("acme", "zeta", "yara", requests=6)
        report = await at.kit.flush(everything=True, timeout_s=0)
        assert (report.parked, report.dead, report.left, report.is_complete) == (3, 0, 0, False)
        undelivered = {(one.customer, one.meter, one.quantity) for one in report.undelivered}
        assert undelivered == {(customer, "requests", 6) for customer in ("acme", "zeta", "yara")}
        assert "payload[user_id]" in report.undelivered[0].why
        (alert,) = alerts(caplog)
        assert "api_requests is parked" in alert
        at.emulator.add_meter("pdf_pages")
        await http.post(f"/v1/billing/meters/{made['id']}/deactivate")
        at.emulator.add_meter("api_requests")
        assert await meter_problems(at) == []


@pytest.mark.parametrize(
    ("status", "body"), [(400, "<html>Bad Request</html>"), (404, "{}"), (200, "<html>Log in</html>")]
)
async def test_a_proxys_page_ends_nothing_and_is_met_once(
    at: Desk, status: int, body: str, caplog: Caplog
) -> None:
    # F-50: a proxy's page killed every intent for good; F-56: one alert, one probe, a growing delay.
    customers = [f"c{n}" for n in range(20)]
    await at.use(*customers, requests=6)
    async with answering(answer(status, body)) as proxy, aclosing_transport(proxy.url) as way:
        flusher = flusher_of(at.kit, way)
        asked: list[int] = []
        for _ in range(40):
            report = await flusher.flush(everything=True, timeout_s=0)
            assert (report.dead, report.parked, report.delivered) == (0, 0, 0)
            asked.append(len(proxy.asked))
            at.clock.advance(timedelta(seconds=30))
    # After 1, 2, 4, 8 minutes; 20 minutes in all.
    assert (asked[0], asked[-1], len(alerts(caplog))) == (1, 5, 1)
    assert (await at.flush(everything=True, after=timedelta(minutes=20))).is_complete
    assert [at.accepted(customer) for customer in customers] == [6] * 20


async def test_a_revoked_key_costs_one_call_and_one_alert(at: Desk, caplog: Caplog) -> None:
    # F-56: one call and one line for each intent and pass.
    await at.use(*(f"c{n}" for n in range(60)), requests=6)
    at.emulator.fail_next("error", status=401, times=None)
    for _ in range(5):
        await at.flush(everything=True, timeout_s=0)
    assert (len(at.emulator.requests), len(alerts(caplog))) == (1, 1)
    at.emulator.clear_faults()
    assert (await at.flush(everything=True, after=timedelta(seconds=61))).is_complete


async def test_a_missing_meter_costs_one_call_after_its_pause(store_url: str) -> None:
    # R18: all that had waited was sent at once, to be refused again.
    async with desk(store_url, events=["ai_tokens"]) as at:
        await at.link("first")
        await at.kit.record("first", "tokens", 101)
        assert (await at.flush(everything=True)).delivered == 1  # Nothing waits for a first call any more.
        await at.use(*(f"c{number}" for number in range(30)), requests=6)
        await at.flush(everything=True, timeout_s=0)
        for minutes in (1, 2):
            at.clock.advance(timedelta(minutes=minutes, seconds=1))
            before = len(at.emulator.requests)
            report = await at.flush(everything=True, timeout_s=0)
            assert (len(at.emulator.requests) - before, report.left) == (1, 30)
        at.emulator.add_meter("api_requests")
        at.clock.advance(timedelta(minutes=4, seconds=1))
        before = len(at.emulator.requests)
        assert ((await at.flush(everything=True)).delivered, len(at.emulator.requests) - before) == (30, 30)


STREAM = "/v2/billing/meter_event_stream"
SESSION = "/v2/billing/meter_event_session"


def stream_desk(store_url: str, **settings: Any) -> AbstractAsyncContextManager[Desk]:
    return desk(store_url, stripe_transport="v2-stream", **settings)


def calls(at: Desk, path: str = STREAM) -> list[int]:
    return [request.status for request in at.emulator.requests if request.path == path]


async def record_some(at: Desk, count: int) -> dict[str, int]:
    used = {f"c{number}": number + 1 for number in range(count)}
    for customer, quantity in used.items():
        await at.use(customer, requests=quantity)
    return used


async def test_a_hundred_intents_go_in_a_call(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.delivery.sender._EVENTS_PER_S", 250)
    async with stream_desk(store_url, shards=1) as at:
        used = await record_some(at, 130)
        began = monotonic()
        report = await at.kit.flush(everything=True)  # The setting chooses the stream.
        assert (report.sealed, report.delivered, report.left) == (130, 130, 0)
        assert {customer: at.accepted(customer) for customer in used} == used
        # Events are paced: the third call waits until the hundred of the second had their time.
        assert monotonic() - began >= 0.4
        # The first call of a process is alone, and of one event.
        assert (calls(at, SESSION), calls(at)) == ([200], [200] * 3)
        usage = (await at.kit.usage("c7"))["meters"]["requests"]
        assert (usage["delivered"], usage["queued"] + usage["leased"]) == (8, 0)
    assert len(at.emulator.events) == 130


SLOW: Final[Mapping[str, Any]] = {"action": "delay", "when": "before", "delay_s": 0.05}


@pytest.mark.parametrize(
    ("fault", "skip"), [(fault, nth % 2) for nth, fault in enumerate([*FAULTS, KEY_REFUSED, SLOW])]
)
async def test_i6_each_of_a_batch_is_counted_once_despite_faults(
    store_url: str, fault: Mapping[str, Any], skip: int
) -> None:
    async with stream_desk(store_url, shards=1) as at:
        at.emulator.fail_next(**fault, skip=skip, times=1 if fault["action"] == "delay" else 2)
        used = await record_some(at, 7)
        await at.flush_times(5, every=timedelta(minutes=2))
        assert at.emulator.faults == ()
        usage = [(await at.kit.usage(customer))["meters"]["requests"] for customer in used]
    assert ({customer: at.accepted(customer) for customer in used}, len(at.emulator.events)) == (used, 7)
    assert [line["delivered"] for line in usage] == list(used.values())
    assert {line["queued"] + line["leased"] for line in usage} == {0}


async def test_a_batch_that_is_refused_for_one_event_loses_only_that(store_url: str) -> None:
    async with stream_desk(store_url, shards=1) as at:
        used = await record_some(at, 40)
        at.emulator.fail_next("error", status=400, customer="cus_c13", message="Too odd.", times=None)
        report = await at.flush(everything=True)
        assert (report.delivered, report.dead) == (39, 1)
        assert [(one.customer, one.quantity) for one in report.undelivered] == [("c13", 14)]
        assert "Too odd." in report.undelivered[0].why
        # By halves: 40, 20, 10, 5, 2 or 3, 1, and what is beside each.
        assert len(calls(at)) <= 14
    assert {customer: at.accepted(customer) for customer in used} == used | {"c13": 0}
    assert len(at.emulator.events) == 39


OF_STREAMS: Final[tuple[Mapping[str, Any], ...]] = (
    *FAULTS,
    KEY_REFUSED,
    {"action": "error", "when": "before", "status": 400, "customer": "cus_acme"},
    {"action": "drop", "when": "before", "path": SESSION},
    {"action": "error", "when": "before", "status": 500, "path": SESSION},
)


@pytest.mark.dear("25 rounds of flushes with faults")
@pytest.mark.parametrize("seed", [0, whole(1), whole(2)])
async def test_i6_after_faults_of_streams_stripe_has_what_was_recorded(store_url: str, seed: int) -> None:
    random = Random(seed)  # noqa: S311 - a schedule, not a secret
    customers = ("acme", "zeta", "mira")
    recorded: dict[str, int] = dict.fromkeys(customers, 0)
    async with stream_desk(store_url, shards=2) as at:
        await at.link(*customers)
        for _ in range(25):
            for customer in customers:
                quantity = random.randrange(1, 50)
                await at.kit.record(customer, "requests", quantity)
                recorded[customer] += quantity
            if random.random() < 0.6:
                at.emulator.fail_next(**random.choice(OF_STREAMS))
            if random.random() < 0.1:
                at.emulator.end_sessions()
            await at.flush(everything=random.random() < 0.3, timeout_s=0)
            at.clock.advance(timedelta(seconds=random.choice([20, 60, 301, 900])))
        at.emulator.clear_faults()
        at.clock.advance(timedelta(hours=27))  # What may have been taken before it was refused is compared.
        await at.flush_times(4, every=timedelta(minutes=11))
        report = await at.flush(everything=True)
        for one in report.undelivered:
            # The refusal that was of contents: Stripe has nothing of it.
            assert (one.customer, one.state) == ("acme", "dead")
            recorded[one.customer] -= one.quantity
        assert report.left == 0
    assert {customer: at.accepted(customer) for customer in customers} == recorded
    stamps = [(event.customer, event.meter, event.timestamp) for event in at.emulator.events]
    assert len(set(stamps)) == len(stamps)
