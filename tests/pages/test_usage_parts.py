"""Parts of the usage page: spend limits, invoices, storage by type, users and teams."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Final

import httpx
import pytest

from drivers.shop import START, shop
from drivers.usage_figures import JSON, Tables, numbers_of, page_of
from meterkit import Invoice, MeterKit
from meterkit.catalog import loads
from meterkit.starlette import storage_events
from meterkit.testing import Clock
from pages.test_cards import card_of, cards_in, words_in
from storage.objects import Happened

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  tokens:  {unit: token, name: Tokens, stripe: {event_name: ai_tokens}}
  storage: {unit: byte, kind: gauge}
storage:
  gauge: storage
  objects: {bucket: uploads, key: "{customer}/{type}/{path:path}"}
  types: [documents, images]
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    budget: {amount_cents: 500}
    meters:
      tokens:  {included: 100, overage: {bill: {per: 1, amount_cents: 1}}}
      storage: {included: 3MB}
    subjects:
      user: {tokens: {included: 50}, budget: {amount_cents: 200, per: day}}
      team: {tokens: {rate: 1000/minute}}
"""
SECRET: Final = "a secret of MinIO"


def rows_of(html: str, list_class: str) -> list[str]:
    """The words of each entry of lists."""
    lists = re.findall(rf'<ul class="{list_class}"[^>]*>(.*?)</ul>', html, re.DOTALL)
    return [words_in(entry) for of in lists for entry in re.findall(r"<li.*?</li>", of, re.DOTALL)]


