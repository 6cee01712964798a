"""Ids that turn text around, end lines or begin formulas: what the command line prints of them."""
# Internals: pure tables of how ids, cells and log records are escaped.

from __future__ import annotations

import csv
import json
import logging
from io import StringIO
from typing import TYPE_CHECKING, Final

import pytest

from meterkit import MeterKit
from meterkit.cli.output import JsonLines, PlainLines
from meterkit.safe_text import csv_cell, escape_invisible

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio

TURNED: Final = "a\u202eda"
LINES: Final = "a\u2028b\u2029c\u200b\ufeff\u00ad\U000e0041"
INVISIBLE: Final = "\u202e\u2028\u2029\u200b\ufeff\u00ad\U000e0041"
FORMULAS: Final = ["=1+1", "+1", "-1", "@a"]


def is_clean(text: str) -> bool:
    return not set(INVISIBLE) & set(text)


async def test_ids_are_printed_with_invisible_characters_escaped(
    stored: Shell, directory: Path, store_url: str
) -> None:
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
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
        assert (is_clean(done.out), is_clean(done.err)) == (True, True), arguments
        assert (
            r"a\u202eda" in done.out + done.err or r"a\u2028b" in done.out + done.err or "list" in arguments
        )
    shown = stored.run("usage", "--all", "--json")
    assert is_clean(shown.out)
    assert [one["customer"] for one in shown.json] == sorted([TURNED, LINES])


async def test_csv_of_usage_has_no_formulas(stored: Shell, directory: Path, store_url: str) -> None:
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for name in (*FORMULAS, "ada"):
            await kit.record(name, "requests", 3)
    rows = list(csv.DictReader(StringIO(stored.run("usage", "--all", "--csv").out)))
    assert {row["customer"] for row in rows} == {*(f"'{name}" for name in FORMULAS), "ada"}
    assert {row["used"] for row in rows if row["meter"] == "requests"} == {"3"}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Zoë 愛 🙂\n", "Zoë 愛 🙂\n"),
        ("a\u202eb", r"a\u202eb"),
        ("\x1b[31m\t", r"\u001b[31m\t"),
        ("\U000e0041", r"\udb40\udc41"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_cannot_be_seen_is_escaped_as_json_does(text: str, escaped: str) -> None:
    assert escape_invisible(text) == escaped


def test_the_logs_of_commands_escape_ids() -> None:
    record = logging.makeLogRecord({"msg": "customer %s", "args": (TURNED,), "customer": LINES})
    assert PlainLines().format(record) == r"customer a\u202eda"
    line = JsonLines().format(record)
    assert (is_clean(line), json.loads(line)["customer"]) == (True, LINES)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *[(f"{mark}x", f"'{mark}x") for mark in "=+-@\t\r\n"],
        (-1, -1),
        (None, ""),
        # Wherever a cell may begin.
        ("a;=1;", "a;'=1;"),
        ("a\t@b\n-1", "a\t'@b\n'-1"),
        ("\u200b=1", "'\u200b=1"),
        ("a=1, b;c -1", "a=1, b;c -1"),
    ],
)
def test_texts_are_no_formulas_and_numbers_stay_numbers(value: object, cell: object) -> None:
    assert csv_cell(value) == cell
