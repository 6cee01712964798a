"""``meterkit correct``: says exactly what was done with how many units."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from drivers.command_line import Shell
from drivers.delivery import STRIPE_KEY
from drivers.priced_shop import CATALOG, PLANS, sell
from drivers.shop import shop

pytestmark = pytest.mark.anyio


async def test_units_are_taken_back_once_an_id(stored: Shell) -> None:
    async with stored.kit() as kit:
        await kit.record("acme", "tokens", 25)
    words = ("correct", "acme", "tokens=1_8", "--reason", "a loop", "--id", "T-1")
    done = stored.run(*words)
    assert (done.code, done.out) == (0, "tokens: 18 of 18 corrected: 15 overage, 3 included\n")
    again = stored.run(*words)
    assert (again.code, again.out) == (0, done.out)
    assert "T-1 was applied before; nothing changed" in again.err
    assert stored.run("usage", "acme", "--json").json["meters"]["tokens"]["recorded"] == 7
    tried = stored.run(*words, "--dry-run")
    assert (tried.code, tried.out) == (0, done.out)
    assert "T-1 was applied before; no further units would be corrected" in tried.err
    assert stored.run(*words, "--dry-run", "--json").json[0]["is_repeated"] is True
    asked = stored.run_at_terminal(*words, answer="n")
    assert (asked.code, "Correct this much?" in asked.err) == (0, False)
    more = stored.run("correct", "acme", "tokens=9", "--reason", "a loop", "--id", "T-2", "--json")
    assert (more.code, more.json[0]["taken_back"], more.json[0]["beyond"]) == (1, 7, 2)
    history = stored.run("customers", "history", "acme", "--json").json
    assert [entry["kind"] for entry in history] == ["correction", "correction"]
    assert history[0]["after"].endswith(": a loop")
    assert history[0]["cause"].startswith("operator")


def test_what_cannot_be_corrected_is_said(stored: Shell) -> None:
    stored.run("customers", "set-plan", "acme", "pro")
    for words, code, said in (
        (("acme", "tokens=1", "--reason", "x"), 2, "--id"),
        (("acme", "tokens=1", "--id", "x"), 2, "--reason"),
        (("acme", "tokens", "--reason", "x", "--id", "x"), 2, "NAME=QUANTITY"),
        (("nobody", "tokens=1", "--reason", "x", "--id", "x"), 1, "nobody"),
        (
            ("acme", "tokens=1", "--reason", "f\udcfcr", "--id", "x"),
            1,
            "reason: found 'f\\udcfcr'",
        ),  # Latin-1
    ):
        done = stored.run("correct", *words)
        assert (done.code, done.out, said in done.err) == (code, "", True), done.err


async def test_a_dry_run_takes_nothing_back(stored: Shell) -> None:
    """F-116: a mistyped quantity was taken back whole."""
    async with stored.kit() as kit:
        await kit.record("acme", "tokens", 25)
    right = stored.run("correct", "acme", "tokens=18", "--dry-run")
    assert (right.code, right.out) == (
        0,
        "tokens: 18 to be corrected; 25 are recorded in this period, 15 of them as overage\n",
    )
    wrong = stored.run("correct", "acme", "tokens=1_800", "--dry-run", "--json")
    assert wrong.code == 1
    assert wrong.json == [
        {"meter": "tokens", "asked": 1800, "recorded": 25, "over_cap": 0, "overage": 15, "beyond": 1775}
    ]
    assert stored.run("correct", "acme", "tokenz=1", "--dry-run").code == 1
    assert stored.run("usage", "acme", "--json").json["meters"]["tokens"]["recorded"] == 25


@pytest.mark.parametrize(
    ("words", "answer", "is_asked", "left"),
    [
        (("tokens=14",), "n", True, 26),
        (("tokens=14",), "y", True, 12),
        (("tokens=13",), "", False, 13),
        (("tokens=14", "--yes"), "", False, 12),
    ],
)
async def test_on_a_terminal_a_large_correction_asks_first(
    stored: Shell, words: tuple[str, ...], answer: str, is_asked: bool, left: int
) -> None:
    async with stored.kit() as kit:
        await kit.record("acme", "tokens", 26)
    command = ("correct", "acme", *words, "--reason", "typo", "--id", "T-1")
    done = stored.run_at_terminal(*command, answer=answer)
    is_shown = "Correct this much?" in done.out + done.err
    assert (is_shown, done.code) == (is_asked, int(answer == "n"))
    assert stored.run("usage", "acme", "--json").json["meters"]["tokens"]["recorded"] == left


async def test_where_it_asks_json_is_alone_on_stdout(stored: Shell) -> None:
    async with stored.kit() as kit:
        await kit.record("acme", "tokens", 25)
    command = ("correct", "acme", "tokens=13", "--reason", "typo", "--id", "T-1", "--json")
    done = stored.run_at_terminal(*command, answer="y")
    assert (done.code, done.json[0]["taken_back"]) == (0, 13)
    assert "tokens: 13 to be corrected; 25 are recorded" in done.err


async def test_billed_units_are_named_by_invoice_and_credited(
    stored: Shell, directory: Path, store_url: str
) -> None:
    """F-222: a dry run says the same, and the command that is typed again with ``--credit`` goes on."""
    (directory / "plans.yaml").write_text(PLANS)
    async with shop(store_url, catalog=CATALOG, selling=sell, start=datetime.now(UTC)) as at:
        stored.environment |= {"METERKIT_STRIPE_API_KEY": STRIPE_KEY, "METERKIT_STRIPE_API_BASE": at.url}
        stored.environment["METERKIT_SHARDS"] = "4"
        run = partial(to_thread.run_sync, stored.run)  # The emulator runs in this loop.
        await at.subscribed(plan="basic")
        at.clock.advance(timedelta(minutes=4))
        await at.kit.record("acme", "tokens", 184)
        await at.kit.subscriptions.change_plan("acme", "cheaper")
        invoice = (await at.invoices())[-1]["id"]
        tried = await run("correct", "acme", "tokens=60", "--dry-run")
        billed = f"tokens: 60 are billed on invoice {invoice}, $3.00: "
        recorded = "184 are recorded in this period, 84 of them as overage"
        assert tried.code == 1
        assert tried.out == f"tokens: 60 to be corrected; {recorded}\n{billed}credit them by hand\n"
        words = ("correct", "acme", "tokens=60", "--reason", "a loop", "--id", "T-1")
        done = await run(*words)
        nothing = "tokens: 0 of 60 corrected\n"
        assert (done.code, done.out) == (1, f"{nothing}{billed}credit them by hand\n")
        credited = await run(*words, "--credit", "--json")
        (note,) = await at.stripe_list("/v1/credit_notes")
        assert (note["amount"], note["invoice"]) == (300, invoice)
        (line,) = credited.json[0]["by_hand_lines"]
        assert (credited.code, line["units"], line["cents"]) == (0, 60, 300)
        assert credited.json[0]["credits"] == [{"id": note["id"], **line}]


async def test_credit_without_a_stripe_key_corrects_nothing(stored: Shell) -> None:
    async with stored.kit() as kit:
        await kit.record("acme", "tokens", 25)
    done = stored.run("correct", "acme", "tokens=5", "--reason", "a loop", "--id", "T-1", "--credit")
    assert (done.code, "nothing is taken back" in done.err) == (2, True)
    assert stored.run("usage", "acme", "--json").json["meters"]["tokens"]["recorded"] == 25
