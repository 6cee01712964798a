"""Tests go through seams: few files import what is inside the library, and each of those says why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
PUBLIC: Final = {
    *("meterkit", "meterkit.__main__", "meterkit.catalog", "meterkit.errors", "meterkit.fastapi"),
    *("meterkit.llm", "meterkit.notify", "meterkit.pages", "meterkit.starlette", "meterkit.storage"),
    *("meterkit.testing", "llm_usage", "stripe_emulator"),
}
IMPORTED: Final = re.compile(
    r"^ *(?:from|import) ((?:meterkit|llm_usage|stripe_emulator)(?:\.[\w.]+)?)(?: |$)", re.MULTILINE
)
WHY: Final = "# Internals: "
# It may fall.
SHARE_MAX: Final = 0.27


def test_few_files_import_internals_and_each_says_why() -> None:
    texts = {str(path.relative_to(TESTS)): path.read_text("utf-8") for path in TESTS.rglob("test_*.py")}
    inside = {name: text for name, text in texts.items() if {*IMPORTED.findall(text)} - PUBLIC}
    assert [name for name, text in inside.items() if WHY not in text] == []
    assert len(inside) <= SHARE_MAX * len(texts)


def test_names_of_tests_have_at_most_sixty_characters() -> None:
    texts = [path.read_text("utf-8") for path in TESTS.rglob("test_*.py")]
    names = [
        name for text in texts for name in re.findall(r"^ *(?:async )?def (test_\w+)", text, re.MULTILINE)
    ]
    assert len(names) > 1_000
    assert [name for name in names if len(name) > 60] == []
