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
        ("grants", "list", LONG),
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
    for columns in (70, 132):
        lines = on_terminal(busy, *command, columns=columns)
        told = [line for line in lines if not line.startswith(f"customer {LONG}: plan")]
        assert max(map(len, told)) <= columns
        assert command[-1] == "acme" or whole[command[0]] in {word for line in told for word in line.split()}


@pytest.mark.anyio
async def test_columns_sets_the_table_width_without_a_terminal(busy: Shell) -> None:
    busy.environment["COLUMNS"] = "80"
    assert max(map(len, busy.run("grants", "list", LONG).out.splitlines())) <= 80
