"""The blocks of code that README and documentation show, and those that no test runs; prints their number."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RUN: Final = frozenset({"python", "py", "yaml", "console", "http"})
"""Languages whose blocks are run by tests; blocks of others show what is no input of anything."""
_BLOCK: Final = re.compile(r"(?:^<!-- not run: (.+?) -->\n+)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """A block of a page, with the language of its fence; ``reason``: why no test runs it."""

    page: str
    language: str
    text: str
    reason: str | None


def shown() -> list[Shown]:
    found: list[Shown] = []
    for path in PAGES:
        page = path.relative_to(ROOT).as_posix()
        for reason, language, text in _BLOCK.findall(path.read_text("utf-8")):
            if language in RUN:
                found.append(Shown(page, language, text, reason or None))
    return found


def keys_page() -> list[tuple[re.Pattern[str], str, str]]:
    rows = re.findall(
        r"^\| (`mk:[^|]+`) \| (\w+) \| [^|]+ \| ([^|]+) \|$",
        (ROOT / "docs/redis-keys.md").read_text("utf-8"),
        re.MULTILINE,
    )
    found: list[tuple[re.Pattern[str], str, str]] = []
    for keys, kind, ttl in rows:
        for key in re.findall(r"`([^`]+)`", keys):
            pattern = re.sub(r"[A-Z_]{2,}", ".+", re.escape(key).replace(r"\{s\}", r"\{\d+\}"))
            found.append((re.compile(pattern + "$"), kind, ttl))
    return found


def main() -> None:
    blocks = shown()
    reasons = Counter(block.reason for block in blocks if block.reason)
    told = "; ".join(f"{number} as {reason}" for reason, number in reasons.items())
    left = sum(reasons.values())
    print(f"{len(blocks) - left} blocks of code are run by the tests, {left} are not: {told}")  # noqa: T201


if __name__ == "__main__":
    main()
