"""One customer, meter or refusal does not hold up the others; what is left is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pkgutil import resolve_name
from time import monotonic
from typing import Any

import pytest
from pydantic import SecretStr

from drivers.counters import put_head
from drivers.delivery import (
    CATALOG,
    NOW,
    PLANS,
    Desk,
    RunningClock,
    aclosing_transport,
    alerts,
    desk,
    flusher_of,
    kit_for,
    until,
)
from drivers.store_keys import meter_token, shard_of
from faults.refusals import loop_clock
from meterkit import CustomerError, MeterKit, StoreError
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.fixed_answers import Asked, answer, answering
from servers.stores import Server

pytestmark = pytest.mark.anyio

JULY = datetime(2031, 7, 1, tzinfo=UTC)
OTHERS = [f"c{n}" for n in range(5)]
# The failing customer is in the first shard, and the others are behind it.
FAILING = next(f"failing{n}" for n in range(200) if shard_of(f"failing{n}", 16) == 0)
HEALTHY = [name for name in (f"c{n}" for n in range(14)) if shard_of(name, 16) > 0][:12]


@pytest.mark.parametrize(
    "broken", ["counters are a text", "pending is no number", "totals are a text", "state"]
)
async def test_a_customer_with_broken_keys_is_set_aside_and_named(
    store_url: str, valkey: Server, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    # F-52: the shard stood still for ever, sealing and sending.
    async with desk(store_url, shards=1) as at:
        await at.use("acme", "zeta", "mira", requests=6)
        keys = at.kit.store.keys.customer("mira")
        if broken == "pending is no number":
            valkey.command("HSET", keys.counters, meter_token("requests") + "m", "1e5")
        elif broken == "state":
            valkey.command("HSET", keys.state, "data", "{", "rev", "2:beef")
            put_head(valkey, keys.counters, r="2:beef")
        else:
            key = keys.counters if broken.startswith("counters") else keys.totals
            valkey.command("SET", key, "text", "EX", 100)
        for _ in range(3):
            report = await at.flush(everything=True, timeout_s=0)
            assert [unsealed.customer for unsealed in report.unsealed] == ["mira"]
            assert not report.is_complete
        assert [at.accepted(customer) for customer in ("acme", "zeta", "mira")] == [6, 6, 0]
        (said,) = alerts(caplog)
        assert "'mira'" in said
        assert (await at.flush()).unsealed == []  # Not before ten minutes have passed.


@pytest.mark.parametrize("name", ["dirty", "outbox"])
async def test_a_damaged_key_of_a_shard_delays_no_other(at: Desk, name: str) -> None:
    await at.use("acme", "bolt", requests=6)
    keys, admin = at.kit.store.keys, await at.kit.store.admin()
    assert keys.customer("acme").shard != keys.customer("bolt").shard
    key = keys.shard(keys.customer("acme").shard, name)
    await admin.ask(admin.client.set(key, "of another program", px=600_000))
    with pytest.raises(StoreError):
        await at.flush(everything=True, timeout_s=0, after=timedelta(minutes=10))
    assert [at.accepted(customer) for customer in ("acme", "bolt")] == [0, 6]


async def test_a_damaged_former_meter_delays_no_usage(at: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await at.use("acme", requests=6)
    admin = await at.kit.store.admin()
    await admin.ask(admin.client.hset(at.kit.store.keys.events, "gone", "x"))
    await at.flush(everything=True, timeout_s=0, after=timedelta(minutes=10))
    assert at.accepted("acme") == 6
    assert [line.difference for line in await at.kit.reconcile("acme")] == [0]
    assert "what is stored of meter b'gone' cannot be read" in caplog.text


@pytest.mark.parametrize("broken", ["state", "totals", "totals of a final invoice"])
async def test_keys_that_break_while_usage_waits_delay_no_other(
    store_url: str, valkey: Server, broken: str
) -> None:
    async with desk(store_url, shards=1) as at:
        await at.use("acme", "zeta", "mira", requests=6)
        at.clock.advance(timedelta(minutes=6))
        assert await at.seal() == 3
        keys = at.kit.store.keys.customer("mira")
        if broken == "totals of a final invoice":
            client = (await at.kit.store.admin()).client
            (first, *others) = await client.hkeys(keys.totals)
            period = first.decode().partition("|")[0]
            ended = {f"{period}|{name}": at.kit.store.now_ms() for name in "ef"}
            await client.hset(keys.totals, mapping={**dict.fromkeys([first, *others], "many"), **ended})
        else:
            valkey.command("SET", keys.state if broken == "state" else keys.totals, "text", "EX", 100)
        at.clock.advance(timedelta(minutes=6))

        async def sync(_customer: str) -> None:
            raise AssertionError("none has a subscription")

        await flusher_of(at.kit, at.transport, look=sync).flush(everything=True, timeout_s=0)
        assert [at.accepted(customer) for customer in ("acme", "zeta")] == [6, 6]
        assert at.accepted("mira") == (6 if broken == "state" else 0)


@pytest.fixture
async def newer(at: Desk) -> AsyncGenerator[MeterKit]:
    """A kit of a plans file without tokens, of which acme has used 150."""
    catalog = loads(PLANS.replace("tokens:", "words:").replace("ai_tokens", "ai_words"))
    await at.link("acme")
    await at.kit.record("acme", "tokens", 150)
    async with kit_for(at.store_url, at.url, clock=at.clock, catalog=catalog) as kit:
        yield kit


async def test_a_removed_meter_is_delivered_by_its_event_name(at: Desk, newer: MeterKit) -> None:
    # F-22: never sealed, `left 1` without a reason.
    gone = (await newer.usage("acme"))["meters"]["tokens"]
    assert (gone["recorded"], gone["pending"], gone["remaining"]) == (150, 50, 0)
    assert (await newer.flush(everything=True)).is_complete
    assert "tokens" not in (await newer.usage("acme"))["meters"]
    await newer.customers.delete("acme")
    assert at.accepted("acme", "ai_tokens") == 50


async def test_usage_without_an_event_name_is_named(valkey: Server, newer: MeterKit) -> None:
    # F-22
    valkey.command("DEL", "mk:events")
    report = await newer.flush(everything=True, timeout_s=0)
    (unsealed,) = report.unsealed
    assert (unsealed.customer, unsealed.quantity) == ("acme", 50)
    assert (unsealed.meter, report.is_complete) == (meter_token("tokens"), False)
    assert (await newer.usage("acme"))["meters"][meter_token("tokens")]["pending"] == 50


async def test_what_is_dead_or_parked_is_named_until_it_is_dealt_with(at: Desk) -> None:
    # F-54: the next flush exited 0, and the customer could be deleted.
    await at.kit.customers.link("acme", "cus_unknown", force=True)
    assert (await at.record_and_flush(6)).dead == 1
    again = await at.flush(everything=True)
    assert (again.dead, again.left, again.is_complete) == (0, 0, False)
    (dead,) = again.undelivered
    assert (dead.customer, dead.meter, dead.quantity, dead.state) == ("acme", "requests", 6, "dead")
    assert "No such customer" in dead.why
    await at.kit.customers.unlink("acme")  # Otherwise the deletion fetches its subscription.
    with pytest.raises(CustomerError, match="parked or dead"):
        await at.kit.customers.delete("acme")


async def test_a_plain_flush_delivers_what_it_seals(store_url: str) -> None:
    # F-55: hidden by a clock that stood still.
    async with desk(store_url, clock=RunningClock(), flush_interval=0.05) as at:
        await at.use("acme", requests=3)
        await asyncio.sleep(0.06)
        report = await at.kit.flush()
        assert (report.sealed, report.delivered, report.left) == (1, 1, 0)


async def test_many_intents_of_one_customer_do_not_delay_the_others(store_url: str) -> None:
    # F-56: they filled the page; one of them was sent in each pass.
    async with desk(store_url, shards=1) as at:
        await at.link("big")
        # A refused key is met once a flush, not by each intent: so they are sealed, and hardly any is sent.
        at.emulator.fail_next("error", status=401, times=None)
        sealing = flusher_of(at.kit, at.transport)
        for _ in range(40):
            await at.kit.record("big", "requests", 1)
            await sealing.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=1))
        at.emulator.clear_faults()
        at.emulator.fail_next("error", status=429, customer="cus_big", times=None)
        await at.use(*OTHERS, requests=1)
        at.clock.advance(timedelta(minutes=20))
        before = len(at.emulator.requests)
        report = await at.flush()
        assert [at.accepted(customer) for customer in OTHERS] == [1] * 5
        first = [request.status for request in at.emulator.requests[before : before + 16]]
        assert (first.count(200), report.left > 25) == (5, True)
        at.emulator.clear_faults()
        assert ((await at.flush(after=timedelta(minutes=20))).left, at.accepted("big")) == (0, 40)


@pytest.mark.parametrize("transport", ["v1", "v2-stream"])
async def test_a_customer_stripe_does_not_answer_delays_no_other(store_url: str, transport: str) -> None:
    # F-124: her intents were the oldest, so each probe was one of hers.
    async with desk(store_url, shards=1, stripe_transport=transport) as at:
        await at.link("slow")
        at.emulator.fail_next("error", status=503, customer="cus_slow", times=None)
        for _ in range(3):
            await at.kit.record("slow", "requests", 1)
            await at.flush(after=timedelta(minutes=6))
        await at.use(*OTHERS, requests=1)
        at.clock.advance(timedelta(minutes=6))
        # Another process, which has not heard of anybody.
        begun = flusher_of(at.kit, at.transport)
        for _ in range(3):
            await begun.flush()
            at.clock.advance(timedelta(seconds=5))
        assert [at.accepted(customer) for customer in OTHERS] == [1] * 5
        at.emulator.clear_faults()
        at.clock.advance(timedelta(minutes=20))
        await begun.flush()
        assert at.accepted("slow") == 3


async def test_suspects_of_all_shards_are_sent_in_one_flush(store_url: str) -> None:
    slow = [f"slow{number}" for number in range(4)]
    async with desk(store_url, shards=16) as at:
        assert len({at.kit.store.keys.customer(name).shard for name in slow}) > 2
        # First those that pass: a failure of the first call of all would stop the others for a while.
        await at.use(*OTHERS, requests=1)
        await at.flush(after=timedelta(minutes=6))
        await at.use(*slow, requests=1)
        for name in slow:
            at.emulator.fail_next("error", status=503, customer=f"cus_{name}", times=None)
        await at.flush(after=timedelta(minutes=6))
        assert [at.accepted(name) for name in (*OTHERS, *slow)] == [1] * 5 + [0] * 4
        at.emulator.clear_faults()
        await at.flush(after=timedelta(minutes=20))
        assert [at.accepted(name) for name in slow] == [1] * 4


async def flush_in_a_new_process(at: Desk, *users: str, **settings: Any) -> int:
    """Flush six minutes after a use, as a cron job does; how many healthy customers are done."""
    for customer in users:
        await at.kit.record(customer, "requests", 1)
    at.clock.advance(timedelta(minutes=6))
    async with kit_for(at.store_url, at.url, clock=at.clock, **settings) as kit:
        await kit.flush()
    return [at.accepted(customer) for customer in HEALTHY].count(1)


@pytest.mark.parametrize(
    ("transport", "shards", "fault"),
    [("v1", 1, {"action": "error", "status": 503}), ("v2-stream", 16, {"action": "drop", "when": "after"})],
    ids=["503", "drop-after"],
)
async def test_a_failing_customer_delays_no_other_across_processes(
    store_url: str, transport: str, shards: int, fault: dict[str, Any]
) -> None:
    # F-229: `meterkit flush` by cron: which customer fails was known to a process, and not to the next.
    settings: dict[str, Any] = {"shards": shards, "stripe_transport": transport}
    async with desk(store_url, **settings) as at:
        await at.link(FAILING, *HEALTHY)
        at.emulator.fail_next(**fault, customer=f"cus_{FAILING}", times=None)
        for _ in range(2):
            await flush_in_a_new_process(at, FAILING, **settings)
        assert await flush_in_a_new_process(at, FAILING, *HEALTHY, **settings) == len(HEALTHY)
        at.emulator.clear_faults()
        for _ in range(2):
            await flush_in_a_new_process(at, **settings)
        assert at.accepted(FAILING) == 3


async def test_told_to_stop_it_waits_for_one_call_and_no_more(store_url: str) -> None:
    # F-56: alive 60 s after SIGTERM while Stripe hung.
    customers = [f"c{number}" for number in range(40)]
    async with desk(store_url, clock=RunningClock(), shards=1) as at:
        await at.use(*customers, requests=2)
        at.emulator.fail_next("hang", when="after", skip=1, times=None)
        async with aclosing_transport(at.url, timeout_s=1.0) as transport:
            flusher = flusher_of(at.kit, transport, timeout_s=1.0, calls_at_once=4)
            running = asyncio.create_task(flusher.flush(everything=True))
            await until(lambda: len(at.emulator.events) >= 5)
            async with loop_clock() as passed_s:
                flusher.stop()
                await running
                assert passed_s() < 5
            assert len(at.emulator.events) < 12
        at.emulator.clear_faults()
        assert (await at.kit.flush(everything=True, timeout_s=120)).is_complete
    assert [at.accepted(customer) for customer in customers] == [2] * 40


async def test_a_corrected_link_redirects_unsent_usage(at: Desk) -> None:
    # F-57
    await at.link("acme")
    at.emulator.add_customer("cus_right")
    await at.kit.record("acme", "requests", 5)
    at.emulator.fail_next("error", status=401)  # Certainly refused.
    await at.flush(everything=True, timeout_s=0)
    await at.kit.record("acme", "requests", 2)
    assert (await at.kit.customers.unlink("acme")).stripe_customer is None
    usage = (await at.kit.usage("acme"))["meters"]["requests"]
    assert (usage["unlinked"], usage["queued"], usage["pending"]) == (7, 0, 0)
    assert (await at.flush(everything=True, timeout_s=0)).unlinked == ["acme"]
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("acme", "cus_right", force=True)
    assert (await at.flush(everything=True, after=timedelta(minutes=2))).is_complete
    assert (at.accepted("right"), at.accepted("acme")) == (7, 0)


async def test_no_minute_of_a_stripe_customer_names_two_intents(at: Desk) -> None:
    # F-57
    await at.link("old")
    await at.kit.record("new", "requests", 3)
    for _ in range(3):
        await at.record_and_flush(1, "old", timeout_s=0)
    await at.kit.record("old", "requests", 1)
    at.clock.set(JULY + timedelta(minutes=5))
    for customer in ("new", "old"):
        await at.kit.record(customer, "requests", 1)
    await at.flush(everything=True, timeout_s=0)
    await at.kit.customers.unlink("old")
    await at.kit.customers.link("new", "cus_old", force=True)
    assert (await at.flush(everything=True, timeout_s=120)).is_complete
    stamps = [event.timestamp for event in at.emulator.events]
    assert len(stamps) == len(set(stamps)) == 7
    assert at.accepted("old") == 9


class TimedAnswers:
    """Stripe's answers, and when each call began."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def __call__(self, asked: Asked) -> bytes:
        self.began.append(monotonic())
        identifier = next(part[11:] for part in asked.body.split("&") if part.startswith("identifier="))
        return answer(200, {"identifier": identifier})


