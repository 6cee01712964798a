"""The audit log: each usage event is in it once, and its sums are the counters after any life."""
# Internals: a drainer, and databases that fail at a named step.

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest

from drivers.audit_database import Row, to_ms
from drivers.audited_kit import audited, rebuild, rows_in, sqlite_in, sums_of
from drivers.delivery import PLANS
from drivers.process_metrics import told
from drivers.sampled import whole
from meterkit import Finding, MeterKit, SettingsError
from meterkit.catalog import loads
from meterkit.decisions.periods import from_ms
from meterkit.insights.audit import draining
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer, drainer_of, waiting_shards
from meterkit.insights.audit.verifying import verify
from meterkit.store.hold import Used

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

LIMITS = "subjects: {user: {requests: {included: 5}}, team: {requests: {included: 9}}}"
WITH_USERS = loads(f"{PLANS}    {LIMITS}\n")
UNITS = "  input_tokens: {unit: token}\n  cache_read_tokens: {unit: token}\n"
WITH_UNITS = loads(PLANS.replace("meters:\n", f"meters:\n{UNITS}", 1))


async def agrees(at: Audited, *customers: str) -> None:
    """The sums of the log are what the counters say, meter by meter."""
    sums = sums_of(await at.rows())
    for customer in customers:
        usage = await at.kit.usage(customer)
        period_ms = to_ms(usage["period"]["start"])
        meters: dict[str, Any] = dict(usage["meters"])
        for meter, counts in meters.items():
            found = sums.get((customer, meter, period_ms), {})
            assert (customer, meter, found.get("quantity", 0)) == (customer, meter, counts["recorded"])
            assert found.get("overage", 0) == counts["overage"]
            places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
            assert found.get("reported", 0) == sum(counts[place] for place in places)


async def test_captured_model_figures_are_logged_like_parsed_ones(store_url: str, tmp_path: Path) -> None:
    """F-217"""
    async with audited(store_url, sqlite_in(tmp_path), catalog=WITH_UNITS) as at:
        async with at.kit.reserve("acme", {"input_tokens": 1000}) as held:
            await held.capture({"input_tokens": 1000, "cache_read_tokens": 1200}, model="gpt-4o")
        rows = await at.rows()
    (told,) = [json.loads(row["units"]) for row in rows if row["units"] is not None]
    assert told == {"input_tokens": 1000, "cache_read_tokens": 1000}  # A part is within its whole.
    assert {row["model"] for row in rows} == {"gpt-4o"}
    # Tokens read from the cache cost half: 1.25 dollars a million.
    assert sum(row["cost_micros"] or 0 for row in rows) == 1250


async def test_the_event_id_of_usage_is_known(store_url: str, tmp_path: Path) -> None:
    """F-22a: one event is a row for each meter."""
    async with audited(store_url, sqlite_in(tmp_path), catalog=WITH_USERS) as at:
        odd = 'line\n"ä"\\'
        for _ in range(2):
            await at.kit.record("acme", {"tokens": 1, "rows": 2}, event_id="job-7")
            await at.kit.record("acme", "tokens", 4, event_id=odd, subjects={"team": "red"})
        await at.kit.record("acme", "tokens", 8)
        rows = sorted(await at.rows(), key=lambda row: row["quantity"])
        told = [(row["meter"], row["event_id"]) for row in rows]
        assert told == [("tokens", "job-7"), ("rows", "job-7"), ("tokens", odd), ("tokens", None)]
        assert (rows[0]["event"], rows[2]["subjects"]) == (rows[1]["event"], '{"team":"red"}')
        assert [one.is_right async for one in verify(Database(at.url))] == [True]


