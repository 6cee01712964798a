"""The statement of a customer: as HTML, JSON and CSV; whose it is; in Chromium."""

from __future__ import annotations

import csv
import io
import re
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest

from drivers.audit_database import drain_all, insert_rows, to_ms
from drivers.audited_kit import row_of, sqlite_in
from drivers.browser import chromium, faultless, needs_chromium
from drivers.command_line import InProcessShell
from drivers.period_ends import paying
from drivers.plans import completed, plans_text
from drivers.shop import START
from drivers.subscribed_customer import fetched, subscription
from drivers.usage_figures import JSON, page_of, serving_acme, statement_parts
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("statement_page")
OF_USERS: Final = (
    f"{PLANS}    subjects: {{user: {{requests: {{included: 5}}}}, team: {{tokens: {{included: 9}}}}}}\n"
)
FORMULA: Final = '=HYPERLINK("http://evil")'


def kit_with(store_url: str, url: str, clock: Clock, plans: str = PLANS) -> MeterKit:
    return MeterKit(loads(plans), redis_url=store_url, clock=clock, audit_url=url, flush=False)


@asynccontextmanager
async def used(store_url: str, directory: Path, plans: str = PLANS) -> AsyncGenerator[MeterKit]:
    """Acme has used some of all, with a correction whose reason is a formula."""
    url, clock = sqlite_in(directory), Clock(START)
    async with kit_with(store_url, url, clock, plans) as kit:
        for nth in range(1, 120):
            users = {"user": f"u_{nth}", "team": "a-team-with-a-long-name"} if nth % 2 else None
            await kit.record("acme", "tokens", nth, subjects=users)
            clock.advance(timedelta(seconds=1))
        await kit.consume("acme", "requests", 4)
        await kit.correct("acme", {"tokens": 40}, reason=FORMULA, correction_id="c-1")
        await kit.record("other", "tokens", 777_777)
        await drain_all(kit, url)
        yield kit


