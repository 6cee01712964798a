"""The usage page: its figures as HTML and as JSON, whose they are, and what foreign pages get."""

from __future__ import annotations

import re
from asyncio import gather
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from select import select
from socket import socket
from threading import enumerate as threads
from typing import Any

import httpx
import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.priced_shop import CATALOG as PRICED
from drivers.priced_shop import sell
from drivers.shop import CATALOG, END, START, Shop, shop
from drivers.usage_figures import JSON, ORIGINS, Tables, numbers_of, page_of
from faults.refusals import eventually
from meterkit import Contact, MeterKit, MeterkitError
from meterkit.catalog import loads
from meterkit.pages import usage_page
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

PORTAL = "https://app.example/billing"
PLANS = plans_text("usage_page")


@asynccontextmanager
async def selling(store_url: str, clock: Clock | None = None, **settings: Any) -> AsyncGenerator[MeterKit]:
    clock = clock or Clock(START)
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=clock, **settings) as kit:
        yield kit


@pytest.fixture
async def kit(store_url: str) -> AsyncGenerator[MeterKit]:
    async with selling(store_url) as opened:
        yield opened


@pytest.fixture
async def client(kit: MeterKit) -> AsyncGenerator[httpx.AsyncClient]:
    async with page_of(kit) as opened:
        yield opened


async def test_pages_have_the_name_that_contact_gives(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"acme": "Acme & Sons", "plain": None}

    async def contact(customer: str) -> Contact | None:
        return Contact("ada@acme.example", names[customer]) if customer != "gone" else None

    async with selling(store_url, audit_url=sqlite_in(tmp_path), contact=contact) as kit:
        for customer, shown in (
            ("acme", "Acme &amp; Sons"),
            *((other, f"Customer {other}") for other in ("plain", "gone", "broken")),
        ):
            async with page_of(kit, customer) as client:
                for path in ("/", "/statement"):
                    html = (await client.get(path)).text
                    assert f"<p>{shown}: " in html
                    assert f" of {shown.removeprefix('Customer ')}</title>" in html
                figures = (await client.get("/", headers=JSON)).json()
                assert figures["customer_name"] == names.get(customer)
    assert [one for one in caplog.messages if "KeyError" in one] == [
        "pages show the customer's id, not its name: contact: KeyError('broken')"
    ]


