"""``meterkit recover`` settles what a restore has parked by what Stripe has, or the journal of deliveries."""
# Internals: a recovery that ends between two steps; a journal that fails, hangs and has gaps.

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audited_kit import sqlite_in
from drivers.delivery import NOW, PLANS, Caplog, Desk, desk, have_at_stripe, sealed, summaries_of
from drivers.emulated_account import unpaced
from drivers.restored_store import LAG, begin_anew, come_back, linked, parked_by_a_restore, states
from drivers.subscribed_customer import fetched, subscription
from meterkit.catalog import loads
from meterkit.delivery.delivery_outcome import DeliveryOutcome
from meterkit.delivery.flusher_setup import JournaledTransport
from meterkit.delivery.lost_deliveries import DeliveryGap, IntentLine, LostDeliveries
from meterkit.delivery.restore_recovery import RecoveredMeter, RestoreRecoverer
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import MeterkitError
from meterkit.insights.audit.async_database import AuditDatabase
from meterkit.outbox.intents import SealedIntent
from meterkit.outbox.journal import JournalRow
from meterkit.store.task_lease import TaskLease
from meterkit.stripe.api import StripeApi
from servers.stores import Server

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("valkey")]

MINUTE: Final = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the emulator as fast as it answers, not 20 times in a second."""
    unpaced(monkeypatch)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Desk]:
    async with linked(store_url) as opened:
        yield opened


async def recover(at: Desk, **settings: Any) -> Sequence[RecoveredMeter]:
    async with summaries_of(at.kit) as summaries:
        return await RestoreRecoverer(at.kit.store, summaries).recover(**settings)


async def park_by_a_restore(at: Desk, there: int = 30) -> None:
    """Have acme's 30 units parked by a restore; Stripe has some."""
    await at.kit.record("acme", "requests", 30)
    await have_at_stripe(at, there, minute=NOW - MINUTE)
    assert await parked_by_a_restore(at) == 1


@pytest.mark.parametrize(
    ("at_stripe", "billed", "sent", "lost"), [(30, 30, 0, 0), (20, 20, 10, 0), (50, 30, 0, 20)]
)
async def test_i6_parked_units_are_billed_as_far_as_stripe_has_them(
    at: Desk, at_stripe: int, billed: int, sent: int, lost: int
) -> None:
    async def places() -> list[int]:
        counts: Any = (await at.kit.usage("acme"))["meters"]["requests"]
        return [counts[name] for name in ("recorded", "queued", "parked", "delivered", "dead")]

    await park_by_a_restore(at, at_stripe)
    before = await states(at)
    would = await recover(at, dry_run=True)
    assert (await states(at), await places()) == (before, [30, 0, 30, 0, 0])
    done = await recover(at, by="operator")
    assert done == would
    assert [(one.parked, one.unknown, one.billed, one.sent, one.lost) for one in done] == [
        (30, at_stripe, billed, sent, lost)
    ]
    assert await places() == [30, sent, 0, billed, 0]
    await at.flush(everything=True)
    assert (at.accepted("acme"), await states(at)) == (max(30, at_stripe), [])
    entries = [one for one in await at.kit.customers.history("acme") if one.kind == "intent"]
    assert (len(entries), await recover(at)) == (1 + bool(billed) + bool(sent), [])


@pytest.mark.parametrize("there", [0, 1])
async def test_i6_an_intent_whose_minute_stripe_has_is_billed(at: Desk, there: int) -> None:
    at.emulator.fail_next("error", status=401, times=None, path="/v1/billing/meter_events")
    for quantity in (5, 7):
        await at.record_and_flush(quantity, timeout_s=0)
        at.clock.advance(MINUTE)
    at.emulator.clear_faults()
    await have_at_stripe(at, 3, minute=at.clock.now())
    assert await parked_by_a_restore(at) == 2
    both = sorted(await at.kit.outbox.list(), key=lambda one: one.quantity)
    known, other = both[there], both[1 - there]
    await have_at_stripe(at, known.quantity, minute=known.minute)
    (done,) = await recover(at)
    assert (done.billed, done.sent) == (known.quantity + 3, other.quantity - 3)
    (left,) = await at.kit.outbox.list()
    assert (left.quantity, left.state, left.minute) == (other.quantity - 3, "queued", other.minute)


