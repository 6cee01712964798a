"""The operator pages: figures, the lists behind them, exports, and who sees them."""

from __future__ import annotations

import csv
import io
import re
from asyncio import gather
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx import AsyncClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from drivers.audited_kit import sqlite_in
from drivers.customer_states import note_findings
from drivers.operator_pages import (
    JSON,
    PLANS,
    figures_on,
    flat,
    make_snapshot,
    overview_of,
    pages_of,
    selling,
)
from drivers.shop import START, shop
from meterkit import MeterKit, MeterkitError
from meterkit.catalog import loads
from meterkit.pages import operator_pages
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio


async def test_f_337_the_name_of_a_link_has_the_figure_it_shows(kit: MeterKit, client: AsyncClient) -> None:
    """F-337: a screen reader read "Past due: open the list" for "1"."""
    await kit.record("billed", "tokens", 5_000)
    await make_snapshot(kit)
    page = (await client.get("/")).text
    links = re.findall(r'<a [^>]*aria-label="([^"]*)"[^>]*>(.*?)</a>', page, re.DOTALL)
    assert len(links) > 10
    shown = [(name, " ".join(re.sub(r"<[^>]+>", "", text).split())) for name, text in links]
    assert [(name, text) for name, text in shown if not text or f": {text}, " not in name] == []
    assert ("tokens: recorded: 5,000, open the list", "5,000") in shown


async def test_each_figure_counts_the_customers_of_its_list(kit: MeterKit, client: AsyncClient) -> None:
    await kit.record("near", "requests", 8)
    await kit.record("far", "requests", 7)
    await kit.record("over", "requests", 12)
    await kit.customers.set_plan("pro", "pro")
    await kit.record("pro", "requests", 799)
    await kit.record("billed", "tokens", 5)
    await kit.customers.set_status("late", "past_due")
    await make_snapshot(kit)

    figures = (await client.get("/", headers=JSON)).json()
    page = (await client.get("/")).text
    assert figures["customers"] == {
        "customers": 6,
        "refused": 1,
        "near": 2,
        "past_due": 1,
        "unlinked": 1,
        "access_grace": 1,
        "access_restricted": 0,
        "access_suspended": 0,
    }
    assert figures["plans"] == {"free": 5, "pro": 1}
    shown = figures_on(page)
    assert shown == flat(figures)
    rows = list(csv.DictReader(io.StringIO((await client.get("/figures.csv")).text)))
    names = [":".join(filter(None, (row["section"], row["row"], row["figure"]))) for row in rows]
    assert {name: int(row["value"]) for name, row in zip(names, rows, strict=True)} == shown
    assert (await client.get("/figures.json")).json() == figures

    links = re.findall(r'<dd data-figure="([^"]*)">\s*<a href="([^"]*)"', page)
    assert {name for name, _ in links} == {name for name in shown if "tokens" not in name}
    for name, link in links:
        path, _, query = link.partition("?")
        listed = (await client.get(f"/{path}.json?{query}")).json()
        assert len(listed) == shown[name], name
        assert (await client.get(f"/{link}", headers=JSON)).json() == {"rows": listed, "after": ""}
        exported = list(csv.DictReader(io.StringIO((await client.get(f"/{path}.csv?{query}")).text)))
        assert [row["customer"] for row in exported] == [row["customer"] for row in listed]
        html = (await client.get(f"/{link}")).text
        assert ("As of 2031-06-01 00:00 UTC." in html) == (path in OF_A_SNAPSHOT)
        assert html.count('<th scope="row">') == len(listed)
    near = (await client.get("/near.json")).json()
    assert [(one["customer"], one["used"], one["ceiling"], one["per_mille"]) for one in near] == [
        ("over", 12, 10, 1200),
        ("near", 8, 10, 800),
    ]


