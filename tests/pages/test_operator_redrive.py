"""Operator pages: redrives by whom and from where, usage against invoices, degraded minutes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx import AsyncClient

from drivers.audited_kit import sqlite_in
from drivers.delivery import desk
from drivers.operator_pages import figures_on, make_snapshot, pages_of, selling
from drivers.redrives import kill_message, kill_webhook, redrives
from drivers.shop import START
from meterkit import MeterKit
from meterkit.pages import operator_queues
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

OWN = {"sec-fetch-site": "same-origin"}
JSON = {"accept": "application/json", **OWN}


@pytest.fixture
async def kit(store_url: str) -> AsyncGenerator[MeterKit]:
    async with selling(store_url, None) as opened:
        yield opened


def selected(page: str) -> Mapping[str, list[str]]:
    """What the form of a list posts when all of it is selected."""
    queue = re.findall(r'name="queue" value="([^"]*)"', page)
    return {"queue": queue, "id": re.findall(r'name="id" value="([^"]*)"', page)}


async def figures(client: AsyncClient) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = (await client.get("/", headers=JSON)).json()
    return found


async def test_dead_usage_is_redriven_and_entered_into_the_ledger(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(store_url) as at, pages_of(at.kit) as client:
        await at.link("acme", "zeta")
        at.emulator.fail_next("error", status=400, times=2)
        await at.kit.record("acme", "requests", 6)
        await at.record_and_flush(7, "zeta", timeout_s=0)
        states = {one.customer: one.state for one in await at.kit.outbox.list()}
        assert set(states.values()) <= {"parked", "dead"}
        monkeypatch.setattr(operator_queues, "LISTED_MOST", 1)
        assert "Only the first 1 are listed." in (await client.get(f"/outbox?of={states['acme']}")).text
        monkeypatch.undo()
        counts = (await figures(client))["outbox"]
        assert sum(counts.values()) == 2
        found = {of: (await client.get(f"/outbox.json?of={of}")).json() for of in ("parked", "dead")}
        assert {of: len(rows) for of, rows in found.items()} == {of: counts[of] for of in found}
        of = states["acme"]
        form = {**selected((await client.get(f"/outbox?of={of}")).text), "reason": "Stripe is back"}
        assert "Redriven: 2" in (await client.post("/redrive", data=form, headers=OWN)).text
        await at.flush(everything=True)
        assert (at.accepted("acme"), at.accepted("zeta")) == (6, 7)
        (entry,) = await redrives(at.kit, "acme")
        assert (entry.kind, "Stripe is back" in (entry.after or "")) == ("intent", True)
        again = (await client.post("/redrive", data=form, headers=JSON)).json()
        assert (again["redriven"], set(again["refused"])) == ([], set(form["id"]))


async def test_usage_that_is_being_sent_is_listed(store_url: str) -> None:
    async with desk(store_url) as at, pages_of(at.kit) as client:
        await at.link("acme")
        at.emulator.fail_next("error", status=503, times=None)
        await at.kit.record("acme", "requests", 6)
        await at.flush(everything=True, timeout_s=0)
        (intent,) = await at.kit.outbox.list()
        # As a process leaves it that dies before Stripe responds.
        keys, admin = at.kit.store.keys, await at.kit.store.admin()
        key = keys.shard(keys.customer("acme").shard, "intents")
        kept = json.loads(await admin.ask(admin.client.hget(key, intent.identifier)))
        await admin.ask(admin.client.hset(key, intent.identifier, json.dumps({**kept, "state": "leased"})))
        listed = (await client.get("/outbox.json")).json()
        assert [(row["intent"], row["state"]) for row in listed] == [(intent.identifier, "leased")]


async def test_dead_webhooks_and_messages_are_redriven_by_name(
    kit: MeterKit, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "meterkit.pages")
    await kit.customers.link("acme", "cus_acme", force=True)
    for stripe_customer in ("cus_acme", "cus_other"):
        await kill_webhook(kit, stripe_customer)
    await kill_message(kit, "msg_1", "acme")
    await kill_message(kit, "msg_2", "never set up")
    found = await figures(client)
    assert (found["webhooks"], found["messages"]) == ({"dead": 2}, {"waiting": 0, "dead": 2})
    for queue, ids in (("webhooks", ["cus_acme", "cus_other"]), ("messages", ["msg_1", "msg_2"])):
        form = selected((await client.get(f"/{queue}")).text)
        assert (form["queue"], sorted(form["id"])) == ([queue], ids)
        named = [*ids, *ids, "none", "none"]  # Pages of one list may overlap.
        answer = await client.post("/redrive", data={**form, "id": named}, headers=JSON)
        assert answer.json() == {"redriven": ids, "refused": {"none": "it is not dead"}}
    found = await figures(client)
    assert (found["webhooks"], found["messages"]) == ({"dead": 0}, {"waiting": 2, "dead": 0})
    answer = await client.post("/redrive", data={"queue": "messages", "id": "msg_1"}, headers=JSON)
    assert answer.json() == {"redriven": [], "refused": {"msg_1": "it is not dead"}}
    entries = await redrives(kit, "acme")
    assert [(one.kind, one.before, one.after) for one in entries] == [
        ("redrive", "dead: webhooks of cus_acme", "redriven"),
        ("redrive", "dead: msg_1", "redriven"),
    ]
    # A customer whom nobody set up has no ledger; the log has the line.
    assert await kit.customers.history("never set up") == []
    assert "operator 'ada' redrives msg_2 of customer 'never set up'" in caplog.text
    assert "operator ada" in (await client.get("/ledger?of=acme")).text
    assert (await client.get("/ledger?of=a%00")).status_code == 404


async def test_a_long_history_keeps_its_latest_redrives(
    kit: MeterKit, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.customers.history.HISTORY_BOUND", 2)
    await kit.customers.set_plan("acme", None)
    names = ["msg_1", "msg_2", "msg_3"]
    for name in names:
        await kill_message(kit, name, "acme")
    for name in names:
        answer = await client.post("/redrive", data={"queue": "messages", "id": name}, headers=JSON)
        assert answer.json()["redriven"] == [name]
    entries = await kit.customers.history("acme")
    assert [entry.before for entry in entries] == [f"dead: {name}" for name in names[1:]]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin", "origin": "null"}, 200),
        ({"sec-fetch-site": "same-site", "origin": "http://app"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://app"}, 200),
        ({"origin": "http://app.evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({}, 403),
    ],
)
async def test_only_the_page_itself_posts(
    kit: MeterKit, client: AsyncClient, headers: dict[str, str], status: int
) -> None:
    await kill_message(kit, "msg_1", "acme")
    form = {"queue": "messages", "id": "msg_1"}
    assert (await client.post("/redrive", data=form, headers=headers)).status_code == status
    assert (await figures(client))["messages"]["dead"] == (status != 200)


async def test_forms_that_cannot_be_read_are_refused(kit: MeterKit, client: AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded", **OWN}
    for body, headers, status in (
        ("queue=messages&id=x", {**OWN, "content-type": "application/json"}, 415),
        ("queue=none&id=x", form, 422),
        ("queue=messages", form, 422),
        ("queue=messages&id=x&reason=" + "a" * 501, form, 422),
        ("queue=messages&id=%ff", form, 422),
        ("id=" + "a" * (1 << 20), form, 413),
    ):
        answer = await client.post("/redrive", content=body, headers=headers)
        assert answer.status_code == status, body[:40]
    assert (await client.get("/redrive")).status_code == 404
    async with pages_of(kit, "") as stranger:
        answer = await stranger.post("/redrive", data={"queue": "messages", "id": "x"}, headers=OWN)
        assert answer.status_code == 403


async def rows_of(client: httpx.AsyncClient, path: str, of: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/{path}.json", params={"of": of})).json()
    return found


async def test_usage_by_state_is_the_sum_over_its_customers(store_url: str, tmp_path: Path) -> None:
    async with desk(store_url, audit_url=sqlite_in(tmp_path)) as at, pages_of(at.kit) as client:
        await at.link("acme", "zeta")
        for customer, units in (("acme", 6), ("zeta", 7), ("alone", 8)):
            await at.kit.record(customer, "requests", units)
        await at.kit.record("zeta", "rows", 9)
        await at.flush(everything=True)
        await at.kit.record("acme", "requests", 1)
        await make_snapshot(at.kit)

        figures = (await client.get("/", headers=JSON)).json()["delivered"]
        # What stays with us, as rows do, is no usage on its way to Stripe.
        assert set(figures) == {"requests"}
        used = {name: units for name, units in figures["requests"].items() if units}
        assert used == {"recorded": 22, "pending": 1, "unlinked": 8, "delivered": 13}
        for state, units in figures["requests"].items():
            rows = await rows_of(client, "delivered", f"{state} requests")
            assert sum(row[state] for row in rows) == units
            assert all(row[state] for row in rows)
        assert figures_on((await client.get("/")).text)["delivered:requests:delivered"] == 13
        assert await rows_of(client, "delivered", "none requests") == []

        books = await rows_of(client, "books", "acme")
        (now,) = [row for row in books if row["meter"] == "requests"]
        assert (now["recorded"], now["waiting"], now["delivered"], now["confirmed"]) == (7, 1, 6, 6)
        assert (await client.get("/books?of=a%00")).status_code == 404
        at.clock.advance(timedelta(days=31))
        await at.kit.record("acme", "requests", 2)
        both = [row for row in await rows_of(client, "books", "acme") if row["meter"] == "requests"]
        assert [row["recorded"] for row in both] == [7, 2]


async def test_degraded_minutes_are_sent_once_the_store_is_back(kit: MeterKit, client: AsyncClient) -> None:
    store, clock = kit.store, Clock(START)
    noted = type(store.degraded)(store.keys, store.admin, lambda: int(clock() * 1000))
    for before in (timedelta(0), timedelta(seconds=30), timedelta(hours=23), timedelta(hours=25)):
        clock.set(START - before)
        noted.note()
    await noted.send()
    await noted.send()
    store.degraded.note()
    await store.degraded.send()
    assert list((await store.degraded.read(30)).values()) == [2, 1, 1, 1]
    figures = (await client.get("/", headers=JSON)).json()["degraded"]
    assert (figures, len(await rows_of(client, "degraded", "day"))) == ({"day": 3, "month": 4}, 3)
    rows = await rows_of(client, "degraded")
    assert (rows[0], len(rows)) == ({"minute": "2031-06-01T00:00:00Z", "requests": 2}, 4)
