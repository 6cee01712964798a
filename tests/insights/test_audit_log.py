"""The audit log: every recorded usage event is in it, once, and its sums are the counters."""
# Internals: a drainer, and databases that fail at a named step.

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audit_database import to_ms
from drivers.audited_kit import audited, rows_in, sqlite_in, sums_of
from drivers.delivery import PLANS
from meterkit import MeterKit, SettingsError
from meterkit.catalog import loads
from meterkit.insights.audit import draining
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import drainer_of
from meterkit.insights.audit.verifying import verify

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

LIMITS = "subjects: {user: {requests: {included: 5}}, team: {requests: {included: 9}}}"
WITH_USERS = loads(f"{PLANS}    {LIMITS}\n")
WITH_CREDITS = loads(PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:"))

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


async def test_an_event_is_entered_with_how_it_was_paid(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=WITH_CREDITS) as at:
        await at.desk.link("acme")
        await at.kit.grants.add("acme", {"tokens": 20}, grant_id="g")
        await at.kit.grants.add("acme", {"ai": 10}, grant_id="c")
        await at.kit.record("acme", "tokens", 130)
        (row,) = await at.rows()
        assert await at.rows() == [row]
        await agrees(at, "acme")
    told = {name: row[name] for name in ("kind", "customer", "meter", "quantity")}
    assert told == {"kind": "recorded", "customer": "acme", "meter": "tokens", "quantity": 130}
    paid = {name: row[name] for name in ("included", "granted", "credited", "overage", "reported", "late")}
    assert paid == {
        "included": 100,
        "granted": 20,
        "credited": 5,
        "overage": 5,
        "reported": 5,
        "late": 0,
    }


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