async def test_a_ledger_is_readable(store_url: str) -> None:
    """It showed revenue as 1500000000 usd, and called a status that was not there unknown."""
    async with shop(store_url) as at, pages_of(at.kit) as client:
        await at.subscribed()
        page = (await client.get("/ledger?of=acme")).text
        exported = (await client.get("/ledger.json?of=acme")).json()
    rows = re.findall(r"<td>(\w+)</td><td>(.*?)\s*</td><td>(.*?)\s*</td>", page, re.DOTALL)
    assert {("mrr", "none", "$15.00"), ("status", "none", "incomplete")} <= {*rows}
    assert [one["after"] for one in exported if one["kind"] == "mrr"] == ["1500000000 usd"]


async def test_limits_that_are_exceeded_stay_what_they_are(store_url: str, tmp_path: Path) -> None:
    """The used quantity was shown as the limit."""
    plans = PLANS.replace(
        "tokens:   {", "files: {unit: file, kind: gauge}\n  pages: {unit: page}\n  tokens:   {"
    )
    given = """
      files: {included: 5}
      pages: {included: 0}
      tokens: {included: 100, overage: {bill: {cap: 50, per: 1, amount_cents: 1}}}
"""
    plans = plans.replace("{included: 10, overage: deny}\n", f"{{included: 10, overage: deny}}{given}")
    audit, used = sqlite_in(tmp_path), {"requests": 12, "pages": 3, "tokens": 200}
    async with (
        MeterKit(loads(plans), redis_url=store_url, clock=Clock(START), audit_url=audit, flush=False) as kit,
        pages_of(kit) as client,
    ):
        for meter, units in used.items():
            await kit.record(meter, meter, units)
        await kit.gauges.set("files", "files", 6)
        await kit.customers.override("denied", {"tokens": {"overage": "deny"}})
        await kit.record("denied", "tokens", 125)
        await make_snapshot(kit)
        near = (await client.get("/near.json")).json()
    assert [(one["meter"], one["used"], one["ceiling"], one["per_mille"]) for one in near] == [
        ("tokens", 200, 150, 1333),
        ("tokens", 125, 100, 1250),
        ("files", 6, 5, 1200),
        ("requests", 12, 10, 1200),
        ("pages", 3, 0, 1000),
    ]