async def test_i6_units_corrected_at_stripe_are_not_sent_again(at: Desk) -> None:
    await have_at_stripe(at, -20, minute=NOW - 2 * MINUTE)
    await park_by_a_restore(at)
    (done,) = await recover(at)
    # The sum says that Stripe has 10 of them; the minutes say that it has had all.
    assert (done.unknown, done.billed, done.sent) == (30, 30, 0)
    await at.flush(everything=True)
    assert at.accepted("acme") == 10


async def test_i6_uncounted_deliveries_since_hide_nothing(at: Desk) -> None:
    await park_by_a_restore(at)
    at.clock.advance(timedelta(hours=1))
    period = next(name for name in await at.totals("acme") if name.endswith("k"))[:-1]
    admin = await at.kit.store.admin()
    key = at.kit.store.keys.customer("acme").totals
    await admin.ask(admin.client.hincrby(key, f"{period}d", 500))  # Delivered, and not counted yet.
    (done,) = await recover(at)
    assert (done.unknown, done.billed, done.sent) == (30, 30, 0)


@pytest.mark.parametrize("is_blind", [False, True], ids=["nothing delivered", "no restart is seen"])
async def test_i6_an_older_backup_is_compared_on_an_operators_word(
    valkey: Server, store_url: str, is_blind: bool
) -> None:
    valkey.ask("ACL", "SETUSER", "blind", "on", ">secret", "~*", "&*", "+@all", "-info")
    blind = f"redis://blind:secret@127.0.0.1:{valkey.port}/0"
    async with desk(blind if is_blind else store_url, shards=1) as at, summaries_of(at.kit) as summaries:
        recoverer = RestoreRecoverer(at.kit.store, summaries)
        await at.link("acme")
        doubted = NOW - 60 * MINUTE
        if is_blind:
            assert (await at.record_and_flush(5)).delivered == 1
            doubted = NOW + 5 * MINUTE
            at.clock.advance(10 * MINUTE)
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, 30, minute=at.clock.now() - MINUTE)
        await recoverer.doubt(doubted)
        assert await recoverer.not_compared() == 1
        assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
        assert await recoverer.not_compared() == 1
        assert (await at.flush(everything=True, timeout_s=0, after=LAG)).parked == 1
        assert await recoverer.not_compared() == 0
        (done,) = await recoverer.recover()
        assert replace(done, customer="") == RecoveredMeter(
            customer="", meter="requests", event_name="api_requests", parked=30, unknown=30, billed=30
        )
        assert ((await at.record_and_flush(4)).delivered, at.accepted("acme")) == (1, 34 + 5 * is_blind)


async def test_a_customer_whom_stripe_does_not_have_is_for_a_person(at: Desk) -> None:
    await park_by_a_restore(at)
    at.emulator.fail_next("error", status=404, times=None, skip=1, path="*")
    (done,) = await recover(at)
    assert (done.unknown, "bill by hand" in done.advice) == (None, True)
    at.emulator.fail_next("error", status=500, times=None, skip=1, path="*")
    with pytest.raises(MeterkitError):
        await recover(at)
    assert await states(at) == [(30, "parked")]


async def test_only_the_customer_that_is_named_is_settled(store_url: str) -> None:
    async with linked(store_url, "acme", "zeta") as at:
        for customer, there in (("acme", 30), ("zeta", 31)):
            await at.kit.record(customer, "requests", 30)
            await have_at_stripe(at, there, minute=NOW - MINUTE, customer=f"cus_{customer}")
        assert await parked_by_a_restore(at) == 2
        (done,) = await recover(at, customer="zeta")
        assert (done.customer, await states(at)) == ("zeta", [(30, "parked")])


