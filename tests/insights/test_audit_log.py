"""The audit log: each usage event is in it once, in a chain of hashes; its sums are the counters."""
# Internals: a drainer, and databases that fail at a named step.

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import to_thread
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, Final

import anyio
import pytest
from sqlalchemy import create_engine, event, text

from drivers.audit_database import AuditRow, insert_rows, to_ms
from drivers.audited_kit import Audited, audited, rebuild, row_of, rows_in, sqlite_in, sums_of
from drivers.delivery import PLANS, kit_for
from drivers.health_findings import findings
from drivers.plans import plans_text
from drivers.process_metrics import told
from drivers.sampled import whole
from drivers.subscribed_customer import fetched, subscription
from llm_payloads.recordings import chat_usage
from meterkit import MeterKit, SettingsError, metrics_app
from meterkit.catalog import loads
from meterkit.decisions.item_prices import ItemPrice
from meterkit.decisions.periods import from_ms
from meterkit.insights.audit import chain_verifier, draining, hash_chain
from meterkit.insights.audit.async_database import AuditDatabase
from meterkit.insights.audit.chain_verifier import ChainVerdict, verify
from meterkit.insights.audit.database import DELIVERIES, Database
from meterkit.insights.audit.draining import AuditDrainer, open_drainer, read_shard_backlogs
from meterkit.insights.audit.entries import RecordedRoot
from meterkit.outbox.journal import JournalRow
from meterkit.store.settlement_parts import UsedQuantities

pytestmark = pytest.mark.anyio

LIMITS = "subjects: {user: {requests: {included: 5}}, team: {requests: {included: 9}}}"
WITH_USERS = loads(f"{PLANS}    {LIMITS}\n")
IN_YEN = loads("""
schema: 1
currency: [usd, jpy]
default_plan: pro
meters: {words: {unit: word, stripe: {event_name: words}}}
plans:
  pro:
    price: {amount_cents: {usd: 2000, jpy: 3000}, interval: month}
    budget: {amount_cents: {usd: 100, jpy: 110}}
    meters:
      words: {included: 1, overage: {bill: {per: 1, amount_cents: {usd: 10, jpy: 10}}}}
""")
UNITS = "  input_tokens: {unit: token}\n  cache_read_tokens: {unit: token}\n"
WITH_UNITS = loads(PLANS.replace("meters:\n", f"meters:\n{UNITS}", 1))


def assert_sums(units: Mapping[str, int], counts: Any) -> None:
    """The sums of the log are what the counters say."""
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
    expected = (counts["recorded"], counts["overage"], sum(counts[place] for place in places))
    assert tuple(units.get(name, 0) for name in ("quantity", "overage", "reported")) == expected


async def agrees(at: Audited, customer: str) -> None:
    """They do in the period of now, meter by meter."""
    sums, usage = sums_of(await at.rows()), await at.kit.usage(customer)
    for meter, counts in usage["meters"].items():
        assert_sums(sums.get((customer, meter, to_ms(usage["period"]["start"])), {}), counts)


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


async def test_a_call_costs_what_its_model_costs_at_that_time(store_url: str, tmp_path: Path) -> None:
    """o3 cost five times as much until June 2025."""
    async with audited(store_url, sqlite_in(tmp_path), catalog=WITH_UNITS) as at:
        answer: dict[str, Any] = {"object": "chat.completion", "model": "o3", "choices": []}
        answer["usage"] = chat_usage(1000, 0)
        await at.kit.record_usage("acme", answer)
        assert sum(row["cost_micros"] or 0 for row in await at.rows()) == 2000


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
    chat: dict[str, Any] = {"object": "chat.completion", "model": "gpt-4o", "choices": [], "usage": said}
    job: dict[str, Any] = {"object": "response", "id": "resp_1", "model": "gpt-4o", "output": []}
    job |= {"background": True, "status": "completed", "usage": usage}
    async with audited(store_url, sqlite_in(tmp_path), catalog=WITH_UNITS) as at:
        await at.kit.record_usage("acme", chat, event_id="chat-1")
        for event_id in ("job-1", "job-2"):
            await at.kit.record_usage("acme", job, event_id=event_id)
        rows = [(row["quantity"], row["event_id"]) for row in await at.rows()]
        assert sorted(rows) == [(7, "chat-1"), (10, "job-1")]


