"""``period.summary`` and ``usage.spike``: found by watches, one process each, and told once."""
# Internals: a watch looks when the test says so.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import time
from types import SimpleNamespace
from typing import Any, Final

import pytest

from drivers import subscribed_customer as subscribed
from drivers.audit_database import AuditRow, drain_all, insert_rows, to_ms
from drivers.many_customers import copy_customer
from drivers.messages import NOW, PLANS, SECRET, Mailbox, Receiver, any_event, kit_of, pass_over, receiver
from drivers.synthetic_usage import history
from meterkit import MeterKit, PeriodSummary
from meterkit.catalog import loads
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import HOUR_MS
from meterkit.errors import SettingsError, StoreError
from meterkit.insights.audit.async_database import AuditDatabase
from meterkit.notify.spikes import (
    FLOOR,
    CustomerSpike,
    FourWeekPace,
    Spike,
    SpikesToday,
    SpikeWatch,
    find_spike,
    project_spike,
)
from meterkit.notify.storage_and_period_watches import LeasedWatch, SummaryWatch, notify_once
from meterkit.store.customer_notices import publish_notice, read_notices
from meterkit.store.task_lease import TaskLease
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

SUMMARIES: Final = (
    PLANS.replace("[usage.threshold, payment.failed]", "[period.summary]")
    .replace("meters:\n", "meters:\n  tokens: {{unit: token}}\n", 1)
    .replace(
        "included: 10, overage: deny, warn_at: [50, 100]",
        "included: 10, overage: {{bill: {{per: 1, amount_cents: 12}}}}",
    )
    .replace("{{unit: request}}", "{{unit: request, stripe: {{event_name: requests}}}}")
)
EVENT: Final = "period.summary"
BEGIN: Final = datetime(2031, 5, 30, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> Clock:
    return Clock(BEGIN)


@pytest.fixture
async def kit(store_url: str, clock: Clock, box: Mailbox) -> AsyncGenerator[MeterKit]:
    async with kit_of(store_url, clock, plans=SUMMARIES, smtp_url=box.url) as opened:
        yield opened


def told(hook: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body)["data"] for _, body in hook.posts]


def watch_of(kit: MeterKit) -> SummaryWatch:
    return SummaryWatch(kit.store, any_event, pause_s=0)


async def look(kit: MeterKit, watch: SummaryWatch) -> None:
    await watch.check()
    await pass_over(kit, "webhook")


async def test_a_period_is_summed_up_once(hook: Receiver, box: Mailbox, kit: MeterKit, clock: Clock) -> None:
    watch = watch_of(kit)
    await look(kit, watch)
    await kit.record("acme", {"requests": 8, "tokens": 3})
    clock.set(datetime(2031, 6, 1, 0, 59, 59, tzinfo=UTC))
    await look(kit, watch)
    assert [] == hook.posts
    clock.advance(timedelta(seconds=2))
    for _ in range(2):
        await look(kit, watch)
        clock.advance(timedelta(hours=1))
    (first,) = (one["meters"] for one in told(hook))
    assert first["requests"] == {"used": 8, "overage": 0, "before": 0}
    hook.posts.clear()

    await kit.record("acme", "requests", 12)
    await kit.record("bolt", "tokens", 5)
    clock.set(datetime(2031, 7, 1, 2, tzinfo=UTC))
    await look(kit, watch)
    await look(kit, watch)
    summaries = {data["customer"]: data for data in told(hook)}
    assert ["acme", "bolt"] == sorted(data["customer"] for data in told(hook))
    assert summaries["acme"] == {
        "id": summaries["acme"]["id"],
        "customer": "acme",
        "at": "2031-07-01T02:00:00Z",
        "period_start": "2031-06-01T00:00:00Z",
        "period_end": "2031-07-01T00:00:00Z",
        "overage_cents": 24,
        "meters": {
            "tokens": {"used": 0, "overage": 0, "before": 3},
            "requests": {"used": 12, "overage": 2, "before": 8},
        },
    }
    assert {"tokens": {"used": 5, "overage": 0, "before": 0}} == summaries["bolt"]["meters"]
    await pass_over(kit, "email")
    (mail,) = [mail for mail in box.mails if "acme" in mail["To"] and "Jun" in mail["Subject"]]
    assert mail["Subject"] == "Your usage from 1 Jun 2031 to 30 Jun 2031"
    plain = mail.get_body(("plain",))
    assert plain is not None
    assert "- Requests: 12 requests, 2 of them beyond what your plan includes; 8 in the period before" in (
        plain.get_content()
    )
    assert "costs $0.24." in plain.get_content()


