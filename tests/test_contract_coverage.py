"""The page on what is stated and which test shows it: each test is there, and its numbers are right."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs/design/contract-coverage.md").read_text("utf-8")
ABSENT: Final = "not there yet"
SECTIONS: Final = (
    "The plans file",
    "Python",
    "Settings",
    "The command line",
    "Rules of counting",
    "What a client sees",
    "Subscriptions",
    "What people look at",
)
HEAD: Final = ("| stated | shown by |", "|---|---|")
TEST: Final = re.compile(r"^ *(?:async )?def (test_[a-z0-9_]+)\(", re.MULTILINE)
NAMED: Final = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")


def rows_of(page: str) -> list[tuple[str, str]]:
    """What is stated and what shows it, of every row."""
    lines = [line for line in page.splitlines() if line.startswith("|") and line not in HEAD]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row for row in cells if len(row) != 2] == []
    return [(stated, shown) for stated, shown in cells]


@cache
def functions_in(path: Path) -> frozenset[str]:
    """The tests of a file, also those of its classes; none where there is no file."""
    return frozenset(TEST.findall(path.read_text("utf-8"))) if path.is_file() else frozenset()


def wrong(page: str) -> list[str]:
    """What a page says that is not so, or does not say."""
    found: list[str] = []
    for stated, shown in rows_of(page):
        if not stated:
            found.append(f"nothing is stated: {shown}")
        if shown == ABSENT:
            continue
        names = NAMED.findall(shown)
        if not names or NAMED.sub("", shown).strip(", "):
            found.append(f"{stated}: {shown}")
        found += [
            f"{stated}: {file}::{name}" for file, name in names if name not in functions_in(ROOT / file)
        ]
    return found


def test_every_row_names_tests_that_exist() -> None:
    assert wrong(PAGE) == []


def test_every_section_has_a_table_without_repetition() -> None:
    titles, *_ = zip(*(part.split("\n", 1) for part in PAGE.split("\n## ")[1:]), strict=True)
    assert titles == SECTIONS
    for part in PAGE.split("\n## ")[1:]:
        assert "\n".join(HEAD) in part
        stated = [text for text, _ in rows_of(part)]
        assert stated
        assert sorted(set(stated)) == sorted(stated)


def test_the_numbers_of_the_first_paragraph_are_right() -> None:
    _, paragraph, _ = PAGE.split("\n\n", 2)
    shown = [cell for _, cell in rows_of(PAGE)]
    numbers = [int(number) for number in re.findall(r"\b\d+\b", paragraph)]
    assert numbers == [len(shown), shown.count(ABSENT)]


def test_a_row_that_is_wrong_is_noticed() -> None:
    here = "tests/test_contract_coverage.py"
    good = f"`{here}::test_a_row_that_is_wrong_is_noticed`"
    bad = (good[:-2] + "`", f"`{here[:-4]}.py::test_x`", "", "soon", f"{good}, soon", "a test")
    assert wrong(f"| a | {good} |\n| b | {good}, {good} |\n| c | {ABSENT} |") == []
    assert [cell for cell in bad if not wrong(f"| a | {cell} |")] == []
    assert wrong(f"|  | {good} |") != []