@pytest.mark.parametrize("damaged", ["totals", "field", "history"])
async def test_a_damaged_customer_is_named_and_others_settled(store_url: str, damaged: str) -> None:
    async with linked(store_url, "acme", "zeta") as at:
        for customer, there in (("acme", 30), ("zeta", 31)):
            await at.kit.record(customer, "requests", 30)
            await have_at_stripe(at, there, minute=NOW - MINUTE, customer=f"cus_{customer}")
        assert await parked_by_a_restore(at) == 2
        keys, admin = at.kit.store.keys.customer("acme"), await at.kit.store.admin()
        if damaged == "field":
            for field in await admin.ask(admin.client.hkeys(keys.totals)):
                await admin.ask(admin.client.hset(keys.totals, field, "x"))
        else:
            key = {"totals": keys.totals, "history": keys.history}[damaged]
            await admin.ask(admin.client.delete(key))
            await admin.ask(admin.client.set(key, "of another program", px=600_000))
        acme, zeta = await recover(at)
        assert (acme.customer, acme.parked, acme.billed, acme.sent) == ("acme", 30, 0, 0)
        assert acme.advice.startswith("nothing is settled: the stored data cannot be read: ")
        assert (zeta.customer, zeta.billed, zeta.advice) == ("zeta", 30, "")
        assert [one.customer for one in await at.kit.outbox.list()] == ["acme"]


async def test_i6_a_run_that_ended_between_two_steps_is_gone_on_with(at: Desk) -> None:
    await park_by_a_restore(at, 20)
    admin, key = await at.kit.store.admin(), at.kit.store.keys.shard(0, "intents")
    ((name, text),) = (await admin.ask(admin.client.hgetall(key))).items()
    cut = {**json.loads(text), "value": "20", "rest": "10"}
    await admin.ask(admin.client.hset(key, name, json.dumps(cut)))
    (done,) = await recover(at)
    assert (done.parked, done.billed, done.sent) == (30, 20, 10)
    await at.flush(everything=True)
    assert (at.accepted("acme"), await states(at)) == (30, [])


async def test_two_who_recover_at_once_are_told_apart(at: Desk) -> None:
    store = at.kit.store
    async with TaskLease(store, store.keys.shard(0, "recover:lease"), lasts_ms=60_000).held():
        with pytest.raises(MeterkitError, match="another process recovers"):
            await recover(at)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"value": "x"}'])
async def test_i6_an_unreadable_intent_is_named_once_and_skipped(at: Desk, text: str, caplog: Caplog) -> None:
    await park_by_a_restore(at)
    admin, keys = await at.kit.store.admin(), at.kit.store.keys
    await admin.ask(admin.client.hset(keys.shard(0, "intents"), "bad-1", text))
    for place in ("outbox", "parked", "compare"):
        await admin.ask(admin.client.zadd(keys.shard(0, place), {"bad-1": 1}))
    (done,) = await recover(at)
    assert (done.parked, done.billed) == (30, 30)
    await at.kit.record("acme", "requests", 7)
    for _ in range(2):
        await at.flush(everything=True, timeout_s=0)
    assert at.accepted("acme") == 37
    with pytest.raises(MeterkitError, match="intent bad-1 of shard 0 cannot be read"):
        await at.kit.outbox.drop("bad-1", reason="damaged")
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("acme", "cus_acme", force=True)  # It asks which minutes are taken.
    told = [message for message in caplog.messages if "bad-1" in message]
    assert told == ["intent bad-1 of shard 0 cannot be read and is skipped; all others are delivered"]


NOW_MS: Final = int(NOW.timestamp() * 1000)
GAP: Final = DeliveryGap(from_ms=NOW_MS - 60_000, till_ms=NOW_MS + 60_000)


