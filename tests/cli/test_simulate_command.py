"""``meterkit simulate``: what it prints, what it leaves out and says so, and what it refuses."""
# Internals: a table of revenue, filled by hand; a simulation whose ways disagree.

from __future__ import annotations

import csv
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.audit_database import AuditRow, drain_all, insert_rows
from drivers.command_line import InProcessShell, Shell
from drivers.plans import plans_text
from drivers.subscribed_customer import fetched, subscription
from drivers.webhooks import DAY, hooked
from drivers.webhooks import PLANS as SUBSCRIBED
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.revenue.revenue_formulas import CustomerPayment
from meterkit.insights.revenue.tables import RevenueTables
from meterkit.insights.simulation.simulation import Simulation, simulate
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, tzinfo=UTC)
PLANS = plans_text("simulate_command")
NEXT = (
    PLANS.replace("default_plan: year", "default_plan: free")
    .replace("  year:\n", "  annual:\n")
    .replace("  calls: {unit: call, stripe: {event_name: calls}}\n", "")
    .replace("consume: {calls: 1}", "consume: {words: 1}")
    .replace("      calls: {included: 100, overage: bill}\n", "")
    .replace("included: 1_000", "included: 500")
)


@asynccontextmanager
async def logging(
    server: Server, directory: Path, plans: str, clock: Clock | None = None
) -> AsyncGenerator[MeterKit]:
    """A kit, in June by default; in the end its audit log has what it has recorded."""
    (directory / "plans.yaml").write_text(plans)
    url = f"sqlite:///{directory}/audit.db"
    settings: dict[str, Any] = {"redis_url": server.url, "audit_url": url, "shards": 2, "store_timeout": 10.0}
    async with MeterKit(loads(plans), clock=clock or Clock(NOW), flush=False, **settings) as kit:
        yield kit
        await drain_all(kit, url)


def shell_of(server: Server, directory: Path) -> Shell:
    url = f"sqlite:///{directory}/audit.db"
    return InProcessShell(
        directory, METERKIT_REDIS_URL=server.url, METERKIT_AUDIT_URL=url, METERKIT_SHARDS="2"
    )


async def log_of(server: Server, directory: Path) -> Shell:
    """A log of what two customers used in June, and one who was deleted; and a shell beside it."""
    async with logging(server, directory, PLANS) as kit:
        for customer, words in (("ada", 700), ("bob", 1_700), ("gone", 90_000)):
            await kit.record(customer, "words", words)
            await kit.record(customer, "calls", 10)
        await kit.grants.add("bob", {"words": 5}, grant_id="gift")
        await drain_all(kit, f"sqlite:///{directory}/audit.db")
        await kit.customers.delete("gone")
    (directory / "next.yaml").write_text(NEXT)
    return shell_of(server, directory)


def answer_of(model: str, prompt: int, tokens: int) -> dict[str, Any]:
    said = [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}]
    used = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    return {"object": "chat.completion", "model": model, "choices": said, "usage": used}


@pytest.mark.dear("a month is served and tried again")
async def test_what_each_would_have_paid_and_what_is_left_out(valkey: Server, tmp_path: Path) -> None:
    shell = await log_of(valkey, tmp_path)
    given = ("simulate", "--plans", "next.yaml", "--period", "2031-06", "--cost", "words=600.5")
    found = shell.run(*given, "--json").json
    ada, bob = found["customers"]
    assert (ada["plan"], ada["now_cents"], ada["then_cents"], ada["estimates"]) == (
        "year",
        1_000,  # A twelfth.
        100,  # The other file has no such plan: its default plan, with 200 words beyond.
        ["derived meters are priced as their source"],
    )
    assert (ada["now_margin_cents"], ada["then_margin_cents"]) == (580, -320)
    assert (bob["now_cents"], bob["then_cents"], bob["refused"]) == (1_350, 600, {})
    assert bob["refused_first_at"] is None
    assert "grants that the app gave are left out" in bob["estimates"]
    prices = {"now_cents": 2_350, "then_cents": 700}
    counts = {"customers": 2, "refused": 0, "unprofitable": 2, "estimates": 2}
    assert (found["totals"], found["counts"], bob["currency"]) == ({"usd": prices}, counts, "usd")
    assert found["plans"] == {"year": {"totals": {"usd": prices}, **counts}}
    assert found["missing_meters"] == {"calls": 20}
    assert found["missing_plans"] == {"year": 2}
    assert (found["unpriced"], found["checked"], found["disagreeing"]) == ([], 2, [])
    assert found["not_logged"] == {}
    text = shell.run(*given)
    assert "the other plans file lacks the meter 'calls': 20 units are left out" in text.err
    assert "unprofitable then" in text.out
    assert all(words in text.out for words in ("margin now", "margin then", "$5.80", "-$3.20"))
    assert "margin" not in shell.run(*given[:-2]).out
    alone = shell.run(*given, "--customer", "bob", "--json").json
    assert [one["customer"] for one in alone["customers"]] == ["bob"]
    typo = shell.run(*given, "--customer", "bobb").err
    assert all(words in typo for words in ("unknown customer bobb", "there are no customers"))