async def test_calls_are_paced(at: Desk) -> None:
    # F-87: pacing and the sandbox's rate could be left out.
    timed = TimedAnswers()
    await at.use(*(f"c{n}" for n in range(30)), requests=1)
    async with answering(timed) as stand_in, aclosing_transport(stand_in.url) as way:
        # From before the first call: that may reach Stripe late on a busy machine, and the last one in time.
        before = monotonic()
        await flusher_of(at.kit, way, calls_per_s=100.0).flush(everything=True)
    assert len(timed.began) == 30
    assert timed.began[-1] - before >= 0.28


@pytest.mark.parametrize(("key", "rate"), [("sk_test_1", 20.0), ("sk_live_1", 800.0)])
async def test_a_sandbox_has_a_rate_of_its_own(
    store_url: str, key: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # F-87
    given: list[dict[str, Any]] = []

    make = resolve_name("meterkit.delivery.flusher.Flusher")

    def note(*args: Any, **options: Any) -> Any:
        given.append(options)
        return make(*args, **options)

    monkeypatch.setattr("meterkit.delivery.flusher.Flusher", note)
    async with kit_for(store_url, "http://127.0.0.1:1", clock=Clock(NOW), catalog=CATALOG) as kit:
        live = kit.settings.model_copy(update={"stripe_api_base": None, "stripe_api_key": SecretStr(key)})
        monkeypatch.setattr(kit, "settings", live)
        async with kit.flusher():
            assert given[0]["calls_per_s"] == rate


async def test_a_lease_is_renewed_before_a_call_that_could_outlive_it(store_url: str, valkey: Server) -> None:
    # F-87: neither the check before a send nor the renewal was seen by a test.
    timed = TimedAnswers()

    def lost(asked: Asked) -> bytes:
        if len(timed.began) == 2:
            valkey.command("SET", "mk:{0}:lease", "another", "PX", 60_000)
        return timed(asked)

    async with (
        desk(store_url, shards=1) as at,
        answering(lost) as stand_in,
        aclosing_transport(stand_in.url) as way,
    ):
        await at.use(*(f"c{n}" for n in range(6)), requests=1)
        careful = flusher_of(at.kit, way, timeout_s=60.0, calls_at_once=1)
        await careful.flush(everything=True, timeout_s=0)
        assert len(timed.began) == 3  # The one that was under way when it was lost.
        valkey.command("DEL", "mk:{0}:lease")
        assert (await careful.flush(everything=True)).left == 0


async def test_retries_come_ever_later(at: Desk) -> None:
    # F-87: the growth of the delay was seen by no test.
    await at.use("acme", requests=6)
    at.emulator.fail_next("error", status=429, times=None)
    await at.flush(everything=True, timeout_s=0)
    for _ in range(120):
        await at.flush(after=timedelta(seconds=10))
    # 1, 2, 4 … 512, 600 s, each between half of that and all of it.
    assert 8 <= len(at.emulator.requests) <= 13