def intent(number: int) -> SealedIntent:
    return sealed(f"intent-{number}", 5, NOW_MS // 60_000 * 60)


class Answers:
    def __init__(self, outcome: DeliveryOutcome) -> None:
        self.events_per_call = 10
        self.outcome = outcome
        self.is_closed = False

    async def ready(self) -> DeliveryOutcome | None:
        return None

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        assert intents
        return self.outcome

    async def close(self) -> None:
        self.is_closed = True


class Pages:
    """A journal that keeps its pages, may hang, and fails to say since when it is kept."""

    def __init__(self, fails: int = 0, failing_writes: int = 0) -> None:
        self.pages: list[Sequence[JournalRow]] = []
        self.fails = fails
        self.failing_writes = failing_writes
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def write(self, rows: Sequence[JournalRow]) -> None:
        await self.goes_on.wait()
        if self.failing_writes:
            self.failing_writes -= 1
            raise MeterkitError("the database is locked")
        self.pages.append(rows)

    async def read(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
        assert (customer, event_name) == ("acme", "api_requests")
        return [row for page in self.pages for row in page if row.delivered_at_ms >= since_ms]

    async def remove(self, identifiers: Sequence[str]) -> None:
        self.pages = [[row for row in page if row.identifier not in identifiers] for page in self.pages]

    async def begun_ms(self) -> int | None:
        if self.fails:
            raise MeterkitError("the database is away")
        return min((row.delivered_at_ms for page in self.pages for row in page), default=None)


DELIVERED: Final = DeliveryOutcome(kind="delivered", detail="")


@pytest.mark.parametrize(
    ("outcome", "intents", "rows"),
    [
        (DELIVERED, 2, 2),
        (DeliveryOutcome(kind="duplicate", detail=""), 1, 1),
        (DeliveryOutcome(kind="duplicate", detail=""), 2, 0),  # One of them is at Stripe: which is not known.
        (DeliveryOutcome(kind="unknown", detail=""), 1, 0),
        (DeliveryOutcome(kind="permanent", detail=""), 1, 0),
    ],
)
async def test_what_stripe_certainly_has_is_written(
    outcome: DeliveryOutcome, intents: int, rows: int
) -> None:
    journal, answers = Pages(), Answers(outcome)
    transport = JournaledTransport(answers, journal, lambda: NOW_MS)
    await transport.send(*(intent(number) for number in range(intents)))
    await transport.close()
    assert sum(map(len, journal.pages)) == rows
    assert answers.is_closed


async def test_a_hanging_journal_delays_neither_delivery_nor_end(
    monkeypatch: pytest.MonkeyPatch, caplog: Caplog
) -> None:
    monkeypatch.setattr("meterkit.delivery.flusher_setup._CLOSE_S", 0.01)
    monkeypatch.setattr("meterkit.delivery.flusher_setup._WAITING_MOST", 3)
    journal = Pages()
    journal.goes_on.clear()
    transport = JournaledTransport(Answers(DELIVERED), journal, lambda: NOW_MS)
    for number in range(5):
        assert await transport.send(intent(number)) is DELIVERED
    assert len(vars(transport)["_waiting"]) == 3
    await transport.close()
    assert journal.pages == []
    dropped, left = caplog.messages
    assert "lacks 1 of the intents that Stripe has" in dropped
    assert "lacks 3 of the intents that Stripe has" in left


async def test_a_process_that_ends_writes_again_what_failed() -> None:
    journal = Pages(failing_writes=1)
    transport = JournaledTransport(Answers(DELIVERED), journal, lambda: NOW_MS)
    await transport.send(intent(0))
    await transport.close()
    assert [row.identifier for page in journal.pages for row in page] == ["intent-0"]


def row(number: int, value: int, *, delivered_at_ms: int = NOW_MS) -> JournalRow:
    return JournalRow(
        identifier=f"intent-{number}",
        customer="acme",
        event_name="api_requests",
        stripe_customer="cus_acme",
        minute_s=NOW_MS // 60_000 * 60,
        value=value,
        delivered_at_ms=delivered_at_ms,
    )


async def known(at: Desk, identifier: str, value: int) -> None:
    """Have the store know of a delivery."""
    admin, key = await at.kit.store.admin(), at.kit.store.keys.delivered(0, NOW_MS)
    line = json.dumps(["acme", "cus_acme", "api_requests", f"{NOW_MS // 60_000 * 60}", f"{value}"])
    await admin.ask(admin.client.hset(key, identifier, line))
    await admin.ask(admin.client.expire(key, 60))


async def test_a_journal_that_covers_the_gap_decides(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.delivery.lost_deliveries._JOURNAL_PAUSE_S", 0)
    journal = Pages(fails=2)
    line = IntentLine("acme", "api_requests", "cus_acme")
    async with desk(store_url, shards=1) as at:
        await at.link("acme")
        summaries = StripeSummaries(StripeApi(at.kit.settings))
        await summaries.refresh()
        found = LostDeliveries(at.kit.store, summaries, journal)
        assert await found.units_in_journal(line, GAP) is None  # It cannot be read.
        monkeypatch.setattr("meterkit.delivery.lost_deliveries._JOURNAL_PAUSE_S", 60)
        assert await found.units_in_journal(line, GAP) is None
        vars(found)["_journal_again_s"] = 0.0
        journal.fails = 0
        assert await found.units_in_journal(line, GAP) is None
        journal.pages = [[row(1, 30)]]
        assert await found.units_in_journal(line, GAP) is None
        journal.pages.append([row(0, 5, delivered_at_ms=GAP.from_ms - 60_001)])
        assert await found.units_in_journal(line, GAP) == 30
        await known(at, "counted-1", 25)
        assert await found.units_in_journal(line, GAP) is None
        assert await LostDeliveries(at.kit.store, summaries).units_in_journal(line, GAP) is None
        await summaries.close()


async def deliver_after_forty_days(at: Desk) -> None:
    """Usage waits as the store begins anew, which has forgotten the earlier deliveries by then."""
    at.clock.advance(timedelta(days=40))
    await at.kit.record("acme", "requests", 7)
    await begin_anew(at)
    await come_back(at)
    assert (await at.flush(everything=True, timeout_s=0)).delivered == 1


@pytest.mark.parametrize("is_journaled", [False, True])
async def test_deliveries_forgotten_by_age_are_not_lost(
    store_url: str, tmp_path: Path, is_journaled: bool
) -> None:
    """Stripe and the journal keep them for longer than the store."""
    settings: dict[str, Any] = {"audit_url": sqlite_in(tmp_path)} if is_journaled else {}
    async with desk(store_url, shards=1, **settings) as at:
        await at.link("acme")
        assert (await at.record_and_flush(30)).delivered == 1
        await deliver_after_forty_days(at)
        assert at.accepted("acme") == 37


async def test_a_year_after_another_link_is_compared_as_far_as_kept(store_url: str) -> None:
    """Totals are not kept by Stripe customer, and deliveries for 36 days."""
    catalog = loads(PLANS.replace("interval: month", "interval: year, included_per: interval"))
    async with desk(store_url, shards=1, catalog=catalog) as at:
        await at.link("acme")
        at.clock.advance(MINUTE)
        at.emulator.add_customer("cus_other")
        await at.kit.customers.unlink("acme")
        await at.kit.customers.link("acme", "cus_other", force=True)
        year = dict.fromkeys(("start_ms", "anchor_ms", "created_ms"), NOW)
        await fetched(at.kit, subscription(plan="pro", end_ms=NOW + timedelta(days=365), **year))
        assert (await at.record_and_flush(30)).delivered == 1
        await deliver_after_forty_days(at)


async def test_an_unreadable_row_is_logged_and_the_log_goes_on(tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    journal = AuditDatabase(url)
    await journal.write([row(1, 5)])
    with closing(sqlite3.connect(tmp_path / "audit.db")) as database:
        database.execute("UPDATE meterkit_deliveries SET value = 'many'")
        database.commit()
    with pytest.raises(MeterkitError, match="has a row of customer 'acme' that cannot be read"):
        await journal.read("acme", "api_requests", 0)
    assert await journal.read("zeta", "api_requests", 0) == []
