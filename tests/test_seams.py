"""Tests go through seams: few files import what is inside the library, and each of those says why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
PUBLIC: Final = {
    *("meterkit", "meterkit.catalog", "meterkit.errors", "meterkit.fastapi", "meterkit.llm"),
    *("meterkit.notify", "meterkit.pages", "meterkit.storage", "meterkit.testing"),
}
IMPORTED: Final = re.compile(r"^ *(?:from|import) (meterkit[\w.]*)", re.MULTILINE)
# It may fall.
INTERNAL_FILES_MAX: Final = 337


def on_internals() -> dict[str, str]:
    """The test files that import more than public modules, with their text."""
    texts = {str(path.relative_to(TESTS)): path.read_text("utf-8") for path in TESTS.rglob("test_*.py")}
    return {name: text for name, text in texts.items() if {*IMPORTED.findall(text)} - PUBLIC}


def test_few_files_import_internals() -> None:
    assert len(on_internals()) <= INTERNAL_FILES_MAX
