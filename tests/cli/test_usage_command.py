"""``meterkit usage``: of a customer, of all, by model; no id ends a line or begins a formula."""

from __future__ import annotations

import csv
import re
from io import StringIO
from pathlib import Path
from typing import Final

import pytest

from drivers.audit_database import drain
from drivers.command_line import InProcessShell, Shell
from drivers.plans import plans_text

pytestmark = pytest.mark.anyio

COUNTS = {
    *("used", "included", "granted", "held", "remaining", "overage", "overage_cents", "recorded", "pending"),
    *("unlinked", "queued", "leased", "parked", "delivered", "late", "dead", "over_cap"),
}

SOLD = plans_text("usage_command")


async def test_json_is_what_the_kit_says_with_instants_in_utc(stored: Shell) -> None:
    async with stored.kit() as kit:
        await kit.record("acme", "tokens", 25)
        await kit.consume("acme", "requests", 3)
        said = await kit.usage("acme")
    found = stored.run("usage", "acme", "--json").json
    assert found.keys() == said.keys()
    assert found["meters"] == said["meters"]
    assert COUNTS == set(found["meters"]["tokens"])
    assert (25, 10, "unlimited", 15, 25) == tuple(
        found["meters"]["tokens"][name] for name in ("used", "included", "remaining", "overage", "unlinked")
    )
    assert (3, 997) == tuple(found["meters"]["requests"][name] for name in ("used", "remaining"))
    for name in ("start", "end"):
        assert re.fullmatch(r"\d{4}-\d\d-01T00:00:00Z", found["period"][name])


async def test_an_unknown_customer_has_all_meters_of_the_default_plan(stored: Shell) -> None:
    found = stored.run("usage", "nobody", "--json").json
    assert ("free", "full", ["requests", "tokens"]) == (found["plan"], found["access"], list(found["meters"]))
    assert found["meters"]["tokens"]["used"] == 0
    done = stored.run("usage", "nobody")
    assert done.code == 0
    assert "customer nobody: plan free, status none, access full" in done.out
    assert re.search(r"^requests +0 +1,000 +1,000 +0", done.out, re.MULTILINE)
    assert "dead" not in done.out


async def test_grants_credits_holds_and_the_price_of_overage_are_shown(
    stored: Shell, directory: Path
) -> None:
    (directory / "plans.yaml").write_text(SOLD)
    async with stored.kit() as kit:
        await kit.grants.add("acme", {"ai": 1_200, "pages": 3}, grant_id="g1")
        await kit.record("acme", "pages", 10 + 3 + 2_001)
        async with kit.reserve("acme", {"tokens": 7}):
            done = stored.run("usage", "acme")
            found = stored.run("usage", "acme", "--json").json
    assert "credits ai 1,200, promo 0" in done.out.splitlines()
    rows = [re.split("  +", line.strip()) for line in done.out.splitlines()[3:] if "──" not in line]
    columns = ("meter", "used", "held", "included", "granted", "remaining", "overage", "cost", "to send")
    assert [
        [*columns, "delivered"],
        ["pages", "2,014", "0", "10", "3", "unlimited", "2,001", "€50.03", "2,001", "0"],
        ["tokens", "7", "7", "10", "0", "3,000,003", "0", "0", "0"],  # No price.
    ] == rows
    assert {"ai": 1_200, "promo": 0} == found["balance"]
    # 2,001 pages at 5 cents per 2 are 5,002.5 cents.
    assert (5_003, None) == tuple(found["meters"][name]["overage_cents"] for name in ("pages", "tokens"))


async def test_f_334_the_wait_of_a_rate_is_written_in_words(stored: Shell) -> None:
    """F-334: a wait of half an hour was "2,034 s"."""
    async with stored.kit() as kit:
        await kit.consume("acme", "requests", 3)
    (row,) = [line for line in stored.run("usage", "acme").out.splitlines() if "requests-1h" in line]
    assert re.search(r" 5 +3 +2 +in \d+ (?:h|min|s)", row)


