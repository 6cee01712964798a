from __future__ import annotations

from pathlib import Path

import pytest

from drivers.command_line import Shell
from drivers.plans import plans_text
from meterkit import MeterKit

pytestmark = pytest.mark.anyio

PLANS = plans_text("grants_command")


@pytest.fixture
def granting(stored: Shell, directory: Path) -> Shell:
    """A shell with a plans file that has a credit, and a customer that is known."""
    (directory / "plans.yaml").write_text(PLANS)
    assert stored.run("customers", "set-plan", "acme", "free").code == 0
    return stored


def test_a_grant_is_added_once_listed_and_voided(granting: Shell) -> None:
    words = ("grants", "add", "acme", "ai=1_500", "pages=3", "--id", "inv_42", "--priority", "20")
    times = ("--effective", "2031-12-01", "--expires", "2032-01-01T01:00:00+01:00")
    done = granting.run(*words, *times, "--json")
    assert (0, "") == (done.code, done.err)
    granted = sorted(done.json, key=lambda grant: grant["name"])
    assert [(one["kind"], one["name"], one["quantity"], one["remaining"]) for one in granted] == [
        ("credit", "ai", 1500, 1500),
        ("meter", "pages", 3, 3),
    ]
    shown = ("grant_id", "priority", "effective_at", "expires_at", "source", "status")
    assert [granted[0][name] for name in shown] == [
        *("inv_42", 20, "2031-12-01T00:00:00Z", "2032-01-01T00:00:00Z", "app", "pending")
    ]
    again = granting.run(*words)
    assert again.err.splitlines()[:1] == ["ai: inv_42 was granted before; nothing has changed"]
    listed = granting.run("grants", "list", "acme", "--json").json
    assert sorted(listed, key=lambda grant: grant["name"]) == granted
    assert "inv_42" in granting.run("grants", "list", "acme").out
    for _ in range(2):
        gone = granting.run("grants", "void", "acme", "inv_42", "--json")
        assert {(grant["status"], grant["remaining"]) for grant in gone.json} == {("void", 0)}


def test_a_grant_of_the_plan_with_the_same_id_is_another_one(granting: Shell) -> None:
    granting.run("customers", "set-plan", "acme", "pro")
    (own,) = granting.run("grants", "list", "acme", "--json").json
    added = granting.run("grants", "add", "acme", "pages=3", "--id", own["grant_id"], "--json")
    assert ([one["source"] for one in added.json], added.err) == (["app"], "")
    assert len(granting.run("grants", "list", "acme", "--json").json) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "acme", "ai=1"), 2, "repeating the command does not grant twice"),
        (("add", "acme", "ai", "--id", "g"), 2, "found 'ai'; allowed is NAME=QUANTITY"),
        (("add", "acme", "ai=1", "ai=2", "--grant-id", "g"), 2, "found 'ai' twice"),
        (("add", "acme", "ai=0", "--id", "g"), 1, "meterkit: quantity of ai: found 0"),
        (("add", "acme", "page=1", "--id", "g"), 1, "did you mean 'pages'?"),
        (("add", "acme", "ai=1", "--id", "g", "--expires", "soon"), 2, "--expires: found 'soon'"),
        (("add", "acme", "ai=1", "--id", "g", "--expires", "2001-01-01"), 1, "must lie in the future"),
        (("add", "a\nb", "ai=1", "--id", "g"), 1, "meterkit: customer"),
    ],
)
async def test_what_is_refused_says_why_and_grants_nothing(
    stored: Shell, directory: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (directory / "plans.yaml").write_text(PLANS)
    done = stored.run("grants", *arguments)
    assert (code, "") == (done.code, done.out)
    assert message in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    async with stored.kit() as kit:
        assert [] == await kit.grants.list("acme")


def test_each_subcommand_takes_a_store_and_a_plans_file(
    shell: Shell, directory: Path, store_url: str
) -> None:
    (directory / "plans.yaml").rename(directory / "ours.yaml")
    named = ("--plans", "ours.yaml", "--redis", store_url)
    assert shell.run("grants", "add", "acme", "tokens=1", "--id", "g1", *named).code == 0
    for words in (("list", "acme"), ("ledger", "acme"), ("void", "acme", "g1")):
        done = shell.run("grants", *words, *named)
        assert (0, True) == (done.code, "g1" in done.out)


def test_a_plan_that_is_gone_is_told(granting: Shell, directory: Path) -> None:
    granting.run("customers", "set-plan", "acme", "pro")
    (directory / "plans.yaml").write_text(PLANS[: PLANS.index("  pro:")])
    told = "customer acme: plan `pro` is not in plans.yaml: served on its former terms\n"
    assert told == granting.run("grants", "list", "acme").err


async def test_a_debt_and_its_repayment_are_shown(granting: Shell, directory: Path, store_url: str) -> None:
    plans = directory / "plans.yaml"
    money = "  usd: {unit: money, costs: {tokens: provider_prices}}\nroutes:"
    other = PLANS.replace("{tokens: 1 per 8}", "{rows: 1 per 8}").replace("  tokens:", "  output_tokens:")
    plans.write_text(other.replace("routes:", money))
    granting.run("grants", "add", "acme", "usd=1", "--id", "g1")
    async with MeterKit(plans, redis_url=store_url, flush=False) as kit:
        await kit.record("acme", "usd_charged", 3_500_000)
        assert "-$2.50" in granting.run("usage", "acme").out
        granting.run("grants", "add", "acme", "usd=2", "--id", "g2")
        await kit.record("acme", "usd_charged", 1)
    shown = granting.run("usage", "acme").out
    assert "-$0.51" in shown  # Rounded down.
    ledger = granting.run("grants", "ledger", "acme").out
    found = [line.split() for line in ledger.splitlines()]
    assert [row[-5:-2] for row in found if "debt" in row] == [["debt", "-2.500001", "usd_charged"]]
    assert ["usd", "repayment", "2"] in [row[:3] for row in found]
    assert ["g2", "usd", "repayment", "-2"] in [row[:4] for row in found]
    # A balance in money is listed to the millionth: a top-up of $12.50 was listed as 12.
    granting.run("grants", "add", "acme", "usd=3", "--id", "g3")
    out = granting.run("grants", "list", "acme").out
    assert ("$3.00" in out, "$2.499999" in out) == (True, True)
    listed = {one["grant_id"]: one for one in granting.run("grants", "list", "acme", "--json").json}
    assert (listed["g3"]["remaining"], listed["g1"]["remaining_micros"]) == (2, 0)
    exact = (listed["g3"]["quantity_micros"], listed["g3"]["remaining_micros"])
    assert exact == (3_000_000, 2_499_999)