async def test_corrections_and_drops_are_entered(at: Audited) -> None:
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


async def test_a_correction_has_the_price_of_its_currency(store_url: str, tmp_path: Path) -> None:
    """Yen were taken for cents: a hundredth was taken off what was spent, and was in the log."""
    async with audited(store_url, sqlite_in(tmp_path), catalog=IN_YEN) as at:
        await fetched(at.kit, subscription(currency="jpy"), customer="acme")
        await at.kit.record("acme", "words", 11)
        await at.kit.correct("acme", {"words": 4}, reason="a loop", correction_id="t-1")
        assert (await at.kit.usage("acme"))["meters"]["spend"]["recorded"] == 6 * 10_000_000
        prices = {row["kind"]: row["price_micros"] for row in await at.rows() if row["meter"] == "words"}
        assert prices == {"recorded": 10_000_000, "corrected": 10_000_000}


@pytest.mark.usefixtures("valkey")  # In memory, Lua writes numbers whole.
@pytest.mark.parametrize("price", ["1000000000000/285714285714", "1000000000000/3333333333333333"])
async def test_a_price_of_many_decimals_is_in_the_log(store_url: str, tmp_path: Path, price: str) -> None:
    """An amount for 7 units, or 3, has twelve decimals at Stripe; it ended the draining of the log."""
    async with audited(store_url, sqlite_in(tmp_path), catalog=IN_YEN) as at:
        await fetched(at.kit, subscription(prices=(ItemPrice("words", "words", price),)), customer="acme")
        await at.kit.record("acme", "words", 11)
        await at.kit.correct("acme", {"words": 4}, reason="a loop", correction_id="t-1")
        rows = [row for row in await at.rows() if row["meter"] == "words"]
        per, cents = map(int, price.split("/"))
        exact = {Fraction(row["price_micros"], row["price_per"]) for row in rows}
        assert ({row["kind"] for row in rows}, exact) == (
            {"recorded", "corrected"},
            {Fraction(cents * 10_000, per)},
        )