async def test_a_silent_store_is_one_message_and_unhealthy(directory: Path) -> None:
    shell = InProcessShell(directory, METERKIT_START_TIMEOUT="0.2")
    done = shell.run("usage", "acme", "--redis", "redis://:hunter2@127.0.0.1:1")
    assert (1, "") == (done.code, done.out)
    assert "redis://127.0.0.1:1/0" in done.err
    assert not any(word in done.err for word in ("hunter2", "Traceback"))
    done = shell.run("usage", "acme", "--redis", "http://nowhere")
    assert (2, "") == (done.code, done.out)
    assert "found the scheme 'http'" in done.err


async def test_usage_by_model_is_printed_with_cost_revenue_and_margin(stored: Shell, directory: Path) -> None:
    database = f"sqlite:///{directory}/audit.db"
    lacking = stored.run("usage", "acme", "--by", "model")
    assert "set METERKIT_AUDIT_URL to a database" in lacking.err + lacking.out
    stored.environment["METERKIT_AUDIT_URL"] = database
    async with stored.kit(audit_url=database) as kit:
        await kit.record("acme", "tokens", 25)
        await drain(kit)
        said = await kit.usage("acme", by="model")
    assert stored.run("usage", "acme", "--by", "model", "--json").json["models"] == said["models"]
    shown = stored.run("usage", "acme", "--by", "model").out
    assert all(word in shown for word in ("(none)", "tokens", "margin"))


UNITS = plans_text("usage_command_units")


async def test_units_of_a_model_stand_below_its_meters(stored: Shell, directory: Path) -> None:
    database = f"sqlite:///{directory}/audit.db"
    stored.environment["METERKIT_AUDIT_URL"] = database
    (directory / "plans.yaml").write_text(UNITS)
    async with stored.kit(audit_url=database) as kit:
        await kit.grants.add("acme", {"usd": 1}, grant_id="g")
        async with kit.reserve("acme", {"web_searches": 1}) as held:
            used = {"input_tokens": 1000, "cached_input_tokens": 50, "output_tokens": 1200, "web_searches": 2}
            await held.capture(used, model="own-7b")
        await drain(kit)
    rows = [line.split() for line in stored.run("usage", "acme", "--by", "model").out.splitlines()]
    # 1,000 tokens at 2 and 1,200 at 5 micro-dollars; no meter counts the tokens that came out.
    assert rows[3:] == [
        ["own-7b", "cached_input_tokens", "50", "$0.00", "$0.00", "$0.00"],
        ["own-7b", "input_tokens", "1,000", "$0.002", "$0.00", "-$0.002"],
        ["own-7b", "usd_charged", "$0.008", "$0.006", "$0.008", "$0.002"],
        ["own-7b", "web_searches", "2", "$0.00", "$0.00", "$0.00"],
        ["own-7b", "(output_tokens)", "1,200"],
        ["total", "$0.008", "$0.008", "$0.00"],
    ]


async def test_money_of_all_customers_is_shown_as_money(stored: Shell, directory: Path) -> None:
    """With `--all` it was in millionths of a dollar: 8,000 for $0.008."""
    (directory / "plans.yaml").write_text(UNITS)
    async with stored.kit() as kit:
        await kit.grants.add("acme", {"usd": 1}, grant_id="g")
        async with kit.reserve("acme", {"web_searches": 1}) as held:
            await held.capture({"input_tokens": 1000, "output_tokens": 1200}, model="own-7b")
    (row,) = [line for line in stored.run("usage", "--all").out.splitlines() if "usd_charged" in line]
    assert row.split()[:4] == ["acme", "free", "usd_charged", "$0.008"]


async def test_prices_by_model_are_shown_where_the_plan_has_them(stored: Shell, directory: Path) -> None:
    (directory / "plans.yaml").write_text(plans_text("usage_command_by_model"))
    async with stored.kit() as kit:
        await kit.customers.set_plan("acme", "pro")

    def shown(customer: str) -> list[str]:
        lines = stored.run("usage", customer).out.splitlines()
        return [word for line in lines for word in line.split()[:1] if word.startswith("tokens")]

    rows = ["tokens", "tokens:gpt-*-mini", "tokens:(default)"]
    assert (shown("acme"), shown("beta")) == (rows, ["tokens"])