async def test_half_a_cent_of_a_yearly_price_is_rounded_up(valkey: Server, tmp_path: Path) -> None:
    plans = PLANS.replace("12_000", "12_030")
    async with logging(valkey, tmp_path, plans) as kit:
        await kit.record("ada", "words", 1)
    shell = shell_of(valkey, tmp_path)
    found = shell.run("simulate", "--plans", "plans.yaml", "--period", "2031-06", "--json").json
    assert found["totals"] == {"usd": {"now_cents": 1_003, "then_cents": 1_003}}


async def test_who_is_refused_at_the_same_price_is_shown(valkey: Server, tmp_path: Path) -> None:
    plans = PLANS.replace("{bill: {per: 100, amount_cents: 50}}", "deny")
    async with logging(valkey, tmp_path, plans) as kit:
        for _ in range(3):
            assert (await kit.consume("ada", "words", 100)).allowed
    (tmp_path / "next.yaml").write_text(plans.replace("words: {included: 1_000", "words: {included: 100"))
    done = shell_of(valkey, tmp_path).run("simulate", "--plans", "next.yaml", "--period", "2031-06")
    (row,) = [line for line in done.out.splitlines() if line.startswith("ada")]
    assert row.split()[:6] == ["ada", "year", "$10.00", "$10.00", "200", "words"]