async def test_the_event_id_of_a_providers_answer_and_job_is_known(store_url: str, tmp_path: Path) -> None:
    """F-22a: a background response counts by the provider's id, and its row has the app's."""
    usage = {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13}
    said = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    job: dict[str, Any] = {
        "object": "response",
        "id": "resp_1",
        "background": True,
        "model": "gpt-4o",
        "output": [],
    }
    chat: dict[str, Any] = {"object": "chat.completion", "model": "gpt-4o", "choices": [], "usage": said}
    async with audited(store_url, sqlite_in(tmp_path), catalog=WITH_UNITS) as at:
        await at.kit.record_usage("acme", chat, event_id="chat-1")
        for event_id in ("job-1", "job-2"):
            await at.kit.record_usage(
                "acme", {**job, "status": "completed", "usage": usage}, event_id=event_id
            )
        rows = [(row["quantity"], row["event_id"]) for row in await at.rows()]
        assert sorted(rows) == [(7, "chat-1"), (10, "job-1")]


async def test_corrections_and_drops_are_entered(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 150)
        await at.kit.correct("acme", {"tokens": 70}, reason="a loop", correction_id="t-1", by="ada")
        await agrees(at, "acme")
        (row,) = (row for row in await at.rows() if row["kind"] == "corrected")
        assert (row["quantity"], row["overage"], row["included"], row["reported"]) == (-70, -50, -20, -50)
        assert json.loads(row["details"]) == {"id": "t-1", "by": "ada", "reason": "a loop"}
        await at.kit.record("acme", "tokens", 60)
        at.desk.emulator.fail_next("error", status=400, code="invalid_value")
        await at.desk.flush(everything=True)
        listed = await at.kit.outbox.list()
        for intent in listed:
            await at.kit.outbox.drop(intent.identifier, reason="a test", by="ada")
        dropped = [row for row in await at.rows() if row["kind"] == "dropped"]
        assert [row["quantity"] for row in dropped] == [intent.quantity for intent in listed]
        await agrees(at, "acme")