BY_MODEL: Final = SUMMARIES.replace(
    "{{bill: {{per: 1, amount_cents: 12}}}}", "{{bill: {{price: prices.calls}}}}"
).replace("plans:\n", 'prices: {{calls: {{default: 3 per 1, models: {{"small-*": 1 per 1}}}}}}\nplans:\n', 1)


async def test_units_at_a_price_by_model_are_summed_up_once(store_url: str, clock: Clock) -> None:
    """They stood beside their meter, as if they had been used besides."""
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=BY_MODEL) as kit:
        watch = watch_of(kit)
        await look(kit, watch)
        await kit.record("acme", "requests", 12)
        clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
        await look(kit, watch)
        (found,) = told(hook)
    assert found["meters"] == {"requests": {"used": 12, "overage": 2, "before": 0}}
    assert found["overage_cents"] == 6


async def test_no_period_is_left_out_beyond_the_first_page(
    hook: Receiver, kit: MeterKit, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are in the order in which periods end: that of acme ends after that of bolt."""
    monkeypatch.setattr("meterkit.notify.storage_and_period_watches._SUMMARIES_AT_ONCE", 1)
    watch, ends = watch_of(kit), datetime(2031, 6, 3, 12, tzinfo=UTC)
    await look(kit, watch)
    month = {"start_ms": ends.replace(month=5), "end_ms": ends, "anchor_ms": ends.replace(month=5)}
    begun = subscribed.subscription(**month, created_ms=ends.replace(month=5), plan="free")
    await subscribed.fetched(kit, begun)
    for customer in ("acme", "bolt"):
        await kit.record(customer, "requests", 8)
    clock.set(ends + timedelta(hours=2))
    await look(kit, watch)
    # Each customer's queue is delivered beside the others'.
    assert sorted(data["customer"] for data in told(hook)) == ["acme", "bolt"]


async def test_a_host_that_is_ahead_leaves_out_no_summary(store_url: str) -> None:
    async with kit_of(store_url, time) as kit:
        kit.store.clock = lambda: time() + 3 * 86_400
        await watch_of(kit).check()
        admin = await kit.store.admin()
        last = await admin.client.get(kit.store.keys.shard(HOOKS_SHARD, "period.summary:last"))
        # Periods that end by the host's tomorrow are still to come.
        assert int(last.split(b":")[0]) <= (time() - 3_600) * 1000


async def test_a_week_without_a_look_begins_anew(hook: Receiver, kit: MeterKit, clock: Clock) -> None:
    watch = watch_of(kit)
    await kit.record("acme", "requests", 8)
    clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
    await look(kit, watch)  # The first one ever: it tells nothing of what was before.
    await look(kit, watch)
    assert [] == hook.posts
    admin = await kit.store.admin()
    key = "mk:{0}:period.summary:last"
    clock.advance(timedelta(minutes=1))
    await look(kit, watch)
    kept = to_ms(datetime(2031, 6, 1, 1, 1, tzinfo=UTC))
    assert f"{kept}:".encode() == await admin.ask(admin.client.get(key))
    assert 6 * 86_400_000 < await admin.ask(admin.client.pttl(key)) <= 7 * 86_400_000


async def test_a_last_period_is_summed_up_at_its_plans_prices(store_url: str) -> None:
    clock = Clock(subscribed.NOW)
    plans = SUMMARIES.replace(
        "\nplans:\n",
        """
plans:
  pro: {{price: {{amount_cents: 2900, interval: month}},
    meters: {{requests: {{included: 100, overage: {{bill: {{per: 1, amount_cents: 30}}}}}}}}}}
""",
    )
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=plans) as kit:
        watch = watch_of(kit)
        await look(kit, watch)
        await subscribed.fetched(kit, subscribed.subscription(cancel_at_ms=subscribed.END))
        await kit.record("acme", "requests", 120)
        clock.set(subscribed.END + timedelta(minutes=1))
        await kit.record("acme", "requests", 3)
        clock.set(subscribed.END + timedelta(hours=1))
        await look(kit, watch)
        assert [] == hook.posts
        clock.advance(timedelta(seconds=1))
        await look(kit, watch)
        (data,) = told(hook)
        assert (data["period_start"], data["period_end"]) == ("2031-05-31T12:00:00Z", "2031-06-30T12:00:00Z")
        assert data["overage_cents"] == 20 * 30
        assert data["meters"] == {"requests": {"used": 120, "overage": 20, "before": 0}}
        clock.set(datetime(2031, 7, 1, 2, tzinfo=UTC))
        await look(kit, watch)
        _, rest = told(hook)
        assert rest["meters"] == {"requests": {"used": 3, "overage": 0, "before": 120}}


async def test_periods_that_end_within_an_hour_are_each_summed_up(
    hook: Receiver, kit: MeterKit, clock: Clock
) -> None:
    """A customer subscribes, and begins a yearly period half an hour later."""
    watch = watch_of(kit)
    await look(kit, watch)
    for used, days in ((8, 30), (9, 365)):
        await kit.record("acme", "requests", used)
        clock.advance(timedelta(minutes=30))
        begun, now = {"anchor_ms": clock.now(), "created_ms": BEGIN}, clock.now()
        sold = subscribed.subscription(start_ms=now, end_ms=now + timedelta(days=days), plan="free", **begun)
        await subscribed.fetched(kit, sold)
    for _ in range(4):
        clock.advance(timedelta(minutes=30))
        await look(kit, watch)
    found = [(data["period_start"][5:16], data["meters"]["requests"]["used"]) for data in told(hook)]
    assert found == [("05-01T00:00", 8), ("05-30T12:30", 9)]


async def test_f_345_only_ended_periods_are_read(
    kit: MeterKit, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hour the usage of all customers was read, and all keys were walked over."""
    watch, asked = watch_of(kit), list[str]()
    await watch.check()
    await kit.record("acme", "requests", 8)
    await kit.customers.set_plan("bolt", "free")
    ends = datetime(2031, 6, 3, 12, tzinfo=UTC)
    month = {"start_ms": ends.replace(month=5), "end_ms": ends, "anchor_ms": ends.replace(month=5)}
    for customer in ("core", "dusk"):
        begun = subscribed.subscription(**month, created_ms=ends.replace(month=5), plan="free")
        await subscribed.fetched(kit, begun, customer=customer)
    for customer in ("bolt", "core", "dusk"):
        await kit.record(customer, "requests", 8)
    clock.set(ends - timedelta(hours=2))
    await watch.check()
    read = kit.store.usage_of_many

    async def reading(customers: Sequence[str], **options: Any) -> Any:
        asked.extend(customers)
        return await read(customers, **options)

    monkeypatch.setattr(kit.store, "usage_of_many", reading)
    monkeypatch.setattr("meterkit.redis.admin.Admin.scan", None)
    clock.set(ends - timedelta(minutes=1))
    await watch.check()
    assert asked == []
    clock.set(ends + timedelta(minutes=30))
    await watch.check()
    assert {*asked} == {"core", "dusk"}
    assert (await published(kit, EVENT)) == ["acme", "bolt"]
    clock.set(ends + timedelta(hours=2))
    await watch.check()
    assert (await published(kit, EVENT)) == ["core", "dusk"]


async def test_f_345_several_are_summed_up_at_a_time(
    store_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten a second of all shards: 100,000 customers took three hours."""
    running = most = 0
    pauses: list[float] = []

    async def publish(store: Any, customer: str, kind: str, data: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await publish_notice(store, customer, kind, data)
        running -= 1

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    watches = "meterkit.notify.storage_and_period_watches"
    monkeypatch.setattr(f"{watches}.publish_notice", publish)
    monkeypatch.setattr(f"{watches}.asyncio", SimpleNamespace(sleep=pause))
    async with kit_of(store_url, clock, plans=SUMMARIES, shards=16) as kit:
        watch = SummaryWatch(kit.store, any_event)
        await watch.check()
        await kit.record("acme", "requests", 8)
        names = ["acme", *await copy_customer(kit, "acme", 120)]
        clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
        await watch.check()
        shards = Counter(kit.store.keys.customer(name).shard for name in names)
        assert await published(kit, EVENT) == sorted(names)
    assert 1 < most <= 8
    # Ten a second of each shard.
    assert max(shards.values()) <= round(10 * sum(pauses)) < len(names) / 4


async def published(kit: MeterKit, event: str) -> list[str]:
    """Customers of the events that were not read yet, sorted."""
    found: list[str] = []
    for shard in range(kit.store.keys.shards):
        while notices := await read_notices(kit.store, shard, [event]):
            found += [notice.customer for notice in notices]
    return sorted(found)


async def test_a_lost_lease_ends_a_pass(kit: MeterKit, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.notify.storage_and_period_watches._SUMMARIES_AT_ONCE", 1)
    watch, admin = watch_of(kit), await kit.store.admin()
    lease = kit.store.keys.shard(HOOKS_SHARD, "period.summary:lease")
    await watch.check()
    for customer in ("acme", "bolt", "core"):
        await kit.record(customer, "requests", 8)
    clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
    asked: list[str] = []

    async def pass_on(store: Any, customer: str, kind: str, data: Any) -> None:
        """Tell one customer so slowly that another process has begun meanwhile."""
        asked.append(customer)
        await publish_notice(store, customer, kind, data)
        await admin.ask(admin.client.delete(lease))
        assert await TaskLease(store, lease, lasts_ms=60_000).acquire()

    monkeypatch.setattr("meterkit.notify.storage_and_period_watches.publish_notice", pass_on)
    for told_until_now in (["acme"], ["acme", "bolt"], ["acme", "bolt", "core"]):
        await admin.ask(admin.client.delete(lease))
        await watch.check()
        assert asked == told_until_now


@pytest.mark.parametrize("damage", ["JSONDecodeError", "StoreError"])
async def test_a_damaged_customer_keeps_no_other_from_being_told(
    hook: Receiver, kit: MeterKit, clock: Clock, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    watch = watch_of(kit)
    await look(kit, watch)
    for customer in ("acme", "bolt", "core"):
        await kit.record(customer, "requests", 8)
    admin = await kit.store.admin()
    keys = kit.store.keys.customer("bolt")
    if damage == "StoreError":
        await admin.ask(admin.client.set(keys.counters, "of another program", px=600_000))
    else:
        await admin.ask(admin.client.hset(keys.state, "data", "x"))
    clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
    await look(kit, watch)
    assert ["acme", "core"] == sorted(data["customer"] for data in told(hook))
    assert f"no period.summary for customer 'bolt': the stored data cannot be read: {damage}" in caplog.text


async def looks(*lookouts: LeasedWatch) -> int:
    found: list[LeasedWatch] = []
    for lookout in lookouts:

        async def look(one: LeasedWatch = lookout) -> None:
            found.append(one)

        await lookout.run_once(look)
    return len(found)


async def test_one_of_two_processes_looks_for_an_event_that_is_wanted(store_url: str) -> None:
    async with kit_of(store_url, Clock(NOW)) as kit:
        wanted: list[str] = []
        assert 0 == await looks(LeasedWatch(kit.store, EVENT, wanted.__contains__))
        wanted.append(EVENT)
        both = [LeasedWatch(kit.store, EVENT, wanted.__contains__) for _ in range(2)]
        assert (await looks(*both), await looks(LeasedWatch(kit.store, "usage.spike", any_event))) == (1, 1)


async def test_a_notice_is_repeated_after_two_days_without_a_call(store_url: str) -> None:
    clock, made = Clock(NOW), 0
    async with kit_of(store_url, clock, shards=1) as kit:

        async def make() -> Mapping[str, Any] | None:
            nonlocal made
            made += 1
            return {"id": str(made)}

        async def nothing() -> None:
            return None

        async def told() -> list[str]:
            return [notice.data["id"] for notice in await read_notices(kit.store, 0, [EVENT])]

        await told()
        await notify_once(kit.store, "acme", EVENT, "a", nothing)
        assert [] == await told()
        await notify_once(kit.store, "acme", EVENT, "a", make)
        for _ in range(3):
            clock.advance(timedelta(days=2))
            await notify_once(kit.store, "acme", EVENT, "a", make)
        await notify_once(kit.store, "bolt", EVENT, "b", make)
        assert ["1", "2"] == await told()
        clock.advance(timedelta(days=2, milliseconds=1))
        await notify_once(kit.store, "acme", EVENT, "a", make)
        assert ["3"] == await told()


async def test_a_handler_alone_makes_an_event_wanted(store_url: str) -> None:
    def wanted(kit: MeterKit) -> set[str]:
        return {event for event in (EVENT, "storage.over") if kit.notify.wants(event)}

    async with kit_of(store_url, Clock(NOW)) as kit:
        assert set() == wanted(kit)

        @kit.on(EVENT)
        def summed_up(_event: PeriodSummary) -> None:
            """Is never called here."""

        assert {EVENT} == wanted(kit)


async def test_summaries_are_looked_for_once_an_hour(store_url: str) -> None:
    """Each process that had begun looked again."""
    clock, looked = Clock(NOW), list[int]()
    async with kit_of(store_url, clock) as kit:
        admin, key = await kit.store.admin(), kit.store.keys.shard(HOOKS_SHARD, "period.summary:last")
        for minutes in (0, 59, 1, 1):
            clock.advance(timedelta(minutes=minutes))
            await SummaryWatch(kit.store, any_event)._check_hourly()
            looked.append(int((await admin.client.get(key)).rstrip(b":")) - to_ms(NOW))
    assert looked == [-HOUR_MS, -HOUR_MS, 0, 0]


SPIKES: Final = (
    PLANS.replace("usage.threshold", "usage.spike")
    .replace(
        "included: 10, overage: deny, warn_at: [50, 100]",
        "included: 10, overage: {{bill: {{per: 100, amount_cents: 12}}}}",
    )
    .replace("{{unit: request}}", "{{unit: request, stripe: {{event_name: requests}}}}")
)
MIDNIGHT_MS: Final = to_ms(NOW.replace(hour=0, minute=0, second=0))
CUSTOMERS: Final = int(os.environ.get("METERKIT_SPIKE_CUSTOMERS", "10"))
DAYS: Final = 28 + (365 if CUSTOMERS >= 200 else 30)
EVEN: Final = dict.fromkeys(range(30 * 24), 100)


def row(customer: str, at_ms: int, quantity: int) -> AuditRow:
    return AuditRow(f"{customer}-{at_ms}", "requests", "recorded", customer, None, at_ms, quantity)


def written(directory: Path) -> str:
    """An audit log in which acme uses 100 units in each hour, and bolt too; now acme uses 5,000."""
    url = f"sqlite:///{directory}/audit.db"
    rows = [
        row(customer, MIDNIGHT_MS + hour * HOUR_MS, 5_000 if customer == "acme" and hour == 12 else 100)
        for hour in range(-30 * 24, 13)
        for customer in ("acme", "bolt")
    ]
    insert_rows(url, rows)
    return url


async def test_a_spike_is_sent_once(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, url = Clock(NOW), written(tmp_path)
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=SPIKES, audit_url=url) as kit:
        watch = SpikeWatch(kit.store, AuditDatabase(url), any_event)

        async def cut(*args: Any) -> None:
            await publish_notice(*args)
            raise StoreError("cut off")

        monkeypatch.setattr("meterkit.notify.storage_and_period_watches.publish_notice", cut)
        with pytest.raises(StoreError, match="cut off"):
            await watch.check()
        monkeypatch.setattr("meterkit.notify.storage_and_period_watches.publish_notice", publish_notice)
        clock.advance(timedelta(minutes=5))
        for _ in range(3):  # The first tells it again, as it was told.
            await watch.check()
        await pass_over(kit, "webhook", "webhook")
        ((_, body),) = hook.posts
        (found,) = await SpikesToday(kit.store).all()
        assert (found.customer, found.meter, found.used, found.usual) == ("acme", "requests", 5_000, 100)
        data = json.loads(body)["data"]
        assert data == {
            "id": data["id"],
            "customer": "acme",
            "at": "2031-06-10T12:00:30Z",
            "meter": "requests",
            "span": "hour",
            "used": 5_000,
            "usual": 100,
            "four_weeks_at_this_pace": 28 * 24 * 5_000,
            "last_four_weeks": 28 * 24 * 100,
            "used_cents": 600,
            "usual_cents": 12,
            "four_weeks_at_this_pace_cents": 403_200,
            "last_four_weeks_cents": 8_064,
        }


async def test_a_deleted_customer_has_no_more_spikes(store_url: str, tmp_path: Path) -> None:
    clock, url = Clock(NOW), written(tmp_path)
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=SPIKES, audit_url=url) as kit:
        watch = SpikeWatch(kit.store, AuditDatabase(url), any_event)
        await kit.record("acme", "requests", 1)
        await kit.customers.delete("acme")
        clock.advance(timedelta(minutes=5))
        await drain_all(kit, url)
        await watch.check()
        await pass_over(kit, "webhook")
        assert hook.posts == []
        assert await SpikesToday(kit.store).all() == []


async def test_a_deletion_erases_the_spikes_of_days_before(store_url: str) -> None:
    clock = Clock(NOW)
    async with kit_of(store_url, clock) as kit:
        spikes = SpikesToday(kit.store)
        for customer in ("acme", "bolt"):
            await spikes.add(CustomerSpike(customer, "requests", kit.store.now_ms(), "hour", 5_000, 100))
        await kit.record("acme", "requests", 1)
        clock.advance(timedelta(days=1))
        await kit.customers.delete("acme")
        clock.set(NOW)
        assert [spike.customer for spike in await spikes.all()] == ["bolt"]


async def test_a_spike_of_a_damaged_customer_holds_up_no_other(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = written(tmp_path)
    async with kit_of(store_url, Clock(NOW), url="http://127.0.0.1:9", plans=SPIKES, audit_url=url) as kit:
        keys, admin = kit.store.keys.customer("acme"), await kit.store.admin()
        await admin.ask(admin.client.set(keys.counters, "of another program", px=600_000))
        await SpikeWatch(kit.store, AuditDatabase(url), any_event).check()
    assert "no usage.spike for customer 'acme': the stored data cannot be read: StoreError" in caplog.text


async def told_of_a_spike(store_url: str, plans: str, audit_url: str) -> dict[str, Any]:
    async with (
        receiver() as hook,
        kit_of(store_url, Clock(NOW), url=hook.url, plans=plans, audit_url=audit_url) as kit,
    ):
        await SpikeWatch(kit.store, AuditDatabase(audit_url), any_event).check()
        await pass_over(kit, "webhook")
    (found,) = told(hook)
    return found


async def test_money_of_a_spike_is_rounded_half_up(store_url: str, tmp_path: Path) -> None:
    plans = SPIKES.replace("per: 100, amount_cents: 12", "per: 1000, amount_cents: 15")
    found = await told_of_a_spike(store_url, plans, written(tmp_path))
    assert (found["used_cents"], found["usual_cents"]) == (75, 2)


async def test_money_of_a_spike_has_one_price_and_no_spike_itself(store_url: str, tmp_path: Path) -> None:
    """Where prices go by model, what the units cost is not known; `spend`, and units by price, follow."""
    by_model = "{{bill: {{price: prices.calls}}}}"
    plans = SPIKES.replace("{{bill: {{per: 100, amount_cents: 12}}}}", by_model).replace(
        "plans:\n  free:\n",
        'prices: {{calls: {{default: 3 per 100, models: {{"small-*": 1 per 100}}}}}}\n'
        "plans:\n  free:\n    budget: {{amount_cents: unlimited}}\n",
    )
    url = written(tmp_path)
    hours = range(-30 * 24, 13)
    spent = [(MIDNIGHT_MS + hour * HOUR_MS, 5_000 if hour == 12 else 100) for hour in hours]
    for meter in ("spend", "requests:(default)"):
        insert_rows(url, [row("acme", at_ms, quantity)._replace(meter=meter) for at_ms, quantity in spent])
    found = await told_of_a_spike(store_url, plans, url)
    assert (found["meter"], found["used"], found["used_cents"]) == ("requests", 5_000, None)


def test_without_an_audit_log_the_key_is_refused_with_its_cure() -> None:
    catalog = loads(SPIKES.format(url="http://127.0.0.1:9"))
    refusal = r"usage\.spike under notify, which needs the audit log: set METER"
    with pytest.raises(SettingsError, match=refusal):
        MeterKit(catalog, redis_url="memory://")


async def test_reloading_spikes_needs_an_audit_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(PLANS.format(url="http://127.0.0.1:9"))
    kit = MeterKit(path, redis_url="memory://", notify_secret=SECRET)
    before = kit.catalog.content_hash
    path.write_text(SPIKES.format(url="http://127.0.0.1:9"))
    with pytest.raises(SettingsError, match=r"plans\.yaml lists usage\.spike .* needs the audit log"):
        await kit.reload()
    assert before == kit.catalog.content_hash
    caplog.clear()
    path.write_text(PLANS.format(url="http://127.0.0.1:10"))
    assert await kit.reload()
    assert "sends no messages by email: METERKIT_SMTP_URL is not set" in caplog.text
    assert "by webhook" not in caplog.text


@pytest.mark.parametrize("seed", range(CUSTOMERS))
def test_noise_is_taken_for_a_spike_less_than_once_a_month(seed: int) -> None:
    hours, alarms, quiet = history(seed, DAYS), 0, -1
    for hour in range(28 * 24, DAYS * 24):
        if hour // 24 > quiet and find_spike(hours, hour * HOUR_MS):
            alarms, quiet = alarms + 1, hour // 24
    assert alarms < max((DAYS - 28) / 30, 1.01)


@pytest.mark.parametrize("seed", range(CUSTOMERS))
def test_a_runaway_client_is_found_within_the_hour(seed: int) -> None:
    hours, random = history(seed, 60), Random(seed)  # noqa: S311 - an hour, not a secret
    busiest = sorted(hours.values())[-3]
    for _ in range(4):
        hour = random.randrange(30 * 24, 59 * 24)
        usual = sorted(hours[hour - 24 * back] for back in range(1, 29))[14]
        true = hours[hour]
        hours[hour] = max(40 * usual, 4 * busiest, FLOOR)
        found = find_spike(hours, hour * HOUR_MS + 600_000)
        assert found is not None
        assert (found.span, found.used) == ("hour", hours[hour])
        hours[hour] = true


@pytest.mark.parametrize(("used", "spike"), [(300, None), (301, Spike(span="hour", used=301, usual=100))])
def test_three_times_as_much_as_ever_is_one(used: int, spike: Spike | None) -> None:
    assert spike == find_spike({**EVEN, 29 * 24 + 5: used}, (29 * 24 + 5) * HOUR_MS)


def test_a_day_that_is_three_times_as_busy_is_one() -> None:
    hours = {**EVEN, **{29 * 24 + hour: 290 for hour in range(24)}}
    assert [None] * 24 == [find_spike(hours, (29 * 24 + hour) * HOUR_MS) for hour in range(24)]
    hours |= {29 * 24 + hour: 299 for hour in range(23)} | {29 * 24 + 23: 400}
    hours |= {day * 24 + 23: 200 for day in range(29)}
    hours |= {day * 24 + hour: 95 for day in range(29) for hour in range(23)}
    last = find_spike(hours, (29 * 24 + 23) * HOUR_MS)
    assert last == Spike(span="day", used=23 * 299 + 400, usual=23 * 95 + 200)


@pytest.mark.parametrize("hour", [0, 13 * 24 + 23])
def test_without_two_weeks_there_is_nothing_to_compare_with(hour: int) -> None:
    assert find_spike({**dict.fromkeys(range(hour), 1), hour: 10**9}, hour * HOUR_MS) is None
    assert find_spike({}, hour * HOUR_MS) is None
    day_15 = 14 * 24
    assert find_spike({**dict.fromkeys(range(day_15), 1), day_15: 10**9}, day_15 * HOUR_MS) is not None


def test_what_happened_on_more_than_two_days_is_a_precedent() -> None:
    hour = 29 * 24 + 5
    hours = {**EVEN, hour: 5_000, hour - 24 * 3: 5_000, hour - 24 * 9: 5_000}
    assert find_spike(hours, hour * HOUR_MS) is not None
    assert find_spike({**hours, hour - 24 * 11: 5_000}, hour * HOUR_MS) is None


def test_a_busy_weekday_is_compared_with_its_own_kind() -> None:
    hour = 29 * 24 + 5
    hours = {**EVEN, **{hour - 24 * 7 * week: 1_000 for week in range(1, 5)}}
    assert find_spike({**hours, hour: 3_000}, hour * HOUR_MS) is None
    assert find_spike({**hours, hour: 3_001}, hour * HOUR_MS) == Spike(span="hour", used=3_001, usual=100)


def test_the_pace_of_a_spike_is_that_of_four_weeks_like_it() -> None:
    hour = 29 * 24 + 5
    hours = {**EVEN, hour: 301, 0: 7, 23: 7, 24: 101}
    behind = 28 * 24 * 100 + 1
    spike = Spike(span="hour", used=301, usual=100)
    assert project_spike(spike, hours, hour * HOUR_MS + 5) == FourWeekPace(28 * 24 * 301, behind)
    assert project_spike(replace(spike, span="day"), hours, hour * HOUR_MS) == FourWeekPace(28 * 301, behind)


@pytest.mark.each_store
async def test_spikes_of_all_shards_are_listed(store_url: str, clock: Clock) -> None:
    customers = ("acme", "bolt", "core", "dusk")
    async with kit_of(store_url, clock, shards=8) as kit:
        spikes = SpikesToday(kit.store)
        for customer in customers:
            await spikes.add(CustomerSpike(customer, "requests", kit.store.now_ms(), "day", 900, 9))
            clock.advance(timedelta(minutes=1))
        assert len({kit.store.keys.customer(customer).shard for customer in customers}) > 1
        assert [one.customer for one in await spikes.all()] == [*reversed(customers)]
        await kit.customers.delete("core")
        assert await spikes.count() == 3
        clock.advance(timedelta(days=1))
        assert (await spikes.count(), await spikes.all()) == (0, [])


async def test_a_damaged_spike_is_left_out(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, shards=1) as kit:
        spikes, now_ms, admin = SpikesToday(kit.store), kit.store.now_ms(), await kit.store.admin()
        await spikes.add(CustomerSpike("acme", "requests", now_ms, "day", 900, 9))
        await admin.ask(admin.client.hset(kit.store.keys.spikes(0, now_ms), "requests bolt", "x"))
        assert [one.customer for one in await spikes.all()] == ["acme"]


async def test_a_deletion_forgets_the_spikes_of_two_days_ago(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, shards=1) as kit:
        spikes = SpikesToday(kit.store)
        for customer in ("acme", "bolt"):
            await spikes.add(CustomerSpike(customer, "requests", kit.store.now_ms(), "day", 900, 9))
        clock.advance(timedelta(days=2))
        await kit.customers.delete("acme")
        clock.advance(timedelta(days=-2))
        assert [one.customer for one in await spikes.all()] == ["bolt"]
