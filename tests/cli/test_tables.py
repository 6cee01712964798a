"""Tables: no line is wider than the terminal, and no number or date is cut in two."""
# Internals: pure tables of widths that no command reaches.

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.command_line import TIMEOUT_S, Shell
from drivers.forked_command import run_forked
from meterkit import MeterKit
from meterkit.cli.output import print_records

if TYPE_CHECKING:
    from drivers.command_line import Shell

LONG = "customer-with-a-rather-long-identifier@example.com"
MOST = 10**15 - 1


def on_terminal(shell: Shell, *arguments: str, columns: int) -> list[str]:
    """What a command writes to a terminal of so many columns, line by line."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = shell.environment | {"TERM": "xterm", "NO_COLOR": "1"}
    streams = (Path(os.devnull), Path(os.ttyname(theirs)), Path(os.devnull))
    with ThreadPoolExecutor(1) as reader:
        said = reader.submit(all_of, ours)
        code = run_forked(arguments, shell.directory, variables, streams, timeout_s=TIMEOUT_S)
        os.close(theirs)
        lines = said.result().decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert code == 0
    return [line.rstrip() for line in lines]


def all_of(terminal: int) -> bytes:
    """What is written to a terminal until nobody has it any more."""
    said = b""
    with os.fdopen(terminal, "rb", buffering=0) as ours, suppress(OSError):  # Linux' word for its end.
        while piece := ours.read(4096):
            said += piece
    return said


@pytest.fixture
async def busy(stored: Shell, directory: Path, store_url: str) -> Shell:
    """A shell whose store has customers with much to show."""
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for customer in ("acme", LONG):
            await kit.customers.link(customer, f"cus_{customer[:4]}NffrFe")
            given: dict[str, dict[str, object]] = {
                "tokens": {
                    "included": 5_000,
                    "rate": ["100/hour", "1000/day"],
                    "overage": {"bill": {"cap": 9}},
                }
            }
            await kit.customers.override(customer, given)
            await kit.grants.add(customer, {"requests": 100_000, "tokens": 5}, grant_id="inv_42")
        await kit.grants.add(
            LONG,
            {"tokens": MOST},
            grant_id="invoice_2031_01_0001_with_a_long_name",
            expires_at=datetime(2131, 1, 1, tzinfo=UTC),
        )
        await kit.record(LONG, "tokens", MOST - 10)
    return stored


@pytest.mark.anyio
@pytest.mark.parametrize(
    "command",
    [
        ("customers", "list"),
        ("customers", "show", LONG),
        ("grants", "list", "acme"),
        ("grants", "list", LONG),
        ("grants", "ledger", LONG),
        ("usage", LONG),
    ],
    ids=" ".join,
)
async def test_no_line_of_a_table_is_wider_than_the_terminal(busy: Shell, command: tuple[str, ...]) -> None:
    # F-69: at 80 columns numbers, dates and ids were cut in two.
    whole = {
        "usage": "999,999,999,999,989",
        "grants": "999,999,999,999,999",
        "customers": "cus_custNffrFe",
    }
    for columns in (70, 80, 132):
        lines = on_terminal(busy, *command, columns=columns)
        told = [line for line in lines if not line.startswith(f"customer {LONG}: plan")]
        assert max(map(len, told)) <= columns
        assert command[-1] == "acme" or whole[command[0]] in {word for line in told for word in line.split()}


@pytest.mark.anyio
async def test_columns_sets_the_table_width_without_a_terminal(busy: Shell) -> None:
    busy.environment["COLUMNS"] = "80"
    assert max(map(len, busy.run("grants", "list", LONG).out.splitlines())) <= 80


@pytest.mark.anyio
async def test_grants_fit_a_terminal_of_80_columns_line_by_line(busy: Shell) -> None:
    lines = on_terminal(busy, "grants", "list", "acme", columns=80)
    assert lines[0].split() == [
        *("grant", "of", "quantity", "remaining", "priority", "effective", "expires", "status"),
    ]
    assert lines[2].split()[:5] == ["inv_42", "requests", "100,000", "100,000", "50"]


@pytest.mark.anyio
async def test_a_table_that_is_too_wide_becomes_a_list(busy: Shell) -> None:
    lines = on_terminal(busy, "grants", "list", LONG, columns=60)
    assert lines[:3] == [
        "grant      invoice_2031_01_0001_with_a_long_name",
        "of         tokens",
        "quantity   999,999,999,999,999",
    ]
    assert "" in lines


@pytest.mark.anyio
async def test_an_override_is_shown_as_it_is_written(busy: Shell) -> None:
    out = " ".join(busy.run("customers", "show", "acme").out.split())
    assert "tokens: included=5000 overage={bill: {cap: 9}} rate=[100/hour, 1000/day]" in out


def test_where_there_is_nothing_to_list_that_is_said(stored: Shell) -> None:
    for command, words in (
        (("customers", "list"), "no customer has been set up"),
        (("grants", "list", "acme"), "customer acme has no grants"),
        (("grants", "ledger", "acme"), "customer acme has no grants"),
    ):
        done = stored.run(*command)
        assert (0, "") == (done.code, done.out)
        assert words in done.err


def test_what_is_told_in_sentences_has_some_words_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "rebuilt from the audit log: Stripe may have it, and it is compared with Stripe's summary first"
    intents: list[dict[str, object]] = [
        {
            "intent": "f49f2c9213c9189bb21688164d7b66d1-1",
            "customer": "acme",
            "minute": "2026-11-22 01:12:00Z",
            "first attempt": "2026-11-21 01:08:32Z",
            "quantity": 9,
            "why": why,
        }
    ]
    for columns, lines in ((110, 6), (60, 7)):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_records(intents)
        said = capsys.readouterr().out.rstrip().splitlines()
        assert len(said) <= lines + 1, said
        assert any("rebuilt from the audit" in line for line in said)
