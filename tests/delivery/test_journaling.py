"""The journal of deliveries: written behind Stripe's answers, and never waited for."""
# Internals: a journal that fails, hangs and has gaps.

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from drivers.audited_kit import sqlite_in
from drivers.delivery import NOW
from drivers.delivery import desk as open_desk
from meterkit.delivery.forgotten import Forgotten, Gap
from meterkit.delivery.journaling import JournaledTransport
from meterkit.delivery.outcomes import Outcome
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import MeterkitError
from meterkit.insights.audit.calls import AuditDatabase
from meterkit.outbox.intents import Sealed
from meterkit.outbox.journal import JournalRow
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from drivers.delivery import Desk

pytestmark = pytest.mark.anyio

NOW_MS: Final = int(NOW.timestamp() * 1000)
GAP: Final = Gap(from_ms=NOW_MS - 60_000, till_ms=NOW_MS + 60_000)


def sealed(number: int, value: int = 5) -> Sealed:
    return Sealed(
        identifier=f"intent-{number}",
        customer="acme",
        stripe_customer="cus_acme",
        period="0",
        meter_token="",
        event_name="api_requests",
        value=value,
        timestamp=NOW_MS // 60_000 * 60,
        key=f"intent-{number}",
        sealed_ms=0,
        due_ms=0,
    )


class Answers:
    """A transport that answers as a test says."""

    def __init__(self, outcome: Outcome) -> None:
        self.most = 10
        self.outcome = outcome
        self.is_closed = False

    async def ready(self) -> Outcome | None:
        return None

    async def send(self, *intents: Sealed) -> Outcome:
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


DELIVERED: Final = Outcome(kind="delivered", detail="")


@pytest.mark.parametrize(
    ("outcome", "intents", "rows"),
    [
        (DELIVERED, 2, 2),
        (Outcome(kind="duplicate", detail=""), 1, 1),
        (Outcome(kind="duplicate", detail=""), 2, 0),  # One of them is at Stripe: which is not known.
        (Outcome(kind="unknown", detail=""), 1, 0),
        (Outcome(kind="permanent", detail=""), 1, 0),
    ],
)
async def test_what_stripe_certainly_has_is_written(outcome: Outcome, intents: int, rows: int) -> None:
    journal, answers = Pages(), Answers(outcome)
    transport = JournaledTransport(answers, journal, lambda: NOW_MS)
    await transport.send(*map(sealed, range(intents)))
    await transport.close()
    assert sum(map(len, journal.pages)) == rows
    assert answers.is_closed


async def test_a_hanging_journal_delays_neither_delivery_nor_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.delivery.journaling._CLOSE_S", 0.01)
    monkeypatch.setattr("meterkit.delivery.journaling._WAITING_MOST", 3)
    journal = Pages()
    journal.goes_on.clear()
    transport = JournaledTransport(Answers(DELIVERED), journal, lambda: NOW_MS)
    for number in range(5):
        assert await transport.send(sealed(number)) is DELIVERED
    assert len(vars(transport)["_waiting"]) == 3
    await transport.close()
    assert journal.pages == []
    dropped, left = caplog.messages
    assert "lacks 1 that Stripe has" in dropped
    assert "lacks 3 that Stripe has" in left


async def test_a_process_that_ends_writes_again_what_failed() -> None:
    journal = Pages(failing_writes=1)
    transport = JournaledTransport(Answers(DELIVERED), journal, lambda: NOW_MS)
    await transport.send(sealed(0))
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
    monkeypatch.setattr("meterkit.delivery.forgotten._JOURNAL_PAUSE_S", 0)
    journal = Pages(fails=2)
    names = ("acme", "api_requests", "cus_acme")
    async with open_desk(store_url, shards=1) as at:
        await at.link("acme")
        summaries = StripeSummaries(StripeApi(at.kit.settings))
        await summaries.refresh()
        found = Forgotten(at.kit.store, summaries, journal)
        assert await found.journaled(*names, GAP) is None  # It cannot be read.
        monkeypatch.setattr("meterkit.delivery.forgotten._JOURNAL_PAUSE_S", 60)
        assert await found.journaled(*names, GAP) is None
        vars(found)["_journal_again_s"] = 0.0
        journal.fails = 0
        assert await found.journaled(*names, GAP) is None
        journal.pages = [[row(1, 30)]]
        assert await found.journaled(*names, GAP) is None
        journal.pages.append([row(0, 5, delivered_at_ms=GAP.from_ms - 60_001)])
        assert await found.journaled(*names, GAP) == 30
        await known(at, "counted-1", 25)
        assert await found.journaled(*names, GAP) is None
        assert await Forgotten(at.kit.store, summaries).journaled(*names, GAP) is None
        await summaries.close()


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