async def test_bars_say_which_users_and_teams_use_most(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        for nth in range(7):
            await kit.record("acme", "tokens", 10 * nth, subjects={"user": f"u{nth}", "team": f"t{nth % 2}"})
        figures, html = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
        before = (await client.get("/?period=2031-05-01", headers=JSON)).json()
    users = [row for row in figures["subjects"] if (row["kind"], row["meter"]) == ("user", "tokens")]
    assert [(row["subject"], row["used"], row["limit"]) for row in users] == [
        (f"u{nth}", 10 * nth, 50) for nth in range(6, -1, -1)
    ]
    assert Tables(html).numbers == numbers_of(figures)
    assert card_of(html, "by-1") == (
        "Usage by user Tokens u6 60 of 50, 120 %: used up u5 50 of 50, 100 %: used up"
        " u4 40 of 50, 80 %: nearly used up u3 30 of 50, 60 % used u2 20 of 50, 40 % used"
        " And 1 more in the table."
        " Spend limit per day"
        + "".join(f" u{n} $0.{n}0 of $2.00, {5 * n} % used" for n in (6, 5, 4, 3, 2))
        + " And 1 more in the table."
    )
    assert card_of(html, "by-2") == "Usage by team Tokens t0 120 t1 90"
    assert before["subjects"] == []


async def test_what_a_user_holds_is_used(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        user = {"user": "u1"}
        await kit.record("acme", "tokens", 3, subjects=user)
        async with kit.reserve("acme", {"tokens": 7}, subjects=user):
            rows = (await client.get("/", headers=JSON)).json()["subjects"]
    assert [row["used"] for row in rows if (row["kind"], row["meter"]) == ("user", "tokens")] == [10]


async def test_a_user_without_any_quantity_has_used_it_up(store_url: str) -> None:
    plans = loads(PLANS.replace("user: {tokens: {included: 50}", "user: {tokens: {included: 0}"))
    async with MeterKit(plans, redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record("acme", "tokens", 3, subjects={"user": "u1"})
        html = (await client.get("/")).text
    assert card_of(html, "by-1").startswith("Usage by user Tokens u1 3 of 0, 100 %: used up")


async def test_a_spend_limit_says_what_is_left_and_is_first_if_near(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        for units, words, is_first in (
            (400, "$2.00 left this billing period $3.00 of $5.00 60 % used", False),
            (150, "$0.50 left this billing period $4.50 of $5.00 90 %: nearly used up", True),
            (150, "$0.00 left this billing period $6.00 of $5.00 120 %: used up", True),
        ):
            await kit.record("acme", "tokens", units)
            html = (await client.get("/")).text
            assert card_of(html, "budgets").startswith(
                f"Spend limit {words} Starts again on 1 Jul 2031 (UTC)."
            )
            assert (html.index('id="budgets"') < html.index("data-card=")) == is_first


async def test_no_more_is_billed_than_a_budget_admits(store_url: str) -> None:
    """The card of tokens said "more is billed", and another plan's cost was beyond its budget."""
    less = "  less:\n    extends: pro\n    rank: 5\n    budget: {amount_cents: 400}\n"
    async with (
        MeterKit(loads(PLANS + less), redis_url=store_url, clock=Clock(START)) as kit,
        page_of(kit) as client,
    ):
        await kit.record("acme", "tokens", 550)
        (other,) = (await client.get("/", headers=JSON)).json()["other_plans"]
        assert (other["cost_cents"], other["refused"]) == (3_350, ["spend"])
        assert "more is billed" in cards_in((await client.get("/")).text)["tokens"]
        await kit.record("acme", "tokens", 50)
        assert not (await kit.check("acme", "tokens")).allowed
        html = (await client.get("/")).text
        assert "600 %: used up Beyond" in cards_in(html)["tokens"]
        assert "<td>Spend</td>" in html


async def test_a_budget_that_only_notifies_is_no_limit(store_url: str) -> None:
    """The page called it used up, where nothing is refused."""
    plans = PLANS.replace("{amount_cents: 500}", "{amount_cents: 500, at_limit: notify}")
    async with MeterKit(loads(plans), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        await kit.record("acme", "tokens", 700)
        assert (await kit.check("acme", "tokens")).allowed
        figures, html = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
        assert (figures["budgets"], 'id="budgets"' in html) == ([], False)
        await kit.customers.spend_limit("acme", 300)
        (limit,) = (await client.get("/", headers=JSON)).json()["budgets"]
    assert limit["limit_micros"] == 3_000_000


async def test_storage_has_a_bar_for_each_type(store_url: str) -> None:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit, page_of(kit) as client:
        transport = httpx.ASGITransport(storage_events(kit, secret=SECRET))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as minio:
            for key, size in (("documents/a", 1_000_000), ("images/a", 3_000_000)):
                body = Happened.put(f"acme/{key}", size, 1_939_000_000_000).as_body("minio", "uploads")
                headers = {"authorization": f"Bearer {SECRET}"}
                assert (await minio.post("/", content=body, headers=headers)).status_code == 200
        figures, html = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
    assert rows_of(html, "bars") == ["images 3 MB, 75 %", "documents 1 MB, 25 %", "other 0 bytes, 0 %"]
    assert "You store 1 MB more than the plan includes." in card_of(html, "storage")
    assert Tables(html).numbers == numbers_of(figures)


async def test_the_invoice_to_pay_is_first(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop(store_url) as at, page_of(at.kit) as client:
        assert "last-invoices" not in (await client.get("/")).text
        await at.subscribed()
        paid = "$15.00, paid 1 Jun 2031"
        assert rows_of((await client.get("/")).text, "lines") == [paid]
        linked = await at.fail_payments()
        await at.post(f"/v1/customers/{linked}", {"balance": -400})
        at.clock.advance(timedelta(days=31))
        at.emulator.advance()
        await at.kit.subscriptions.sync("acme")
        to_pay = "$11.00, to pay 1 Jul 2031 Pay"
        assert rows_of((await client.get("/")).text, "lines") == [to_pay, paid]

        newest, oldest = await at.kit.subscriptions.invoices("acme")
        statuses = ("draft", "void", "paid", "paid", "paid", "open")
        shown = [replace(newest, status=status) for status in statuses]

        async def invoices(_: str) -> list[Invoice]:
            return [*shown, oldest]

        monkeypatch.setattr(at.kit.subscriptions, "invoices", invoices)
        renewed = "$15.00, paid 1 Jul 2031"
        assert rows_of((await client.get("/")).text, "lines") == [to_pay, renewed, renewed]