async def test_every_customer_with_usage_is_shown_sorted_and_once(stored: Shell) -> None:
    names = sorted(f"customer {nth:03} é" for nth in range(130))
    async with stored.kit() as kit:
        for nth, name in enumerate(names):
            await kit.record(name, "tokens", nth + 1)
        await kit.customers.set_plan("idle", "pro")  # It has a state, and no usage.
        said = [await kit.usage(name) for name in names]
    done = stored.run("usage", "--all", "--json")
    assert names == [found["customer"] for found in done.json]
    assert [found["meters"] for found in said] == [found["meters"] for found in done.json]

    rows = list(csv.DictReader(StringIO(stored.run("usage", "--all", "--csv").out)))
    cells = [(name, meter) for name in names for meter in ("requests", "tokens")]
    assert [(row["customer"], row["meter"]) for row in rows] == cells
    last = [rows[-1][name] for name in ("used", "overage", "remaining", "status")]
    assert last == ["130", "120", "unlimited", ""]
    table = stored.run("usage", "--all").out
    assert all(name in table for name in names)
    assert "idle" not in table


@pytest.mark.parametrize("is_hash", [True, False])
async def test_damaged_customers_are_named_and_others_shown(stored: Shell, is_hash: bool) -> None:
    async with stored.kit() as kit:
        for customer in ("ada", "bob", "eve"):
            await kit.record(customer, "tokens", 5)
            await kit.customers.set_plan(customer, "pro")
        admin, keys = await kit.store.admin(), kit.store.keys.customer("bob")
        if is_hash:
            await admin.ask(admin.client.hset(keys.state, "data", "x"))
        else:
            await admin.ask(admin.client.set(keys.state, "of another program", px=600_000))
    done = stored.run("usage", "--all", "--json")
    assert ([found["customer"] for found in done.json], done.code) == (["ada", "eve"], 1)
    assert "no usage for customer 'bob': the stored data cannot be read" in done.err
    for words in (("customers", "list"), ("customers", "show", "bob"), ("grants", "list", "bob")):
        done = stored.run(*words)
        assert (done.code, "the record of customer 'bob' cannot be read" in done.err) == (1, True)
        assert "Traceback" not in done.err


async def test_where_nobody_has_used_anything_it_says_so(stored: Shell) -> None:
    for arguments in ([], ["ada", "--all"], ["--all", "--csv", "--json"], ["ada", "--period", "soon"]):
        assert 2 == stored.run("usage", *arguments).code
    done = stored.run("usage", "--all")
    assert (0, "", True) == (done.code, done.out, "no customer has usage" in done.err)
    assert [] == stored.run("usage", "--all", "--json").json
    assert 1 == len(stored.run("usage", "--all", "--csv").out.splitlines())


TURNED: Final = "a\u202eda"
LINES: Final = "a\u2028b\u2029c\u200b\ufeff\u00ad\U000e0041"
INVISIBLE: Final = "\u202e\u2028\u2029\u200b\ufeff\u00ad\U000e0041"


def is_clean(text: str) -> bool:
    return not set(INVISIBLE) & set(text)


async def test_ids_are_printed_with_invisible_characters_escaped(stored: Shell) -> None:
    async with stored.kit() as kit:
        for name in (TURNED, LINES):
            await kit.record(name, "requests", 3)
    for arguments in (
        ("usage", "--all"),
        ("usage", TURNED),
        ("usage", "--all", "--csv"),
        ("customers", "set-plan", LINES, "pro"),
        ("customers", "list"),
        ("customers", "show", LINES),
        ("grants", "add", "new" + TURNED, "requests=5", "--id", "g1"),
    ):
        done = stored.run(*arguments)
        text = done.out + done.err
        assert is_clean(text), arguments
        assert r"a\u202eda" in text or r"a\u2028b" in text or "list" in arguments
    shown = stored.run("usage", "--all", "--json")
    assert is_clean(shown.out)
    assert [one["customer"] for one in shown.json] == sorted([TURNED, LINES])


async def test_csv_of_usage_has_no_formulas(stored: Shell) -> None:
    formulas = ["=1+1", "+1", "-1", "@a"]
    async with stored.kit() as kit:
        for name in (*formulas, "ada"):
            await kit.record(name, "requests", 3)
    rows = list(csv.DictReader(StringIO(stored.run("usage", "--all", "--csv").out)))
    assert {row["customer"] for row in rows} == {*(f"'{name}" for name in formulas), "ada"}
    assert {row["used"] for row in rows if row["meter"] == "requests"} == {"3"}