@pytest.fixture
async def kit(store_url: str, tmp_path: Path) -> AsyncGenerator[MeterKit]:
    async with used(store_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(kit: MeterKit) -> AsyncGenerator[httpx.AsyncClient]:
    async with page_of(kit) as opened:
        yield opened


async def test_csv_has_all_events_of_the_json(
    kit: MeterKit, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.insights.statement.statements._AT_ONCE", 50)
    answer = await client.get("/statement.csv")
    figures = (await client.get("/statement", headers=JSON)).json()
    whole = await kit.statement("acme", most=10_000)
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="statement.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["row"] for row in rows} == {"line", "event"}  # One head.
    lines = {row["line"]: row for row in rows if row["row"] == "line"}
    assert [line["id"] for line in figures["lines"]] == ["plan", "usage/requests", "usage/tokens"]
    assert [*lines] == [line["id"] for line in figures["lines"]]
    # As on invoices; `meter` has the keys.
    assert [row["description"] for row in lines.values()] == ["pro, per month", "Requests", "Tokens"]
    events = {(row["meter"], row["description"]) for row in rows if row["row"] == "event"}
    assert events == {("requests", "Requests"), ("tokens", "Tokens")}
    assert sum(int(row["amount_cents"]) for row in lines.values()) == figures["total_cents"]
    for line in whole.lines:
        told = [row for row in rows if row["row"] == "event" and row["line"] == line.id]
        assert [(row["event"], int(row["quantity"]), int(row["billed"])) for row in told] == [
            (event.event, event.quantity, event.billed) for event in line.events
        ]
        assert int(lines[line.id]["amount_cents"]) == line.amount_cents
    assert [row["why"] for row in rows if FORMULA in row["why"]] == [f"correction, -40 overage: {FORMULA}"]


@pytest.mark.whole
@pytest.mark.dear("memory is traced")
async def test_memory_of_a_csv_does_not_grow_with_its_events(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.insights.statement.statements._AT_ONCE", 20)
    url, start_ms = sqlite_in(tmp_path), to_ms(START)
    rows = [row_of(nth, period_start_ms=start_ms, recorded_at_ms=start_ms + nth) for nth in range(1, 1_001)]

    async def peak(kit: MeterKit) -> tuple[int, int]:
        """Of the second time: the first one fills caches."""
        events = most = 0
        for _ in range(2):
            tracemalloc.start()
            try:
                parts = [part.count("event,usage/tokens") async for part in statement_parts(kit, "acme")]
                events = sum(parts)
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        return events, most

    async with kit_with(store_url, url, Clock(START)) as kit:
        insert_rows(url, rows[:200])
        few, of_few = await peak(kit)
        insert_rows(url, rows[200:])
        many, of_many = await peak(kit)
    assert (few, many) == (200, 1_000)
    assert of_many < 2 * of_few  # Five times as much, if all were held.


async def test_an_event_names_its_users_and_its_event_id(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with kit_with(store_url, url, clock, OF_USERS) as kit:
        await kit.record("acme", "tokens", 4, subjects={"user": FORMULA, "team": "red"})
        clock.advance(timedelta(seconds=1))
        await kit.record("acme", "tokens", 5, event_id="job-7")
        await drain_all(kit, url)
        async with page_of(kit) as client:
            answer = await client.get("/statement.csv")
            figures = (await client.get("/statement", headers=JSON)).json()
            html = (await client.get("/statement")).text
    assert re.findall("<td class=.users.>(user .*?)</td>", unescape(html)) == [f"user {FORMULA}, team red"]
    assert html.count('<th scope="col">Used by</th>') == 1
    rows = [row for row in csv.DictReader(io.StringIO(answer.text)) if row["row"] == "event"]
    assert [row["subjects"] for row in rows] == [f"user:{FORMULA} team:red", ""]
    told = [event["subjects"] for line in figures["lines"] for event in line["events"]]
    assert told == [{"user": FORMULA, "team": "red"}, {}]
    of_app = [event["event_id"] for line in figures["lines"] for event in line["events"]]
    assert (of_app, [row["event_id"] for row in rows]) == ([None, "job-7"], ["", "job-7"])


async def test_a_page_without_subjects_names_no_user(store_url: str, tmp_path: Path) -> None:
    url, user = sqlite_in(tmp_path), "u_secret"
    async with kit_with(store_url, url, Clock(START), OF_USERS) as kit:
        await kit.record("acme", "tokens", 4, subjects={"user": user})
        await drain_all(kit, url)
        for subjects in (True, False):
            async with page_of(kit, subjects=subjects) as client:
                for path in ("/", "/statement", "/statement.csv"):
                    for headers in ({}, JSON):
                        answer = await client.get(path, headers=headers)
                        assert (answer.status_code, user in answer.text) == (200, subjects)
                        assert "Used by" not in answer.text or subjects


def table_of(html: str, line: str) -> list[list[str]]:
    """The head of a line's table, and its rows, as texts."""
    (section,) = re.findall(f'data-line="{line}">(.*?)</section>', html, re.DOTALL)
    rows = re.findall("<tr>(.*?)</tr>", section, re.DOTALL)
    cells = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]
    return [[re.sub("<.*?>", "", cell) for cell in row] for row in cells]


async def test_an_event_has_its_price(store_url: str, tmp_path: Path) -> None:
    plans = PLANS.replace("plans:\n", "  images: {unit: image, stripe: {event_name: images}}\nplans:\n") + (
        "      images: {included: 0, overage: {bill: {per: 1, amount_cents: 3000}}}\n"
        "  free:\n    extends: pro\n    meters: {tokens: {included: 1000, overage: deny}}\n"
    )
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with kit_with(store_url, url, clock, plans) as kit:
        await kit.customers.set_plan("acme", "free")
        await kit.record("acme", "tokens", 60)  # No overage is billed: no price is known.
        clock.advance(timedelta(seconds=1))
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 70)
        await kit.record("acme", "images", 2)
        await kit.consume("acme", "requests", 4)
        await drain_all(kit, url)
        async with page_of(kit) as client:
            html = (await client.get("/statement")).text
    head = ["Time (UTC)", "Quantity", "Billed", "Model", "Why"]
    priced = [*head[:3], "Price", *head[3:]]
    tokens, images = table_of(html, "usage/tokens"), table_of(html, "usage/images")
    assert [tokens[0], images[0], table_of(html, "usage/requests")[0]] == [priced, priced, head]
    assert [row[3] for row in tokens[1:]] == ["", "$12.00 per 1,000"]
    assert [row[3] for row in images[1:]] == ["$30.00 each"]
    assert '<data value="1">1</data> at $29.00 each</dd>' in html


async def test_a_balance_names_meters_as_invoices_do(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with kit_with(store_url, url, Clock(START), plans_text("simulate_command_sold")) as kit:
        await kit.grants.add("acme", {"usd": 5}, grant_id="gift")
        await kit.record("acme", "usd_charged", 1_000_000)
        await drain_all(kit, url)
        (name,) = {one.meter for one in (await kit.statement("acme")).balance if one.meter}
        async with page_of(kit) as client:
            html = (await client.get("/statement")).text
    (table,) = re.findall('id="balance-entries">(.*?)</table>', html, re.DOTALL)
    assert (name in table, f"<td>{kit.catalog.meters[name].title}</td>" in table) == (False, True)


async def test_a_line_is_paged(client: httpx.AsyncClient) -> None:
    line = (await client.get("/statement", headers=JSON)).json()["lines"][-1]
    assert (line["event_count"], len(line["events"])) == (120, 100)
    asked: Any = {"line": line["id"], "after": line["after"]}
    (rest,) = (await client.get("/statement", params=asked, headers=JSON)).json()["lines"]
    assert (len(rest["events"]), rest["after"]) == (20, "")
    html = (await client.get("/statement")).text
    assert "Used by" not in html
    assert "More events of this line" in html
    assert "120 events" in html
    for bad in ({"line": "nosuch"}, {"line": line["id"], "after": "x"}, {"period": "soon"}):
        assert (await client.get("/statement", params=bad)).status_code == 422


async def test_links_lead_to_the_period_that_they_name(store_url: str, tmp_path: Path) -> None:
    """Two periods begin on one day."""
    clock, starts = Clock(START), [START + timedelta(hours=hours) for hours in (15, 12, 0)]
    async with kit_with(store_url, sqlite_in(tmp_path), clock) as kit, page_of(kit) as client:
        for start in reversed(starts[:2]):
            clock.set(start)
            edges = {"start_ms": start, "end_ms": start + timedelta(days=30), "anchor_ms": start}
            await fetched(kit, subscription(created_ms=starts[1], **edges))
        path = "/"
        for start in starts:
            links = links_in((await client.get(path)).text)
            of_statement = links_in((await client.get(f"/{links['Statement']}")).text)
            for shown in (path, of_statement["Usage"]):
                figures = (await client.get(shown, headers=JSON)).json()
                assert figures["usage"]["period"]["start"] == f"{start:%Y-%m-%dT%H:%M:%SZ}"
            path = f"/{links['Previous period']}"
            assert path == f"/{of_statement['Previous period']}"


def links_in(html: str) -> dict[str, str]:
    return {words: unescape(href) for href, words in re.findall(r'<a href="([^"]+)">([^<]+)</a>', html)}


async def test_a_statement_is_its_customers_alone(client: httpx.AsyncClient) -> None:
    for path in ("/statement", "/statement.csv"):
        assert (await client.get(path, params={"customer": "other"})).status_code == 404
        assert (await client.get(path, headers={"x-customer-id": ""})).status_code == 401
        answer = await client.get(path)
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "777777" not in answer.text.replace(",", "")
    assert 'href="statement?period=' in (await client.get("/")).text


async def test_without_an_audit_log_the_page_names_the_cure(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, flush=False) as kit, page_of(kit) as client:
        for path in ("/statement", "/statement.csv"):
            answer = await client.get(path)
            assert (answer.status_code, "METERKIT_AUDIT_URL" in answer.json()["detail"]) == (404, True)
        assert 'href="statement' not in (await client.get("/")).text


@needs_chromium
@pytest.mark.dear("a browser")
@pytest.mark.whole
async def test_the_page_has_no_fault_in_a_browser(store_url: str, tmp_path: Path) -> None:
    async with used(store_url, tmp_path, OF_USERS) as kit, chromium() as browser:
        screens: tuple[tuple[Literal["light", "dark"], int], ...] = (("light", 360), ("dark", 1200))
        async with serving_acme(kit) as url:
            for theme, width in screens:
                async with faultless(browser, f"{url}statement", theme, width, within=url) as shown:
                    assert await shown.locator("details").count() == 2
                    await shown.locator("summary").last.click()
                    assert await shown.get_by_text("user u_1, team a-team-with-a-long-name").is_visible()


@pytest.mark.parametrize(
    ("price", "amount", "each", "word"),
    [
        ("per: 3, amount_cents: 10", "$0.03333333333333", "each", "per word"),
        ("per: 7_000_000, amount_cents: 12", "$0.01714286", "per 1,000,000", "per 1,000,000 words"),
    ],
)
async def test_a_price_of_many_decimals_is_of_few_units(
    store_url: str, tmp_path: Path, price: str, amount: str, each: str, word: str
) -> None:
    """Of a third of 10 cents, both pages said $33,333,333,333.33 per 1,000,000,000,000."""
    plans = plans_text("statement").replace("per: 1, amount_cents: 3}", f"{price}}}")
    prices = ("price_pro", "price_pro_requests", "price_pro_words")
    async with paying(store_url, plans, prices=prices, audit_url=sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "words", 130)
        await at.drain()
        async with page_of(at.kit) as client:
            page, statement = [(await client.get(path)).text for path in ("/", "/statement")]
    assert f"Beyond that: {amount} {word}" in page
    assert f">{amount} {each}</data>" in statement


BALANCE: Final = """
meters: {words: {unit: word}}
credits: {usd: {unit: money, costs: {tokens: provider_prices}}}
plans: {free: {price: {amount_cents: 0, interval: month}, meters: {words: {included: 1}}}}
"""
INTERNAL: Final = re.compile(
    r"\b(?:sealed|parked|intents?|outbox|burn|rev|books|counters|audit log|plans file)\b"
)


async def test_f_334_no_internal_word_is_on_a_statement(store_url: str, tmp_path: Path) -> None:
    """F-334: `burn`, `by the books`, "no event in the audit log", "no price in the plans file"."""
    url, plans = sqlite_in(tmp_path), completed(BALANCE)
    async with MeterKit(loads(plans), redis_url=store_url, audit_url=url, flush=False) as kit:
        await kit.grants.add("acme", {"usd": 1}, grant_id="paid")
        await kit.record("acme", "usd_charged", 600_001)
        await kit.record("acme", "words", 3)
        async with page_of(kit) as client:
            html = (await client.get("/statement")).text
    (tmp_path / "plans.yaml").write_text(plans)
    done = InProcessShell(tmp_path, METERKIT_REDIS_URL=store_url, METERKIT_AUDIT_URL=url).run(
        "statement", "acme"
    )
    assert "-$0.600001" in html
    assert "-$0.600001" in done.out
    assert [*INTERNAL.findall(html), *INTERNAL.findall(done.out)] == []