async def test_html_and_json_have_the_same_figures(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with selling(store_url, audit_url=url) as kit, page_of(kit) as client:
        await kit.record("acme", "tokens", 150)
        await kit.record("acme", "priced", 350)
        await kit.record("other", "tokens", 7)
        await kit.consume("acme", "requests", 4)
        await kit.grants.add("acme", {"requests": 25}, grant_id="gift")
        await kit.gauges.set("acme", "storage", 1234)
        await drain_all(kit, url)

        figures = (await client.get("/", headers=JSON)).json()
        numbers = Tables((await client.get("/")).text).numbers

        assert (await kit.usage("acme"))["meters"] == figures["usage"]["meters"]
        cents = {"plan_cents": 2900, "seats_cents": 0, "overage_cents": 300}
        assert figures["cost"] == cents | {"currency": "usd", "interval": "month", "unpriced": ["tokens"]}
        used = {"priced": [350], "requests": [4], "tokens": [150]}
        assert figures["days"] == {"days": ["2031-06-01"], "meters": used}
        (other,) = figures["other_plans"]
        assert other == {
            "plan": "max",
            "name": "Max",
            "cost_cents": 4960,
            "refused": ["requests"],
            "unpriced": [],
        }
        assert figures["seats"] == {"meter": "seats", "used": 0, "included": 3, "seat_cents": None}
        assert figures["storage"] == {"meter": "storage", "beyond_included": 0}
        assert figures["forecast"] is None  # No day has passed.
        assert all(figures[part] for part in ("rates", "grants"))
        assert numbers == numbers_of(figures)


async def test_overage_that_a_plan_does_not_bill_is_on_no_invoice(store_url: str) -> None:
    """The last request may exceed what is included: the page said that the invoice adds it."""
    catalog = loads(plans_text("statement"))
    async with MeterKit(catalog, redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record("acme", "words", 12)
        cost = (await client.get("/", headers=JSON)).json()["cost"]
        assert (cost["overage_cents"], cost["unpriced"]) == (0, [])


async def test_delivery_states_can_be_hidden_from_customers(kit: MeterKit) -> None:
    await kit.record("acme", "priced", 350)
    async with page_of(kit, delivery_states=False) as client:
        priced = (await client.get("/", headers=JSON)).json()["usage"]["meters"]["priced"]
    own = (await kit.usage("acme"))["meters"]["priced"]
    assert (own["used"], own.keys() - priced.keys()) == (
        priced["used"],
        {"pending", "unlinked", "queued", "leased", "parked", "delivered", "late", "dead"},
    )


async def test_pages_leave_connections_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.pages.usage_figures._TIMEOUT_S", 0.3)
    with socket() as database:
        database.bind(("127.0.0.1", 0))
        database.listen(100)
        url = f"postgresql+psycopg://ada@127.0.0.1:{database.getsockname()[1]}/audit"
        async with selling("memory://", audit_url=url, flush=False) as kit, page_of(kit) as client:
            answers = await gather(*(client.get("/", headers=JSON) for _ in range(20)))
        assert {answer.json()["days"] for answer in answers} == {None}
        # The others end without having asked; the database keeps these waiting.
        await eventually(lambda: len(reading()) == 8)
        asked = list[socket]()
        for _ in range(8):
            await eventually(lambda: bool(select([database], [], [], 0)[0]))
            asked.append(database.accept()[0])
        assert select([database], [], [], 0)[0] == []
    for one in asked:
        one.close()
    await eventually(lambda: not reading())


def reading() -> list[str]:
    return [thread.name for thread in threads() if thread.name == "meterkit-call"]


async def test_where_the_period_is_heading_and_the_one_before(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with selling(store_url, clock, audit_url=url) as kit, page_of(kit) as client:
        for units in (40, 20, 30):
            await kit.record("acme", "priced", units)
            await kit.consume("acme", "requests", 4)
            clock.advance(timedelta(days=1))
        await kit.record("acme", "priced", 1)
        await drain_all(kit, url)
        figures = (await client.get("/", headers=JSON)).json()
        left = (datetime(2031, 7, 1, tzinfo=UTC) - clock.now()) / timedelta(days=1)
        expected = 91 + round(30 * left)
        found = figures["forecast"]["meters"]
        assert found["priced"][0] == expected
        assert 91 < found["priced"][1] < expected < found["priced"][2]
        # Ten a month: more is refused.
        assert found["requests"] == [10, 10, 10]
        assert figures["forecast"]["cost_cents"][0] == 2900 + round((expected - 100) * 1.2)
        numbers = Tables((await client.get("/")).text).numbers
        assert numbers["forecast"] == figures["forecast"]["cost_cents"]
        assert numbers["forecast-priced"] == found["priced"]

        clock.set(datetime(2031, 7, 3, tzinfo=UTC))
        await kit.customers.set_plan("acme", "max")
        now = (await client.get("/", headers=JSON)).json()
        assert (now["previous_period"], now["plan_name"]) == ("2031-06-30T23:59:59Z", "Max")
        (entry,) = now["history"]
        assert (entry["kind"], entry["before"], entry["after"]) == ("plan", "pro", "max")
        before = (await client.get("/?period=2031-06-30", headers=JSON)).json()
        assert before["usage"]["meters"]["priced"]["recorded"] == 91
        assert before["days"]["meters"]["priced"][:4] == [40, 20, 30, 1]
        assert (before["forecast"], before["rates"], before["other_plans"]) == (None, [], [])
        page = (await client.get("/")).text
        assert 'data-label="Before">Pro &lt;b&gt;plan&lt;/b&gt;</td>' in page
        page = (await client.get("/?period=2031-06-30")).text
        assert "Current period" in page
        assert Tables(page).numbers["days priced"][:4] == [40, 40, 20, 60]
        assert Tables(page).numbers == numbers_of(before)
        # Limits, levels of gauges, the plan and its price are not kept by period.
        assert before["cost"] is None
        for unknown in ("Max", "Included", "Remaining", "Seats", "unlimited"):
            assert unknown not in page.partition("Usage by day")[0]
        ahead = (await client.get("/?period=2031-08-01", headers=JSON)).json()
        assert (ahead["forecast"], ahead["rates"], ahead["storage"]) == (None, [], None)
        page = (await client.get("/?period=2031-08-01")).text
        assert "Current period" in page
        assert {number for row in Tables(page).numbers.values() for number in row} == {0}
        for wrong in ("soon", "1969-12-31", "9999-12-31", ""):
            assert (await client.get(f"/?period={wrong}")).status_code == 422


async def test_what_a_customer_named_is_escaped(store_url: str) -> None:
    name = "<script>alert(1)</script>"
    async with selling(store_url) as kit, page_of(kit, name) as client:
        await kit.grants.add(name, {"requests": 25}, grant_id='"><img src=x>')
        await kit.record(name, "tokens", 5, event_id="a-key-of-the-app")
        assert "a-key-of-the-app" not in (await client.get("/", headers=JSON)).text
        page = (await client.get("/")).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page
        assert "<img" not in page
        assert "Pro &lt;b&gt;plan&lt;/b&gt;" in page


@pytest.mark.parametrize("part", ["history", "ledger", "grants"])
async def test_damaged_data_of_a_customer_is_a_problem_document(
    kit: MeterKit, client: httpx.AsyncClient, part: str
) -> None:
    await kit.grants.add("acme", {"requests": 25}, grant_id="g1")
    keys, admin = kit.store.keys.customer("acme"), await kit.store.admin()
    if part == "history":
        await admin.ask(admin.client.rpush(keys.history, "x"))
    elif part == "grants":
        await admin.ask(admin.client.hset(keys.grants, "a m:requests g1", "x"))
        with pytest.raises(MeterkitError, match="the usage of customer 'acme' cannot be read"):
            await kit.usage("acme")
    else:
        await admin.ask(admin.client.hset(keys.ledger, b"\xff", "x"))
        with pytest.raises(MeterkitError, match="the grants of customer 'acme' cannot be read"):
            await kit.grants.ledger("acme")
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")


async def test_a_trial_costs_nothing(store_url: str, tmp_path: Path) -> None:
    async with shop(store_url, audit_url=sqlite_in(tmp_path)) as at, page_of(at.kit) as client:
        await at.kit.subscriptions.create("acme", "tried")
        await at.kit.record("acme", "tokens", 150)
        await drain_all(at.kit, sqlite_in(tmp_path))
        at.clock.advance(timedelta(days=3))
        figures, page = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
        assert [invoice["total"] for invoice in await at.invoices()] == [0]
    assert (figures["cost"]["is_free"], figures["cost"]["plan_cents"]) == (True, 2000)
    assert figures["forecast"] == {"meters": {"tokens": [700, 332, 1068]}, "cost_cents": [0, 0, 0]}
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Cost so far $0.00 The trial costs nothing. Plan, per month $20.00" in words
    assert "150 %: used up, more is billed after the trial" in words
    assert "Beyond that after the trial: $0.02 per token" in words


async def test_usage_before_a_pause_that_voids_its_invoice_is_free(store_url: str, tmp_path: Path) -> None:
    """The period is paid, and the invoice with its usage will be void: $1.00 was shown as billed."""
    url = sqlite_in(tmp_path)
    async with shop(store_url, audit_url=url) as at, page_of(at.kit) as client:
        sold = await at.subscribed()
        await at.kit.record("acme", "tokens", 150)
        await drain_all(at.kit, url)
        at.go(timedelta(days=3))

        async def costs() -> tuple[int, int, int]:
            await at.kit.subscriptions.sync("acme")
            figures = (await client.get("/", headers=JSON)).json()
            total = (await at.kit.statement("acme")).total_cents
            return figures["cost"]["overage_cents"], figures["forecast"]["cost_cents"][0], total

        billed = await costs()
        await at.stripe_change(f"/v1/subscriptions/{sold.id}", **{"pause_collection[behavior]": "void"})
        assert await costs() == (0, 1500, 1500)
        await at.stripe_change(f"/v1/subscriptions/{sold.id}", pause_collection="")
        assert await costs() == billed == (100, 4300, 1600)


async def test_limited_access_and_changes_are_in_plain_words(store_url: str) -> None:
    catalog = replace(CATALOG, billing=replace(CATALOG.billing, portal_url=PORTAL))
    async with shop(store_url, catalog=catalog) as at:
        await at.subscribed()
        at.emulator.fail_payments((await at.kit.customers.get("acme")).stripe_customer or "")
        async with page_of(at.kit) as client:
            assert "notice" not in (await client.get("/")).text
            for days, words in (
                (31, "An invoice is unpaid. You keep full access for now."),
                (8, "Your access is restricted, because an invoice is unpaid."),
            ):
                at.clock.advance(timedelta(days=days))
                at.emulator.advance()
                await at.kit.subscriptions.sync("acme")
                page = (await client.get("/")).text
                assert f'<p class="notice">{words} <a href="{PORTAL}">Open the billing page</a></p>' in page
            assert 'data-label="After">past due</td>' in page


async def test_without_an_audit_log_the_page_names_its_setting(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    assert "Its operator turns them on with an audit log: set <code>METERKIT_AUDIT_URL</code>." in page
    assert (await client.get("/", headers=JSON)).json()["days"] is None


async def test_an_audit_log_that_fails_leaves_the_other_figures(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        selling(store_url, audit_url=f"sqlite:///{tmp_path}/none/audit.db") as kit,
        page_of(kit) as client,
    ):
        answer = await client.get("/", headers=JSON)
        assert (answer.status_code, answer.json()["days"]) == (200, None)
        page = (await client.get("/")).text
        assert "Daily figures cannot be shown at the moment." in page
        assert "METERKIT_AUDIT_URL" not in page
        await client.get("/", headers=JSON)
    (line,) = (line for line in caplog.messages if line.startswith("the usage page shows no daily figures"))
    assert "the database of the audit log failed" in line


async def test_only_the_own_page_is_there(kit: MeterKit, client: httpx.AsyncClient) -> None:
    await kit.record("other", "tokens", 7)
    assert (await client.get("/?customer=acme")).status_code == 200
    for path in ("/?customer=other", "/?customer=none", "/?customer=acme&customer=other"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")
    inside = ("/static/../usage_page.py", "/static/%2e%2e/usage_page.py")
    for path in ("/other", "/other/", "/other?customer=acme", *inside):
        assert (await client.get(path)).status_code == 404


async def test_requests_without_a_customer_or_cross_site_are_refused(
    kit: MeterKit, client: httpx.AsyncClient
) -> None:
    nobody: Any = None
    with pytest.raises(MeterkitError, match="customer: found None"):
        usage_page(kit, customer=nobody, origins=ORIGINS)
    evil: dict[str, str] = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    cases: list[tuple[int, dict[str, str]]] = [
        (401, {"x-customer-id": ""}),
        (400, {"x-customer-id": "a\x7f"}),
        *((403, headers) for headers in (evil, evil | {"origin": "http://app"}, {"origin": evil["origin"]})),
        *((200, {"origin": own}) for own in ("https://app.example", "http://app")),
        # A person follows a link of another site, or enters the address.
        *((200, {"sec-fetch-site": site}) for site in ("cross-site", "none", "same-origin")),
    ]
    for status, headers in cases:
        assert (await client.get("/", headers=headers)).status_code == status, headers
    assert (await client.post("/")).status_code == 405


async def test_without_the_store_there_is_no_page() -> None:
    async with selling("redis://127.0.0.1:1/0", start_timeout=0.05) as kit, page_of(kit) as client:
        for headers in ({}, JSON):
            answer = await client.get("/", headers=headers)
            assert (answer.status_code, "127.0.0.1" in answer.text) == (503, False)


async def test_each_answer_forbids_foreign_content_and_caches(client: httpx.AsyncClient) -> None:
    for headers in ({}, JSON, {"x-customer-id": ""}):
        answer = await client.get("/", headers=headers)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = (await client.get("/", headers={"accept": "text/html,application/json;q=0.9,*/*;q=0.8"})).text
    assert "1 Jun 2031 to 30 Jun 2031 (UTC)" in page
    assert " style=" not in page
    assert "//" not in page.replace("</", "")
    charts = ("charts.js", "uplot/uPlot.iife.min.js", "uplot/uPlot.min.css", "uplot/LICENSE")
    for file in ("pages.css", *charts):
        assert (await client.get(f"/static/{file}")).status_code == 200


async def test_invoices_of_a_subscriber(store_url: str) -> None:
    async with shop(store_url) as at, page_of(at.kit) as client:
        await at.subscribed()
        (invoice,) = (await client.get("/", headers=JSON)).json()["invoices"]
        assert invoice["total_cents"] == 1500
        row = Tables((await client.get("/")).text).numbers[f"invoice-list:{invoice['id']}"]
        assert row == [invoice["total_cents"], invoice["amount_paid_cents"]]


async def test_paid_seats_and_their_price_on_other_plans(store_url: str) -> None:
    async with shop(store_url) as at, page_of(at.kit) as client:
        await at.subscribed(seats=9)
        await at.kit.gauges.set("acme", "seats", 7)
        figures = (await client.get("/", headers=JSON)).json()
        assert (figures["cost"]["plan_cents"], figures["cost"]["seats_cents"]) == (1500, 4 * 700)
        numbers = Tables((await client.get("/")).text).numbers
        assert (numbers["seats-cents"], numbers) == ([2800], numbers_of(figures))
        others = {one["plan"]: (one["cost_cents"], one["refused"]) for one in figures["other_plans"]}
        assert others == {"free": (0, ["seats"]), "tried": (2000, ["seats"]), "pro": (2900, [])}


MONEY = plans_text("usage_page_money")


async def test_balances_are_money_and_model_prices_count_once(store_url: str) -> None:
    async with MeterKit(loads(MONEY), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.customers.spend_limit("acme", 300, per="day")
        await kit.grants.add("acme", {"usd": 12}, grant_id="paid")
        await kit.grants.add("acme", {"usd": 1}, grant_id="void")
        await kit.grants.void("acme", "void")  # It is not shown.
        (_, unspent) = (await client.get("/", headers=JSON)).json()["budgets"]
        assert (unspent["policy"], unspent["resets_at"]) == ("spend-1d", None)
        await kit.record("acme", "usd_charged", 1_760_525)
        await kit.record("acme", "output_tokens", 1_500)  # The pattern `*` has a price without a model, too.
        used = {"prompt_tokens": 0, "completion_tokens": 2_000, "total_tokens": 2_000}
        said = [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}]
        answer = {"object": "chat.completion", "model": "claude-opus-4", "choices": said, "usage": used}
        await kit.record_usage("acme", answer)
        figures, html = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
    assert figures["cost"]["overage_cents"] == 2 + 40
    left = figures["usage"]["balance_micros"]["usd"]
    shown = numbers_of(figures) | {"balance-usd": [left], "grant-list:paid": [12 * 1_000_000, left]}
    assert Tables(html).numbers == shown
    midnight = f"{START + timedelta(days=1):%Y-%m-%d}T00:00:00Z"
    assert figures["budgets"] == [
        {
            "policy": "spend-period",
            "spent_micros": 2_184_025,
            "limit_micros": 50_000_000,
            "resets_at": figures["usage"]["period"]["end"],
        },
        {"policy": "spend-1d", "spent_micros": 2_184_025, "limit_micros": 3_000_000, "resets_at": midnight},
    ]
    assert figures["top_up"] == {
        "credit": "usd",
        "url": "https://app.example/top-up?a=1&b=2",
        "amounts_cents": [1000, 5000],
    }
    assert [rate["policy"] for rate in figures["rates"]] == []
    assert '<a href="https://app.example/top-up?a=1&amp;b=2">Top up the balance</a>' in html
    assert '<progress aria-labelledby="spend-1d" max="3000000" value="2184025"></progress>' in html
    for text in ("$10.235975", "$50.00", "$3.00", "Output tokens: claude-*", "tokens: (default)"):
        assert text in html


async def test_a_balance_below_zero_is_shown_below_zero(store_url: str) -> None:
    async with MeterKit(loads(MONEY), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.grants.add("acme", {"usd": 1}, grant_id="paid")
        await kit.record("acme", "usd_charged", 36_400_001)
        figures, html = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
    assert figures["usage"]["balance_micros"] == {"usd": -35_400_001}
    assert Tables(html).numbers["balance-usd"] == [-35_400_001]
    assert "-$35.400001" in html


async def test_days_before_the_first_usage_are_not_in_the_forecast(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START + timedelta(days=5))
    async with selling(store_url, clock, audit_url=url) as kit, page_of(kit) as client:
        found: list[object] = []
        for units in (40, 0, 0):
            if units:
                await kit.record("acme", "priced", units)
                await drain_all(kit, url)
            found.append((await client.get("/", headers=JSON)).json()["forecast"])
            clock.advance(timedelta(days=1))
        first, second, third = found
        left = (datetime(2031, 7, 1, tzinfo=UTC) - START) / timedelta(days=1) - 6
        assert first is None
        assert isinstance(second, dict)
        assert isinstance(third, dict)
        assert second["meters"]["priced"][0] == 40 + round(40 * left)
        assert third["meters"]["priced"][0] == 40 + round(20 * (left - 1))


async def test_a_day_before_the_period_is_not_in_the_forecast(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    noon = START + timedelta(hours=12)
    async with shop(store_url, start=noon, audit_url=url) as at, page_of(at.kit) as client:
        await at.subscribed()
        for units in (400, 20):
            await at.kit.record("acme", "tokens", units)
            at.clock.advance(timedelta(days=1))
        await drain_all(at.kit, url)
        figures = (await client.get("/", headers=JSON)).json()
    start, end = (datetime.fromisoformat(figures["usage"]["period"][name]) for name in ("start", "end"))
    left = (end - at.clock.now()) / timedelta(days=1)
    assert (start, figures["days"]["meters"]["tokens"]) == (noon, [400, 20, 0])
    assert figures["forecast"]["meters"]["tokens"][0] == 420 + round(20 * left)


ADDONS = plans_text("addon_shop")


@asynccontextmanager
async def buying(
    store_url: str, plan: str, addons: dict[str, int], plans: str = ADDONS
) -> AsyncGenerator[Shop]:
    """A shop in which acme has subscribed to a plan with add-ons."""
    async with shop(store_url, catalog=loads(plans), selling=StripeEmulator.add_plans) as at:
        made = await at.kit.subscriptions.create("acme", plan, addons=addons)
        assert made.client_secret is not None
        at.emulator.confirm_payment(made.client_secret)
        await at.kit.subscriptions.sync("acme")
        yield at


async def test_addons_have_their_names_and_prices(store_url: str) -> None:
    addons = {"call_pack": 2, "storage_pack": 1}
    async with buying(store_url, "team", addons) as at, page_of(at.kit) as client:
        figures = (await client.get("/", headers=JSON)).json()
        assert figures["cost"]["addons"] == [
            {"addon": "call_pack", "name": "call_pack", "quantity": 2, "cents": 1000},
            {"addon": "storage_pack", "name": "Extra storage", "quantity": 1, "cents": 1000},
        ]
        text = (await client.get("/")).text
        assert "Extra storage, per month" in text
        assert Tables(text).numbers == numbers_of(figures)
        assert "35.00" in text  # The plan and its add-ons.


async def test_other_plans_have_the_addons_that_they_list(store_url: str) -> None:
    grant = "storage: {included: 100MB}}, max: 5"
    assert grant in ADDONS
    credited = f"{grant}, grants: [{{credit: ai, quantity: 30, every: period}}]"
    plans = ADDONS.replace(grant, credited) + "credits: {ai: {costs: {tokens: 1}}}\n"
    bought = {"storage_pack": 2, "seat_pack": 1}
    async with buying(store_url, "pro", bought, plans) as at, page_of(at.kit) as client:
        await at.kit.gauges.set("acme", "storage", 240_000_000)
        await at.kit.record("acme", "tokens", 150)
        found = (await client.get("/", headers=JSON)).json()["other_plans"]
        (team,) = [other for other in found if other["plan"] == "team"]
        # 250 MB; of the tokens the plan has 100, and the credits of two add-ons pay the rest.
        assert (team["cost_cents"], team["refused"]) == (1500 + 2 * 1000, [])
        await at.kit.gauges.set("acme", "storage", 250_000_001)
        await at.kit.record("acme", "tokens", 11)
        found = (await client.get("/", headers=JSON)).json()["other_plans"]
        (team,) = [other for other in found if other["plan"] == "team"]
        assert (team["cost_cents"], team["refused"]) == (3500 + 2, ["storage"])


async def test_addons_keep_their_prices_on_other_plans(store_url: str) -> None:
    """The add-on became dearer in the plans file; a change of plan leaves the item that was bought."""
    after = loads(
        ADDONS.replace(
            "Extra storage, price: {amount_cents: 1000", "Extra storage, price: {amount_cents: 1700"
        )
    )
    async with (
        buying(store_url, "team", {"storage_pack": 2}) as at,
        kit_for(store_url, at.url, clock=at.clock, catalog=after) as kit,
        page_of(kit) as client,
    ):
        found = (await client.get("/", headers=JSON)).json()["other_plans"]
        (pro,) = [other["cost_cents"] for other in found if other["plan"] == "pro"]
        assert pro == 2900 + 2 * 1000
        await kit.subscriptions.change_plan("acme", "pro")
        assert (await client.get("/", headers=JSON)).json()["cost"]["addons"][0]["cents"] == 2 * 1000


@pytest.mark.parametrize(
    ("given", "cents"),
    [
        ({"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 1}}}}, {"cheaper": 2030, "free": 0}),
        ({"tokens": {"included": 120}}, {"cheaper": 2030, "free": 0}),
        ({"pages": {"included": 3}}, {"cheaper": 2090, "free": 0}),
    ],
    ids=["price", "included", "other meter"],
)
async def test_overrides_stay_on_other_plans(
    store_url: str, given: dict[str, Any], cents: dict[str, int]
) -> None:
    """Without a subscription, as on the free plan, nothing bills an override's price."""
    async with shop(store_url, catalog=PRICED, selling=sell) as at, page_of(at.kit) as client:
        await at.subscribed(plan="basic")
        await at.kit.customers.override("acme", given)
        await at.kit.record("acme", "tokens", 130)
        found = (await client.get("/", headers=JSON)).json()["other_plans"]
        costs = {other["plan"]: other["cost_cents"] for other in found}
        assert {plan: costs[plan] for plan in cents} == cents


async def test_no_forecast_bills_an_overrides_price_after_the_end(store_url: str, tmp_path: Path) -> None:
    """Of what the default plan denies, a forecast has nothing, as the invoices have not."""
    url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=PRICED, selling=sell, audit_url=url) as at, page_of(at.kit) as client:
        await at.subscribed(plan="basic")
        price = {"bill": {"per": 1, "amount_cents": 1}}
        await at.kit.customers.override("acme", {"tokens": {"overage": price}})
        await at.kit.subscriptions.cancel("acme", immediately=True)
        at.clock.set(END)
        for units in (20, 20):
            await at.kit.record("acme", "tokens", units)
            at.clock.advance(timedelta(days=1))
        await drain_all(at.kit, url)
        forecast = (await client.get("/", headers=JSON)).json()["forecast"]
    assert forecast["cost_cents"] == [0, 0, 0]


async def test_a_forecast_has_overage_at_the_price_before_a_change(store_url: str, tmp_path: Path) -> None:
    url, clock = sqlite_in(tmp_path), Clock(START)
    async with (
        MeterKit(PRICED, redis_url=store_url, clock=clock, audit_url=url) as kit,
        page_of(kit) as client,
    ):
        await kit.customers.set_plan("acme", "basic")
        await kit.record("acme", "tokens", 160)
        clock.set(START + timedelta(days=2))
        await kit.customers.set_plan("acme", "cheaper")
        await kit.record("acme", "tokens", 40)
        clock.set(END - timedelta(seconds=1))
        await drain_all(kit, url)
        figures = (await client.get("/", headers=JSON)).json()
        assert figures["cost"]["overage_cents"] == 60 * 5 + 40 * 3
        assert figures["forecast"]["cost_cents"] == [2_000 + 420] * 3
        await kit.customers.set_plan("acme", "none")
        assert (await client.get("/", headers=JSON)).json()["forecast"]["cost_cents"] == [3_000 + 420] * 3


async def test_changes_name_plans_and_addons(store_url: str) -> None:
    named = ADDONS.replace("rank: 10", "name: Pro\n    rank: 10").replace(
        "rank: 5", "name: Team plan\n    rank: 5"
    )
    async with buying(store_url, "pro", {"storage_pack": 1}, named) as at, page_of(at.kit) as client:
        at.clock.advance(timedelta(hours=1))
        await at.kit.subscriptions.set_addons("acme", {"storage_pack": 2, "exports": 1})
        await at.kit.subscriptions.set_addons("acme", {"storage_pack": 0, "exports": 0})
        await at.kit.subscriptions.set_addons("acme", {"storage_pack": 1})
        await at.kit.subscriptions.change_plan("acme", "team")
        text = (await client.get("/")).text
        rows = re.findall(r"<tr.*?</tr>", text[text.index('id="changes"') :])
        found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
        last = " from 2031-07-01 00:00"
        assert found[1:5] == [
            [
                "Planned change",
                f"Pro with 10 seats and 1 Extra storage{last}",
                f"Team plan with 5 seats and 1 Extra storage{last}",
            ],
            [
                "Planned change",
                f"Pro with 10 seats and no add-ons{last}",
                f"Pro with 10 seats and 1 Extra storage{last}",
            ],
            ["Planned change", "none", f"Pro with 10 seats and no add-ons{last}"],
            ["Add-ons", "1 Extra storage", "1 Exports, 2 Extra storage"],
        ]
        (bought, *_) = [
            entry
            for entry in (await client.get("/", headers=JSON)).json()["history"]
            if entry["kind"] == "addons"
        ]
        assert bought["after"] == "1 exports, 2 storage_pack"  # By key, as the ledger has them.


async def test_what_a_budget_refuses_is_not_in_the_forecast(store_url: str, tmp_path: Path) -> None:
    """It had $95.00 for a plan of 10.00 whose budget admits 3.00 more."""
    url, clock = sqlite_in(tmp_path), Clock(START)
    plans = plans_text("priced_shop").replace(
        "    rank: 1\n", "    rank: 1\n    budget: {amount_cents: 300}\n", 1
    )
    async with (
        MeterKit(loads(plans), redis_url=store_url, clock=clock, audit_url=url) as kit,
        page_of(kit) as client,
    ):
        await kit.customers.set_plan("acme", "basic")
        for _ in range(2):
            await kit.record("acme", "tokens", 60)
            clock.advance(timedelta(days=1))
        await drain_all(kit, url)
        forecast = (await client.get("/", headers=JSON)).json()["forecast"]
    assert forecast["cost_cents"] == [1_300, 1_300, 1_300]
    assert forecast["meters"]["tokens"] == [160, 160, 160]
    assert forecast["meters"]["spend"] == [3_000_000, 3_000_000, 3_000_000]