@pytest.mark.parametrize("part", ["state", "counters", "type"])
async def test_a_damaged_customer_hinders_no_figures(
    kit: MeterKit, client: AsyncClient, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    for customer in ("ada", "bob", "eve"):
        await kit.customers.set_plan(customer, "pro")
        await kit.record(customer, "requests", 8)
    keys, admin = kit.store.keys.customer("bob"), await kit.store.admin()
    if part == "state":
        await admin.ask(admin.client.hset(keys.state, "data", "x"))
    elif part == "type":
        await admin.ask(admin.client.set(keys.counters, "of another program", px=600_000))
    else:
        for name in await admin.ask(admin.client.hkeys(keys.counters)):
            await admin.ask(admin.client.hset(keys.counters, name, "x"))
    await make_snapshot(kit)
    assert [one["customer"] for one in (await client.get("/all.json")).json()] == ["ada", "eve"]
    assert "no figures on operator pages for customer 'bob': the stored data cannot be read" in caplog.text
    assert (await client.get("/")).status_code == 200


async def test_a_damaged_ledger_is_named_and_can_be_deleted(kit: MeterKit, client: AsyncClient) -> None:
    await kit.customers.link("bob", "cus_bob")
    await kit.customers.unlink("bob")
    admin = await kit.store.admin()
    await admin.ask(admin.client.rpush(kit.store.keys.customer("bob").history, "x"))
    for answer in (await client.get("/ledger?of=bob"), await client.get("/ledger.csv?of=bob")):
        assert answer.status_code == 503
        assert "the history of customer 'bob' cannot be read" in answer.json()["detail"]
    with pytest.raises(MeterkitError, match="history of customer 'bob' cannot be read"):
        await kit.customers.history("bob")
    assert (await kit.customers.delete("bob")).history >= 1
    assert await kit.customers.history("bob") == []


async def test_books_of_a_damaged_customer_name_it(kit: MeterKit, client: AsyncClient) -> None:
    await kit.grants.add("bob", {"tokens": 25}, grant_id="g1")
    admin = await kit.store.admin()
    await admin.ask(admin.client.hset(kit.store.keys.customer("bob").grants, "a m:tokens g1", "x"))
    answer = await client.get("/books?of=bob")
    assert answer.status_code == 503
    assert "the usage of customer 'bob' cannot be read" in answer.json()["detail"]


async def test_units_of_a_meter_that_has_left_the_file_are_shown(kit: MeterKit, client: AsyncClient) -> None:
    await kit.record("billed", "tokens", 5)
    without = [line for line in PLANS.splitlines() if "tokens" not in line]
    kit.store.use(loads("\n".join(without)))
    await make_snapshot(kit)
    figures = (await client.get("/", headers=JSON)).json()
    assert figures["delivered"]["tokens"]["unlinked"] == 5


async def test_lists_are_read_page_by_page(kit: MeterKit, client: AsyncClient) -> None:
    names = [f"c{nth:03}" for nth in range(205)]
    for nth, name in enumerate(names):
        await kit.record(name, "requests", 8 + nth % 3)
    await make_snapshot(kit)
    for path, order in (
        ("all", names),
        ("near", sorted(names, key=lambda name: (-(int(name[1:]) % 3), name))),
    ):
        seen, link = list[str](), path
        for _ in range(3):
            page = (await client.get(f"/{link}")).text
            seen += re.findall(r'<th scope="row"><a href="ledger\?of=([^"]*)"', page)
            found = re.search(r'<a href="([^"]*)">Next page', page)
            link = "" if found is None else found[1].replace("&amp;", "&")
        assert (seen, link) == (order, "")


async def test_a_place_that_no_page_has_named_is_answered(kit: MeterKit, client: AsyncClient) -> None:
    await kit.record("acme", "requests", 9)
    await make_snapshot(kit)
    for path in ("near", "all", "spiking", "degraded", "unconfirmed", "outbox", "webhooks", "messages"):
        for after in ("x", "x y", "-1", "\0", "9" * 30, f"{'9' * 30} x", "9" * 5_000):
            answer = await client.get(f"/{path}", params={"after": after}, headers=JSON)
            assert (answer.status_code, answer.json()) == (200, {"rows": [], "after": ""}), (path, after)


async def test_what_a_spreadsheet_takes_for_a_formula_is_quoted(kit: MeterKit, client: AsyncClient) -> None:
    names = ["=1+1", "+1", "-1", "@a", " =1", "\u00a0=1", "＝1", 'a,"b', "<script>"]  # noqa: RUF001
    for name in names:
        await kit.record(name, "requests", 1)
    await make_snapshot(kit)
    found = {row["customer"] for row in csv.DictReader(io.StringIO((await client.get("/all.csv")).text))}
    assert found == {*(f"'{name}" for name in names[:7]), *names[7:]}
    assert {one["customer"] for one in (await client.get("/all.json")).json()} == set(names)
    page = (await client.get("/all")).text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


async def test_a_spike_of_charges_is_shown_as_money(store_url: str) -> None:
    """It stood among those of tokens, as millions of them."""
    plans = f"{PLANS}credits: {{usd: {{unit: money, costs: {{tokens: provider_prices}}}}}}\n"
    async with (
        MeterKit(loads(plans), redis_url=store_url, clock=Clock(START), flush=False) as kit,
        pages_of(kit) as client,
    ):
        await note_findings(kit, "acme", "usd_charged")
        page = (await client.get("/spiking")).text
    assert '<data value="900">$0.0009</data>' in page


async def test_only_operators_see_the_pages(store_url: str, tmp_path: Path) -> None:
    async with selling(store_url, tmp_path) as kit:
        async with pages_of(kit, "") as client:
            for path in ("/", "/figures.csv", "/all", "/all.csv"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["title"]) == (403, "Forbidden")
        async with pages_of(kit) as client:
            for path in ("/none", "/none.csv", "/all.xml", "/figures.xml", "/plan", "/static/../operator.py"):
                assert (await client.get(path)).status_code == 404
            answer = await client.get("/")
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert " style=" not in answer.text
        nobody: Any = None
        with pytest.raises(MeterkitError, match="allowed: found None"):
            operator_pages(kit, allowed=nobody)


# F-22a: False gave 503.
@pytest.mark.parametrize(("name", "status"), [(False, 403), ("a\nb", 503), (7, 503)])
async def test_what_cannot_stand_in_a_ledger_is_no_operator(name: Any, status: int) -> None:
    async with selling("memory://", None) as kit:
        transport = httpx.ASGITransport(app=operator_pages(kit, allowed=lambda _: name))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            answer = await client.get("/")
    assert answer.status_code == status
    assert ("an operator's name is a text of 1 to 256 bytes" in answer.text) == (status == 503)


async def test_without_an_audit_log_the_page_names_the_cure(store_url: str) -> None:
    async with selling(store_url, None) as kit, pages_of(kit) as client:
        assert "set METERKIT_AUDIT_URL" in (await client.get("/")).text
        for path in ("/all", "/all.csv", "/paying?of=usd"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers.get("retry-after")) == (
                404,
                None,
            )  # F-316: it was 503.
            assert "set METERKIT_AUDIT_URL" in answer.json()["detail"]


async def test_a_page_asks_for_a_snapshot_and_a_task_makes_it(kit: MeterKit, client: AsyncClient) -> None:
    await kit.record("acme", "requests", 1)
    admin: Any = await kit.store.admin()
    asked = kit.store.keys.shard(0, "overview:asked")
    assert "Reload this page" in (await client.get("/")).text
    for path in ("/all", "/all.csv", "/delivered?of=pending tokens", "/paying?of=usd"):
        answer = await client.get(path)
        assert (answer.status_code, "are being computed" in answer.text) == (503, True)
    assert await admin.client.exists(asked)
    overview = overview_of(kit)
    assert await overview.snapshot_if_requested()
    assert not await admin.client.exists(asked)
    assert not await overview.snapshot_if_requested()
    assert (await client.get("/", headers=JSON)).json()["customers"]["customers"] == 1
    assert not await admin.client.exists(asked)


@contextmanager
def statements() -> Generator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


OF_A_SNAPSHOT = {"all", "refused", "near", "past_due", "unlinked", "access", "plan"}
VISITED = ("/", "/all", "/near", "/unlinked", "/plan?of=free", "/delivered?of=unlinked tokens")


async def test_a_page_asks_the_same_of_few_customers_and_of_many(valkey: Server, tmp_path: Path) -> None:
    """So the first byte does not wait longer where there are more: no clock tells that here."""
    asked: list[tuple[int, list[str]]] = []
    for number in (20, 400):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with selling(valkey.url, directory, shards=2) as kit, pages_of(kit) as client:
            await gather(*(kit.record(f"c{nth}", "tokens", 1) for nth in range(number)))
            await make_snapshot(kit)
            valkey.command("CONFIG", "RESETSTAT")
            with statements() as seen:
                for path in VISITED:
                    assert (await client.get(path)).status_code == 200
            calls = valkey.command("INFO", "commandstats")
            asked.append((sum(int(of["calls"]) for of in calls.values()), seen))
    (few, of_few), (many, of_many) = asked
    assert of_few == of_many
    of_customers = [one for one in of_many if "FROM meterkit_overview_" in one]
    assert len(of_customers) == len(VISITED) - 1
    assert all("LIMIT" in one for one in of_customers)
    assert many - few < 20