async def test_anonymous_visitors_are_not_entered(at: Audited) -> None:
    view = at.kit.store.cache.get("192.0.2.1", anonymous=True)
    await at.kit.store.record(view, UsedQuantities.of({"rows": 1}), event_id=None)
    assert await at.rows() == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite+aiosqlite:////tmp/a.db", "asynchronous driver|not installed"),
        ("postgresql+nosuch://ada:s3cret@db/books", "SQLAlchemy has no driver postgresql.nosuch"),
        # The driver looked for a host that began with the rest of the password, and its error named it.
        *(
            (f"postgresql+psycopg://ada@srv:{password}@db/books", "is the password percent-encoded")
            for password in ("p4@s3cret", "p4@x/s3cret", "p4@x?s3cret")
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_construction(url: str, words: str) -> None:
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
                await at.drainer.drain_under_lease()
        assert [record.getMessage()[:30] for record in caplog.records] == ["the audit log is not drained; "]
        assert (await at.kit.consume("acme", "tokens", 1)).allowed
        away.mkdir()
        await at.drainer.drain_under_lease()
        assert caplog.records[-1].getMessage() == "the audit log is drained again"
        await agrees(at, "acme")
        assert len(await at.rows()) == 4


async def test_a_root_keeps_nobody_from_draining(at: Audited) -> None:
    """Others could not drain for 30 s after each invoice that got its root."""
    other = AuditDrainer(at.kit.store, Database(at.url))
    await at.kit.record("acme", "rows", 1)
    assert await at.drainer.drain() == 0
    await at.kit.record("acme", "rows", 1)
    async with other.lease.held():  # As a rebuild does, whose sums an entry that is drained then would miss.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(at.drainer.root_of("acme"), 0.1)
        assert len(await entries_of(at)) == 1
    async with at.drainer.lease.held():
        assert await at.drainer.root_of("acme") is not None
        assert not await other.lease.acquire()
    assert await other.lease.acquire()


async def test_the_last_two_seconds_are_not_drained(at: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    # F-140: what a store loses in a failover would come again under another name.
    await at.kit.record("acme", "tokens", 130)
    ((name, _),) = await entries_of(at)
    entered_ms = int(name.decode().partition("-")[0])
    drainer = open_drainer(at.kit.store, at.kit.settings)
    for age_ms, drained in ((1_999, []), (2_000, [130])):
        monkeypatch.setattr(draining, "time", lambda age_ms=age_ms: (entered_ms + age_ms) / 1000)
        await drainer.drain_under_lease()
        rows = await asyncio.to_thread(rows_in, at.url)
        assert [row["quantity"] for row in rows] == drained


async def test_the_age_of_what_cannot_be_read_is_that_of_its_name(at: Audited) -> None:
    admin: Any = await at.kit.store.admin()
    now_ms = at.kit.store.now_ms()
    odd = ((9_000, {"k": "of another release", "d": "", "at": 1}), (7_000, {"e": b"\xfd\x01"}))
    for shard, (age_ms, fields) in enumerate(odd):
        await admin.client.xadd(at.kit.store.keys.audit(shard), fields, id=f"{now_ms - age_ms}-0")
    for age_s in (9.0, 0.0):
        found = await told(at.kit)
        assert (found["audit_waiting"], found["audit_age_seconds"]) == (2, age_s)
        at.desk.clock.advance(timedelta(minutes=-1))


@pytest.mark.usefixtures("valkey")
async def test_the_doctor_finds_entries_that_nobody_drains(store_url: str, tmp_path: Path) -> None:
    away = tmp_path / "later"
    async with audited(store_url, sqlite_in(away)) as at:
        await at.kit.record("acme", "rows", 1)
        at.desk.clock.advance(timedelta(minutes=15))
        assert await findings(at.kit, "audit") == []
        at.desk.clock.advance(timedelta(minutes=32))
        (finding,) = await findings(at.kit, "audit")
        waits = "1 entry of the audit log has waited for up to 47 min for the database"
        assert finding.problem.startswith(waits)
        cure = "run `meterkit worker`, or an app that delivers, with METERKIT_AUDIT"
        assert finding.cure.startswith(cure)
        for _ in range(3):
            await at.kit.record("acme", "rows", 1)
        await at.fold(2)
        first, second = await findings(at.kit, "audit")
        assert first.problem.startswith("2 entries of the audit log have waited")
        assert second.problem.startswith("1 shard has so many entries of the audit log waiting")
        other = kit_for(store_url, at.desk.url, clock=at.desk.clock, stripe_api_key=None)
        first, second = await findings(other, "audit")
        assert first.cure.startswith("METERKIT_AUDIT_URL is not set here; ")
        await other.store.stop()
        away.mkdir()
        await at.drainer.drain_under_lease()
        assert await findings(at.kit, "audit") == []
        assert (await at.kit.health()).looked_at["audit"] == "0 entries wait"


async def test_a_customer_without_a_readable_currency_delays_no_entry(store_url: str, tmp_path: Path) -> None:
    catalog = loads(plans_text("two_currencies"))
    async with audited(store_url, sqlite_in(tmp_path), catalog=catalog) as at:
        metrics_app(at.kit)
        for customer in ("acme", "umbrella"):
            await at.kit.customers.set_plan(customer, "pro")
            await at.kit.record(customer, "requests", 1_005)
        admin, keys = await at.kit.store.admin(), at.kit.store.keys
        await admin.ask(admin.client.hset(keys.customer("acme").state, "data", "{"))
        assert len(await at.rows()) == 2
        assert at.kit.store.tallies is not None
        assert [*at.kit.store.tallies.revenue_in] == ["usd"]


async def test_added_up_usage_of_a_deleted_customer_stays_apart(at: Audited) -> None:
    for customer in ("acme", "umbrella"):
        await at.kit.record(customer, "rows", 50)
    await at.fold(0)
    await at.kit.customers.delete("acme")
    at.desk.clock.advance(timedelta(seconds=10))
    assert sum(row["quantity"] for row in await at.rows() if row["customer"] == "acme") == 50
    assert await rebuild(at, asks_stripe=False) == []
    used = [(await at.kit.usage(name))["meters"]["rows"]["used"] for name in ("acme", "umbrella")]
    assert used == [0, 50]


CUSTOMERS: Final = ("acme", "umbrella", "x" * 256)


LIFE: Final = loads(
    PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:").replace(
        "rows:     {unit: row}", "large: {unit: token, from: tokens, where: {model: '*-large'}}"
    )
)


async def test_one_entry_is_logged_in_the_singular(at: Audited, caplog: pytest.LogCaptureFixture) -> None:
    await at.kit.record("acme", "rows", 1)
    with caplog.at_level(logging.WARNING, logger="meterkit.audit"):
        await at.fold(0)
    assert "audit log: 1 entry waits in shard" in caplog.text


class Life:
    """What may happen to customers, in an order that a number fixes."""

    def __init__(self, at: Audited, seed: int) -> None:
        self.at, self.kit = at, at.kit
        self.random = Random(seed)  # noqa: S311 - the same life each time
        self.nth = 0

    async def step(self) -> None:
        self.nth += 1
        name = self.random.choice(CUSTOMERS)
        steps = (self.record, self.consume, self.reserve, self.correct, self.settle_outbox, self.wait)
        (step,) = self.random.choices(steps, (8, 4, 4, 2, 2, 1))
        await step(name)

    async def record(self, name: str) -> None:
        late = self.at.desk.clock.now() - timedelta(days=self.random.choice((0, 0, 3)))
        nth = self.random.randrange(30) if self.random.random() < 0.3 else None
        event_id, quantity = None if nth is None else f"e{nth}", self.random.randrange(60)
        quantity = quantity if nth is None else 2 * nth
        await self.kit.record(name, "tokens", quantity, event_id=event_id, occurred_at=late)

    async def consume(self, name: str) -> None:
        await self.kit.consume(name, "requests", self.random.randrange(1, 400))

    async def reserve(self, name: str) -> None:
        async with self.kit.reserve(name, {"tokens": 50}) as held:
            if self.random.random() < 0.7:
                model = self.random.choice(("m-large", "m-small"))
                await held.capture({"tokens": self.random.randrange(90)}, model=model)

    async def correct(self, name: str) -> None:
        asked = {self.random.choice(("tokens", "requests")): self.random.randrange(1, 80)}
        await self.kit.correct(name, asked, reason="r", correction_id=f"c{self.nth}", by="ada")

    async def settle_outbox(self, name: str) -> None:
        await self.kit.grants.add(name, {"tokens": 20}, grant_id=f"g{self.nth}")
        if self.random.random() < 0.4:
            self.at.desk.emulator.fail_next("error", status=400, code="invalid_value")
        await self.at.desk.flush(everything=True, timeout_s=0.0)
        for intent in await self.kit.outbox.list(state="dead"):
            await self.kit.outbox.drop(intent.identifier, reason="r", by="ada")

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
        assert {row["kind"] for row in rows} >= {"recorded", "corrected", "summed"}
        sums = sums_of(rows)
        for (customer, meter, period_ms), units in sums.items():
            now = await at.kit.usage(customer)
            is_open = to_ms(now["period"]["start"]) == period_ms
            when = None if is_open else to_ms(from_ms(period_ms) + timedelta(hours=1))
            (usage,) = await at.kit.store.usage_of_many([customer], at_ms=when)
            assert_sums(units, usage["meters"][meter])
        assert len(sums) > 5
        assert await rebuild(at, dry_run=True) == []


class Hanging(Database):
    """Takes rows once it is let."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.may = Event(), Event()

    def insert(self, rows: Sequence[AuditRow]) -> Sequence[AuditRow]:
        self.asked.set()
        assert self.may.wait(60)
        return super().insert(rows)


async def test_a_hanging_database_holds_up_nothing(at: Audited) -> None:
    database = Hanging(at.url)
    await asyncio.gather(*(at.kit.record("acme", "rows", nth + 1) for nth in range(700)))
    drainer = AuditDrainer(at.kit.store, database, least_age_ms=0)
    draining = asyncio.create_task(drainer.drain_under_lease())
    try:
        assert await asyncio.to_thread(database.asked.wait, 60)
        assert (await at.kit.consume("acme", "rows", 1)).allowed
        await drainer.fold(await read_shard_backlogs(at.kit.store), 520)
        assert len(await entries_of(at)) == 520
    finally:
        database.may.set()
        await draining
    (units,) = sums_of(await at.rows()).values()
    assert units["quantity"] == (await at.kit.usage("acme"))["meters"]["rows"]["recorded"] == 245_351


async def entries_of(at: Audited) -> list[Any]:
    admin: Any = await at.kit.store.admin()
    keys = [at.kit.store.keys.audit(shard) for shard in range(at.kit.store.keys.shards)]
    return [entry for key in keys for entry in await admin.client.xrange(key, min="-", max="+")]


async def test_an_app_drains_by_itself_what_it_counts(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with MeterKit(loads(PLANS), redis_url=store_url, shards=4, audit_url=url) as kit:
        await kit.record("acme", "rows", 3)
        with anyio.fail_after(240):
            while not await asyncio.to_thread(rows_in, url):  # noqa: ASYNC110 - a thread of the kit's does it
                await anyio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Given:
    """The same roots for each customer."""

    roots: Sequence[RecordedRoot]

    async def of(self, customer: str) -> Sequence[RecordedRoot]:
        return self.roots if customer else ()

    async def linked(self) -> AsyncGenerator[str]:
        for customer in ("acme", "erased") if self.roots else ():
            yield customer


async def verified(url: str, customer: str | None = None, *roots: RecordedRoot) -> list[ChainVerdict]:
    return [one async for one in verify(Database(url), customer, Given(roots))]


async def faults(url: str) -> list[tuple[str, int, str | None]]:
    return [(one.customer, one.place, one.problem) for one in await verified(url)]


async def test_rows_are_chained_by_customer(audit_url: str) -> None:
    database = Database(audit_url)
    database.insert([row_of(1), row_of(2, "zeta"), row_of(3), row_of(3), row_of(1)])
    database.insert([row_of(3), row_of(4, details='{"reason": "é"}')])
    found = {one["event"]: one for one in rows_in(audit_url)}
    assert [found[f"0/p/{nth}"]["place"] for nth in (1, 2, 3, 4)] == [1, 1, 2, 3]
    assert database.root("acme") == (3, found["0/p/4"]["hash"])
    assert await faults(audit_url) == [("acme", 0, None), ("zeta", 0, None)]
    (one,) = await verified(audit_url, "acme", RecordedRoot("in_1", 2, found["0/p/3"]["hash"]))
    assert (one.rows, one.roots, one.is_right) == (3, 1, True)
    (one,) = await verified(audit_url, "acme", RecordedRoot("in_1", 2, "1:other"))
    assert (one.place, one.problem) == (2, "root")
    assert (await verified(audit_url, "nobody"))[0].is_right
    found_by_invoices = [
        (one.customer, one.words) for one in await verified(audit_url, None, RecordedRoot("in_1", 4, "1:x"))
    ]
    assert found_by_invoices[-1] == ("erased", "rows 1 to 4 are missing, by invoice in_1")


async def test_many_rows_that_come_again_are_kept_once(
    audit_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_chain, "_KEYS_AT_ONCE", 2)
    rows = [row_of(nth, ("acme", "zeta", "beta")[nth % 3]) for nth in range(7)]
    assert insert_rows(audit_url, rows[:5]) == rows[:5]
    assert insert_rows(audit_url, rows) == rows[5:]
    assert len(rows_in(audit_url)) == 7
    assert await faults(audit_url) == [(who, 0, None) for who in ("acme", "beta", "zeta")]


def run(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


TAMPERED: Final = {
    "changed": ("UPDATE meterkit_audit SET quantity = 9 WHERE place = 3", 3, "changed"),
    "deleted": ("DELETE FROM meterkit_audit WHERE place = 2", 2, "missing"),
    "tail deleted": ("DELETE FROM meterkit_audit WHERE place > 5", 6, "missing"),
    "head deleted": ("DELETE FROM meterkit_audit_heads", 9, "head"),
    "head set back": ("UPDATE meterkit_audit_heads SET place = 8", 9, "inserted"),
    "inserted without a place": (
        "INSERT INTO meterkit_audit SELECT COPIED FROM meterkit_audit WHERE place = 1",
        0,
        "unchained",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_tampering_is_found(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_chain, "_PAGE", 3)
    url = sqlite_in(tmp_path)
    insert_rows(url, [row_of(nth, details="why") for nth in range(9)])
    statement, place, problem = TAMPERED[how]
    columns = ", ".join((*AuditRow._fields[:13], "over_cap"))
    statement = statement.replace("meterkit_audit SELECT", f"meterkit_audit ({columns}) SELECT")
    run(url, statement.replace("COPIED", columns.replace("event", "'made'", 1)))
    assert (await faults(url))[0] == ("acme", place, problem)


async def test_rows_that_come_while_it_verifies_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite_in(tmp_path)
    insert_rows(url, [row_of(nth) for nth in range(5)])
    heads = hash_chain.read_head
    asked: list[str] = []

    def head_of(*args: Any) -> Any:
        found = heads(*args)
        if not asked:
            asked.append("once")
            insert_rows(url, [row_of(7)])
        return found

    monkeypatch.setattr(hash_chain, "read_head", head_of)
    monkeypatch.setattr(chain_verifier, "read_head", heads)
    (one,) = await verified(url, "acme")
    assert (one.rows, one.is_right) == (5, True)


@pytest.mark.parametrize("step", ["_find_known_keys", "_write_heads"])
async def test_a_kill_between_two_steps_leaves_nothing_behind(
    audit_url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_rows(audit_url, [row_of(1)])

    class Killed(BaseException):
        """Ends the transaction as the end of the connection does."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(hash_chain, step, killed)
        with pytest.raises(Killed):
            insert_rows(audit_url, [row_of(2)])
    insert_rows(audit_url, [row_of(2), row_of(3)])
    (one,) = await verified(audit_url)
    assert (one.rows, one.is_right) == (3, True)


ROW: Final = JournalRow(
    identifier="intent-1",
    customer="acme",
    event_name="api_requests",
    stripe_customer="cus_acme",
    minute_s=1_939_000_020,
    value=10**15 - 1,
    delivered_at_ms=1_939_000_030_000,
)


async def test_a_row_is_kept_once_and_found_by_its_key(audit_url: str) -> None:
    journal = AuditDatabase(audit_url)
    assert await journal.begun_ms() is None
    back = ROW._replace(identifier="intent-2", value=-5, delivered_at_ms=ROW.delivered_at_ms + 1)
    await journal.write([ROW])
    await journal.write([back, ROW._replace(value=1)])
    assert await journal.read("acme", "api_requests", ROW.delivered_at_ms) == [ROW, back]
    assert await journal.read("acme", "api_requests", back.delivered_at_ms) == [back]
    assert await journal.read("acme", "ai_tokens", 0) == []
    assert await journal.begun_ms() == ROW.delivered_at_ms


async def test_rows_of_two_who_make_the_journal_at_once_are_kept(audit_url: str) -> None:
    journal, other = AuditDatabase(audit_url), Database(audit_url)
    others = ROW._replace(identifier="intent-2")

    def made_by_another(*_: object, **__: object) -> None:
        """Between the look whether the table is there and its making."""
        other.insert_deliveries([others])

    event.listen(DELIVERIES, "before_create", made_by_another, once=True)
    await journal.write([ROW])
    rows = await journal.read("acme", "api_requests", 0)
    assert {row.identifier for row in rows} == {"intent-1", "intent-2"}


async def test_rows_from_before_a_customer_was_deleted_are_not_its_own(audit_url: str) -> None:
    journal, database = AuditDatabase(audit_url), Database(audit_url)
    await journal.write([ROW])
    deleted = AuditRow("0/1", "", "deleted", "acme", None, ROW.delivered_at_ms + 1)
    await to_thread(database.insert, [deleted])
    assert await journal.read("acme", "api_requests", 0) == []