async def test_calculations_that_disagree_are_an_error(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def disagree(*args: Any, **options: Any) -> Simulation:
        return replace(await simulate(*args, **options), disagreeing=["ada"])

    monkeypatch.setattr("meterkit.insights.simulation.simulation.simulate", disagree)
    async with logging(valkey, tmp_path, PLANS) as kit:
        await kit.record("ada", "words", 1)
    given = ("simulate", "--plans", "plans.yaml", "--period", "2031-06", "--json")
    done = shell_of(valkey, tmp_path).run(*given)
    assert (done.code, done.json["disagreeing"]) == (1, ["ada"])
    assert "two calculations disagree about 'ada': please report this" in done.err


async def test_usage_that_the_log_lacks_is_named(valkey: Server, tmp_path: Path) -> None:
    today = datetime.now(UTC)  # Commands have no other clock, and show nothing of the future.
    given = ("simulate", "--plans", "plans.yaml", "--period", f"{today:%Y-%m-%d}")
    shell = shell_of(valkey, tmp_path)
    async with logging(valkey, tmp_path, PLANS, Clock(today)) as kit:
        await kit.record("ada", "words", 700)
    async with logging(valkey, tmp_path, PLANS, Clock(today)) as kit:
        await kit.record("ada", "words", 30)
        await kit.record("new", "words", 4)
        assert shell.run(*given, "--json").json["not_logged"] == {"words": 34}
        assert "the audit log lacks 34 units of 'words' that the store has recorded" in shell.run(*given).err
    assert shell.run(*given, "--json").json["not_logged"] == {}


async def test_usage_from_before_a_deletion_is_not_tried(valkey: Server, tmp_path: Path) -> None:
    clock = Clock(NOW)
    async with logging(valkey, tmp_path, PLANS, clock) as kit:
        await kit.record("ada", "words", 90_000)
        clock.advance(timedelta(hours=1))
        await kit.customers.delete("ada")
        clock.advance(timedelta(hours=1))
        await kit.record("ada", "words", 1_200)
    found = shell_of(valkey, tmp_path).run(
        *("simulate", "--plans", "plans.yaml", "--period", "2031-06", "--json")
    )
    assert [(one["customer"], one["then_cents"]) for one in found.json["customers"]] == [("ada", 1_100)]


async def test_usage_after_a_deletion_is_tried_in_an_earlier_period(valkey: Server, tmp_path: Path) -> None:
    """Before the deletion a subscription had begun a period amid the month; after it the month counts."""
    clock, url = Clock(NOW), f"sqlite:///{tmp_path}/audit.db"
    start_ms = int((NOW - timedelta(days=5)).timestamp() * 1000)
    async with logging(valkey, tmp_path, PLANS, clock) as kit:
        insert_rows(url, [AuditRow("x/1", "words", "recorded", "ada", start_ms, start_ms + 1, 90_000)])
        await kit.customers.delete("ada")
        clock.advance(timedelta(hours=1))
        await kit.record("ada", "words", 1_200)
    found = shell_of(valkey, tmp_path).run(
        *("simulate", "--plans", "plans.yaml", "--period", "2031-06-10", "--json")
    )
    assert [(one["customer"], one["then_cents"]) for one in found.json["customers"]] == [("ada", 1_100)]
    assert found.json["not_logged"] == {}


async def test_damaged_customers_are_named_and_others_tried(valkey: Server, tmp_path: Path) -> None:
    async with logging(valkey, tmp_path, PLANS) as kit:
        for customer in ("ada", "bob", "eve"):
            await kit.customers.set_plan(customer, "free")
            await kit.record(customer, "words", 1_200)
        admin, keys = await kit.store.admin(), kit.store.keys
        await admin.client.hset(keys.customer("bob").state, "data", b"{")
        await admin.client.delete(keys.customer("eve").history)
        await admin.client.set(keys.customer("eve").history, b"no list")
    found = shell_of(valkey, tmp_path).run(
        *("simulate", "--plans", "plans.yaml", "--period", "2031-06-10", "--json")
    )
    assert [one["customer"] for one in found.json["customers"]] == ["ada"]
    told = [note.partition(":")[0] for note in found.json["left_out"]]
    assert told == [f"customer {who!r} is not tried" for who in ("bob", "eve")]


async def test_what_cannot_be_tried_is_refused_with_its_cure(valkey: Server, tmp_path: Path) -> None:
    shell = await log_of(valkey, tmp_path)
    (tmp_path / "euros.yaml").write_text(NEXT.replace("currency: usd", "currency: eur"))
    for wrong, said in (
        (("simulate", "--plans", "euros.yaml"), "amounts of two currencies are not compared"),
        (("simulate",), "--plans next.yaml"),
        (("simulate", "--plans", "none.yaml"), "none.yaml"),
        (("simulate", "--plans", "next.yaml", "--cost", "words"), "METER=CENTS"),
        (("simulate", "--plans", "next.yaml", "--cost", "wrods=1"), "no meter 'wrods'"),
    ):
        done = shell.run(*wrong)
        assert (done.code != 0, said in done.err) == (True, True), (wrong, done.err)
    del shell.environment["METERKIT_AUDIT_URL"]
    done = shell.run("simulate", "--plans", "next.yaml")
    assert (done.code, "set METERKIT_AUDIT_URL" in done.err) == (2, True)


IN_CURRENCIES = plans_text("currencies").replace("default_plan: free", "default_plan: pro")


async def test_each_customer_is_tried_in_its_own_currency(valkey: Server, tmp_path: Path) -> None:
    async with logging(valkey, tmp_path, IN_CURRENCIES) as kit:
        for customer, currency in (("ada", ""), ("bob", "eur"), ("kim", "jpy"), ("tim", "jpy")):
            await fetched(kit, subscription(currency=currency), customer=customer)
            await kit.record(customer, "words", 120)
    cheaper = IN_CURRENCIES.replace("{usd: 12, eur: 11, jpy: 15}", "{usd: 6, eur: 5, jpy: 1}")
    # Another order is the same file: who has no currency yet pays in the first one of the present file.
    (tmp_path / "next.yaml").write_text(cheaper.replace("[usd, eur, jpy]", "[jpy, usd, eur]"))
    shell = shell_of(valkey, tmp_path)
    given = ("simulate", "--plans", "next.yaml", "--period", "2031-06", "--cost", "words=2000")
    found = shell.run(*given, "--json").json
    assert {one["customer"]: (one["currency"], one["now_cents"]) for one in found["customers"]} == {
        "ada": ("usd", 3140),
        "bob": ("eur", 2920),
        "kim": ("jpy", 4300),
        "tim": ("jpy", 4300),
    }
    assert found["totals"] == {
        "eur": {"now_cents": 2920, "then_cents": 2800},
        "jpy": {"now_cents": 8600, "then_cents": 8040},
        "usd": {"now_cents": 3140, "then_cents": 3020},
    }
    assert found["disagreeing"] == []
    margins = {
        one["customer"]: (one["now_margin_cents"], one["then_margin_cents"]) for one in found["customers"]
    }
    # The cost is in dollars: no euro is left of them.
    assert margins == {"ada": (2_900, 2_780), **dict.fromkeys(("bob", "kim", "tim"), (None, None))}
    at_a_loss = shell.run(*given[:-1], "words=60_000", "--json").json
    assert at_a_loss["customers"][0]["now_margin_cents"] < 0
    assert at_a_loss["counts"]["unprofitable"] == 0  # It was before, too.
    text = shell.run("simulate", "--plans", "next.yaml", "--period", "2031-06").out
    rows = [line.split()[0] for line in text.splitlines() if line.startswith(("ada", "bob", "kim", "tim"))]
    assert rows == ["kim", "tim", "ada", "bob"]  # Those whose price changes most are first.
    assert all(amount in text for amount in ("$31.40", "€28.00", "¥8,600", "¥8,040"))
    (tmp_path / "next.yaml").write_text(plans_text("webhooks"))
    done = shell.run("simulate", "--plans", "next.yaml")
    assert (done.code != 0, "give it eur, jpy, too" in done.err) == (True, True)


SOLD = plans_text("simulate_command_sold")
BY_MODEL = (
    SOLD.replace(
        "plans:\n", 'prices:\n  out: {default: 4 per 1000, models: {"*-large": 20 per 1000}}\nplans:\n'
    )
    .replace("bill: {per: 1000, amount_cents: 4}", "bill: {price: prices.out}")
    .replace(
        "    costs: {tokens: provider_prices}\n",
        "    costs: {tokens: provider_prices}\n    top_up: {packs: [1000]}\n",
    )
)


async def test_prices_by_model_are_tried_without_top_ups(valkey: Server, tmp_path: Path) -> None:
    async with logging(valkey, tmp_path, SOLD) as kit:
        for customer, model in (("ada", "our-large"), ("bob", "our-small")):
            for tokens in (600, 2_400):
                await kit.record_usage(customer, answer_of(model, 10, tokens))
    (tmp_path / "next.yaml").write_text(BY_MODEL)
    shell = shell_of(valkey, tmp_path)
    found = shell.run("simulate", "--plans", "next.yaml", "--period", "2031-06", "--json").json
    prices = {one["customer"]: (one["now_cents"], one["then_cents"]) for one in found["customers"]}
    assert prices == {"ada": (508, 540), "bob": (508, 508)}  # 2,000 tokens beyond.
    assert (found["unpriced"], found["missing_meters"], found["disagreeing"]) == ([], {}, [])
    (bought,) = found["left_out"]
    assert "top-ups of usd are not bought" in bought
    assert bought in shell.run("simulate", "--plans", "next.yaml", "--period", "2031-06").err
    same = shell.run("simulate", "--plans", "plans.yaml", "--period", "2031-06", "--json").json
    assert same["left_out"] == []


async def test_another_markup_is_tried_without_money_prices(valkey: Server, tmp_path: Path) -> None:
    async with logging(valkey, tmp_path, SOLD) as kit:
        for customer, calls in (("ada", 3), ("bob", 1)):
            for _ in range(calls):
                await kit.record_usage(customer, answer_of("our-large", 0, 4_000))
        await kit.record("bob", "usd_charged", 1_505_000)  # No call: no markup is on it.
    dearer = SOLD.replace("provider_prices}", "provider_prices, markup: 50%}")
    other = dearer.replace("1 per 1000}}", "2 per 1000}}").replace(
        "    meters: {output", "    subjects: {user: {output_tokens: {included: 5}}}\n    meters: {output"
    )
    shell = shell_of(valkey, tmp_path)

    def tried(text: str) -> tuple[dict[str, tuple[int, int]], list[str], dict[str, Any]]:
        (tmp_path / "next.yaml").write_text(text)
        found = shell.run("simulate", "--plans", "next.yaml", "--period", "2031-06", "--json").json
        assert found["disagreeing"] == []
        customers = {one["customer"]: one for one in found["customers"]}
        charged = {
            name: (one["now_charged_cents"], one["then_charged_cents"]) for name, one in customers.items()
        }
        return charged, found["left_out"], {name: one["refused"] for name, one in customers.items()}

    assert tried(dearer) == ({"ada": (1_200, 1_800), "bob": (551, 751)}, [], {"ada": {}, "bob": {}})
    charged, _, refused = tried(dearer.replace("quantity: 100", "quantity: 12"))
    # The third call would have found nothing left of twelve dollars.
    assert (charged, refused["bob"]) == ({"ada": (1_200, 1_200), "bob": (551, 751)}, {})
    assert refused["ada"] == {"output_tokens": 4_000, "usd_charged": 6_000_000}
    charged, (prices, subjects), _ = tried(other)
    assert charged == {"ada": (1_200, 1_200), "bob": (551, 551)}
    assert prices.startswith("what calls took from usd is that of the log: other prices under `models`")
    assert subjects.startswith("limits of each user are not tried for 2 customers: none of their usage")


async def test_days_are_shown_as_text_csv_and_json(valkey: Server, tmp_path: Path) -> None:
    audit_url = f"sqlite:///{tmp_path / 'audit.db'}"
    (tmp_path / "plans.yaml").write_text(SUBSCRIBED)
    shell = InProcessShell(
        tmp_path, METERKIT_REDIS_URL=valkey.url, METERKIT_AUDIT_URL=audit_url, METERKIT_SHARDS="4"
    )
    async with hooked(valkey.url, audit_url=audit_url) as at:
        refused = shell.run("revenue")
        assert (refused.code, "no snapshot of any day" in refused.err) == (1, True)
        at.customer("acme")
        await at.subscribe("acme")
        await at.settle()
        at.clock.advance(DAY)
        await at.kit.revenue.snapshot()
        at.customer("globex")
        await at.subscribe("globex", "price_max")
        await at.settle()
        at.clock.advance(DAY)
        await at.kit.revenue.snapshot()
    assert shell.run("revenue", "spend", "2031-06-10=1_500", "2031-06-11=500").code == 0
    span = ("revenue", "--from", "2031-06-01", "--to", "2031-06-11")
    lines = shell.run(*span).out.splitlines()
    assert [line.split()[:4] for line in lines[-2:]] == [
        ["2031-06-10", "1", "$10.00", "$10.00"],
        ["2031-06-11", "2", "$30.00", "$20.00"],
    ]
    rows = list(csv.DictReader(shell.run(*span, "--csv").out.splitlines()))
    assert [(row["day"], row["mrr"], row["new"], row["nrr"], row["cac_cents"]) for row in rows] == [
        ("2031-06-10", "1000000000", "1000000000", "", "1500"),
        ("2031-06-11", "3000000000", "2000000000", "", "1000"),
    ]
    (shown,) = shell.run("revenue", "--to", "2031-06-11", "--json").json
    assert (shown["currency"], shown["customers"], shown["arpa"]) == ("usd", 2, 1_500_000_000)
    none = shell.run("revenue", "--from", "2031-06-11", "--to", "2031-06-10")
    assert (none.code, "found no snapshot from 2031-06-11 to 2031-06-10" in none.err) == (1, True)


async def test_half_a_cent_of_revenue_is_rounded_up(valkey: Server, tmp_path: Path) -> None:
    day = datetime.now(UTC).date() - timedelta(days=3)
    paid = [CustomerPayment("acme", "pro", "usd", 1_000_500_000)]
    async with logging(valkey, tmp_path, PLANS):
        RevenueTables(Database(f"sqlite:///{tmp_path}/audit.db")).write(day, paid, [])
    assert "$10.01" in shell_of(valkey, tmp_path).run("revenue").out


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    shell = InProcessShell(tmp_path, METERKIT_REDIS_URL="memory://", METERKIT_AUDIT_URL="sqlite://")
    (tmp_path / "plans.yaml").write_text(SUBSCRIBED)
    for wrong in (
        "2031-06-10",
        "2031-06-10=-1",
        "2031-06-31=1",
        "today=1",
        "2031-06-10=1e3",
        "2031-06-10=1_",
    ):
        done = shell.run("revenue", "spend", wrong)
        assert (done.code, "allowed is" in done.err) == (2, True), wrong
    for wrong in ("words", "words=1_", "words=1__0", "words=_1"):
        done = shell.run("simulate", "--plans", "plans.yaml", "--cost", wrong)
        assert (done.code, "allowed is" in done.err) == (2, True), wrong
    both = shell.run("revenue", "--csv", "--json")
    assert (both.code, "not both" in both.err) == (2, True)