async def test_anonymous_visitors_are_not_entered(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        view = at.kit.store.cache.get("192.0.2.1", anonymous=True)
        await at.kit.store.record(view, Used.of({"rows": 1}), event_id=None)
        assert await at.rows() == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite+aiosqlite:////tmp/a.db", "asynchronous driver|not installed"),
        ("postgresql+nosuch://ada:s3cret@db/books", "cannot be used"),
    ],
)
def test_a_driver_that_cannot_be_used_is_refused_at_construction(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        MeterKit(loads(PLANS), redis_url="memory://", audit_url=url, flush=True)
    assert "s3cret" not in str(caught.value)


async def test_a_database_outage_is_logged_once_and_loses_nothing(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = tmp_path / "later"
    async with audited(store_url, sqlite_in(away)) as at:
        for _ in range(3):
            await at.kit.record("acme", "tokens", 5)
            with caplog.at_level(logging.WARNING, logger="meterkit.audit"):
                await at.drainer.once()
        assert [record.getMessage()[:30] for record in caplog.records] == ["the audit log is not drained; "]
        assert (await at.kit.consume("acme", "tokens", 1)).allowed
        away.mkdir()
        await at.drainer.once()
        assert caplog.records[-1].getMessage() == "the audit log is drained again"
        await agrees(at, "acme")
        assert len(await at.rows()) == 4


async def test_what_is_younger_than_two_seconds_is_not_drained(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # F-140: what a store loses in a failover would come again under another name.
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "tokens", 130)
        admin: Any = await at.kit.store.admin()
        keys = at.kit.store.keys
        ((name, _),) = [
            entry
            for shard in range(keys.shards)
            for entry in await admin.client.xrange(keys.audit(shard), min="-", max="+")
        ]
        entered_ms = int(name.decode().partition("-")[0])
        drainer = drainer_of(at.kit.store, at.kit.settings)
        for age_ms, drained in ((1_999, []), (2_000, [130])):
            monkeypatch.setattr(draining, "time", lambda age_ms=age_ms: (entered_ms + age_ms) / 1000)
            await drainer.once()
            rows = await asyncio.to_thread(rows_in, at.url)
            assert [row["quantity"] for row in rows] == drained


NAMES: Final = ("audit_waiting", "audit_age_seconds", "audit_full_shards")


async def metrics(at: Audited) -> tuple[float, ...]:
    found = await told(at.kit)
    return tuple(found[name] for name in NAMES)


async def findings(kit: MeterKit) -> list[Finding]:
    found = await kit.health()
    return [one for one in found.findings if one.check == "audit"]


async def test_the_age_of_what_cannot_be_read_is_that_of_its_name(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        admin: Any = await at.kit.store.admin()
        now_ms = at.kit.store.now_ms()
        for shard, (age_ms, fields) in enumerate(
            ((9_000, {"k": "of another release", "d": "", "at": 1}), (7_000, {"e": b"\xfd\x01"}))
        ):
            await admin.client.xadd(at.kit.store.keys.audit(shard), fields, id=f"{now_ms - age_ms}-0")
        assert (await metrics(at))[:2] == (2, 9.0)
        at.desk.clock.advance(timedelta(minutes=-1))
        assert (await metrics(at))[:2] == (2, 0.0)


@pytest.mark.usefixtures("valkey")
async def test_the_doctor_finds_entries_that_nobody_drains(store_url: str, tmp_path: Path) -> None:
    away = tmp_path / "later"
    async with audited(store_url, sqlite_in(away)) as at:
        await at.kit.record("acme", "rows", 1)
        at.desk.clock.advance(timedelta(minutes=15))
        assert await findings(at.kit) == []
        at.desk.clock.advance(timedelta(minutes=32))
        (finding,) = await findings(at.kit)
        assert finding.problem.startswith(
            "1 entry of the audit log has waited for up to 47 min for the database"
        )
        assert finding.cure.startswith(
            "see that an app that delivers or `meterkit worker` runs with METERKIT_AUDIT"
        )
        for _ in range(3):
            await at.kit.record("acme", "rows", 1)
        await at.fold(2)
        first, second = await findings(at.kit)
        assert first.problem.startswith("2 entries of the audit log have waited")
        assert second.problem.startswith("1 shard has so many entries of the audit log waiting")
        settings: dict[str, Any] = {
            "redis_url": store_url,
            "shards": 4,
            "flush": False,
            "clock": at.desk.clock,
        }
        other = MeterKit(at.kit.store.catalog, **settings)
        first, second = await findings(other)
        assert first.cure.startswith("METERKIT_AUDIT_URL is not set here; ")
        await other.store.stop()
        away.mkdir()
        await at.drainer.once()
        assert await findings(at.kit) == []
        assert (await at.kit.health()).looked_at["audit"] == "0 entries wait"


CUSTOMERS: Final = ("acme", "umbrella", "x" * 256)


LIFE: Final = loads(
    PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:").replace(
        "rows:     {unit: row}", "large: {unit: token, from: tokens, where: {model: '*-large'}}"
    )
)


async def test_one_entry_that_waits_is_logged_in_the_singular(
    store_url: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "rows", 1)
        with caplog.at_level(logging.WARNING, logger="meterkit.audit"):
            await at.fold(0)
    assert "audit log: 1 entry waits in shard" in caplog.text


class Life:
    """What may happen to customers, in an order that a number fixes."""

    def __init__(self, at: Audited, seed: int) -> None:
        self.at = at
        self.random = Random(seed)  # noqa: S311 - the same life each time
        self.nth = 0

    async def step(self) -> None:
        self.nth += 1
        name = self.random.choice(CUSTOMERS)
        steps = (self.record, self.consume, self.reserve, self.correct, self.settle_outbox, self.wait)
        weights = (8, 4, 4, 2, 2, 1)
        (step,) = self.random.choices(steps, weights)
        await step(name)

    async def record(self, name: str) -> None:
        kit, now = self.at.kit, self.at.desk.clock.now()
        late = now - timedelta(days=self.random.choice((0, 0, 3)))
        nth = self.random.randrange(30) if self.random.random() < 0.3 else None
        event_id, quantity = None if nth is None else f"e{nth}", self.random.randrange(60)
        quantity = quantity if nth is None else 2 * nth
        await kit.record(name, "tokens", quantity, event_id=event_id, occurred_at=late)

    async def consume(self, name: str) -> None:
        await self.at.kit.consume(name, "requests", self.random.randrange(1, 400))

    async def reserve(self, name: str) -> None:
        async with self.at.kit.reserve(name, {"tokens": 50}) as held:
            if self.random.random() < 0.7:
                model = self.random.choice(("m-large", "m-small"))
                await held.capture({"tokens": self.random.randrange(90)}, model=model)

    async def correct(self, name: str) -> None:
        meter = self.random.choice(("tokens", "requests"))
        asked = {meter: self.random.randrange(1, 80)}
        await self.at.kit.correct(name, asked, reason="r", correction_id=f"c{self.nth}", by="ada")

    async def settle_outbox(self, name: str) -> None:
        at = self.at
        await at.kit.grants.add(name, {"tokens": 20}, grant_id=f"g{self.nth}")
        if self.random.random() < 0.4:
            at.desk.emulator.fail_next("error", status=400, code="invalid_value")
        await at.desk.flush(everything=True, timeout_s=0.0)
        for intent in await at.kit.outbox.list(state="dead"):
            await at.kit.outbox.drop(intent.identifier, reason="r", by="ada")

    async def wait(self, _: str) -> None:
        self.at.desk.clock.advance(timedelta(days=self.random.choice((1, 1, 9))))


@pytest.mark.parametrize("seed", [1, whole(2)])
async def test_sums_are_the_counters_after_any_life(store_url: str, tmp_path: Path, seed: int) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=LIFE) as at:
        await at.desk.link("acme", "umbrella")
        life = Life(at, seed)
        for _ in range(120):
            await life.step()
            if life.nth % 40 == 0:
                await at.fold(5)
                await at.drainer.drain()
        rows = await at.rows()
        sums = sums_of(rows)
        kinds = {row["kind"] for row in rows}
        assert {"recorded", "corrected", "summed"} <= kinds
        seen = 0
        for (customer, meter, period_ms), units in sums.items():
            now = await at.kit.usage(customer)
            is_open = to_ms(now["period"]["start"]) == period_ms
            when = None if is_open else to_ms(from_ms(period_ms) + timedelta(hours=1))
            (usage,) = await at.kit.store.usage_of_many([customer], at_ms=when)
            counts: dict[str, Any] = dict(usage["meters"][meter])
            assert units["quantity"] == counts["recorded"], (customer, meter, period_ms)
            assert units["overage"] == counts["overage"]
            places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
            assert units["reported"] == sum(counts[place] for place in places)
            seen += 1
        assert seen > 5
        assert await rebuild(at, dry_run=True) == []


class Hanging(Database):
    """Takes rows once it is let."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.may = Event(), Event()

    def insert(self, rows: Sequence[Row]) -> Sequence[Row]:
        self.asked.set()
        assert self.may.wait(60)
        return super().insert(rows)


async def test_a_hanging_database_holds_up_nothing(store_url: str, tmp_path: Path) -> None:
    database = Hanging(sqlite_in(tmp_path))
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await asyncio.gather(*(at.kit.record("acme", "rows", nth + 1) for nth in range(700)))
        drainer = Drainer(at.kit.store, database, least_age_ms=0)
        draining = asyncio.create_task(drainer.once())
        try:
            assert await asyncio.to_thread(database.asked.wait, 60)
            assert (await at.kit.consume("acme", "rows", 1)).allowed
            await drainer.fold(await waiting_shards(at.kit.store), 520)
            (shard,) = await entries_of(at)
            assert shard == 520
        finally:
            database.may.set()
            await draining
        sums = sums_of(await at.rows())
        (units,) = sums.values()
        assert units["quantity"] == (await at.kit.usage("acme"))["meters"]["rows"]["recorded"] == 245_351


async def entries_of(at: Audited) -> list[int]:
    """How many entries wait, by shard."""
    admin: Any = await at.kit.store.admin()
    keys = at.kit.store.keys
    lengths = [await admin.client.xlen(keys.audit(shard)) for shard in range(keys.shards)]
    return [length for length in lengths if length]


async def test_an_app_drains_by_itself_what_it_counts(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with MeterKit(loads(PLANS), redis_url=store_url, shards=4, audit_url=url) as kit:
        await kit.record("acme", "rows", 3)
        with anyio.fail_after(240):
            while not await asyncio.to_thread(rows_in, url):  # noqa: ASYNC110 - a thread of the kit's does it
                await anyio.sleep(0.1)
