"""The scripts with one thing made wrong on purpose."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePath
from random import Random
from typing import Final
from unittest.mock import patch
from zlib import crc32

from meterkit.redis import scripts

Swaps = Sequence[tuple[str, tuple[str, ...]]]

CONSTANTS: Final = "shared/constants.lua"
SWAPS: Final[Swaps] = (
    (r"(?<= )\+(?= )", ("-",)),
    (r"(?<= )-(?= )", ("+",)),
    (r"(?<= )\*(?= )", ("/",)),
    (r"(?<= )/(?= )", ("*",)),
    (r"(?<= )<(?= )", ("<=", ">")),
    (r"(?<= )<=(?= )", ("<",)),
    (r"(?<= )>(?= )", (">=", "<")),
    (r"(?<= )>=(?= )", (">",)),
    (r"(?<= )==(?= )", ("~=",)),
    (r"(?<= )~=(?= )", ("==",)),
    (r"\bmath\.floor\b", ("math.ceil",)),
    (r"\bmath\.ceil\b", ("math.floor",)),
    (r"\bmath\.min\b", ("math.max",)),
    (r"\bmath\.max\b", ("math.min",)),
    (r"(?<= )and(?= )", ("or",)),
    (r"(?<= )or(?= )", ("and",)),
    (r"\bnot (?!call)", ("",)),
    (r"(?<![\w.'])-?\d+(?![\w'])", ("+1", "-1")),
)
"""Patterns of one token, each with what is put in its place; ``+1`` and ``-1`` are added to a number."""
MORE_SWAPS: Final = (
    *SWAPS,
    (r"(?<![\w.])floor(?=\()", ("math.ceil",)),
    # Every text: names of fields, states and commands, patterns, numbers that are compared as texts.
    (r"'[^']*'", ("'~'",)),
    # Every command that is called for what it does.
    (r"(?<=^)\s*(?:redis\.)?call\(.*\)$", ("",)),
)
"""The same, and texts, and commands: for scripts that are called seldom and name much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One file with one thing wrong; ``wrong`` is what ``line`` has become."""

    file: str
    number: int
    line: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.file}: {self.line.strip()} -> {self.wrong.strip()}"

    def texts(self, load: Callable[[], dict[str, str]]) -> dict[str, str]:
        """The scripts that ``load`` reads, the wrong file in every one that includes it."""
        lines = source(self.file).split("\n")
        lines[self.number] = self.wrong
        wrong = "\n".join(lines)

        def read(path: str) -> str:
            return wrong if path == self.file else source(path)

        # They are put together once; this time from another source, and afterwards from the right one again.
        scripts.load.cache_clear()
        try:
            with patch.object(scripts, "_read", read):
                return load()
        finally:
            scripts.load.cache_clear()


@cache
def source(file: str) -> str:
    return (resources.files("meterkit") / "lua" / file).read_text(encoding="utf-8")


def mutants(files: Sequence[str], swaps: Swaps = SWAPS) -> Iterator[Mutant]:
    """Every mutant of some files, those that do what the original does among them."""
    for file in files:
        for number, line in enumerate(source(file).split("\n")):
            if not line.lstrip().startswith(("--", "#!")):
                if file == CONSTANTS and not _names(line, files):
                    continue
                for wrong in dict.fromkeys(wrongs(line, swaps)):
                    yield Mutant(file=file, number=number, line=line, wrong=wrong)


def _names(constant: str, files: Sequence[str]) -> bool:
    """Whether one of these files has a use for a constant."""
    found = re.match(r"local (\w+) = ", constant)
    name = "" if found is None else found[1]
    return bool(name) and any(re.search(rf"\b{name}\b", source(file)) for file in files if file != CONSTANTS)


def wrongs(line: str, swaps: Swaps = SWAPS) -> Iterator[str]:
    code = line.partition(" -- ")[0]
    for pattern, replacements in swaps:
        for found in re.finditer(pattern, code):
            for replacement in replacements:
                is_number = re.fullmatch(r"-?\d+", found[0])
                put = str(int(found[0]) + int(replacement)) if is_number else replacement
                yield line[: found.start()] + put + line[found.end() :]


def equivalents(file: str) -> dict[str, str]:
    """Mutants that do what the original does, each with the reason that stands above it in the file."""
    found: dict[str, str] = {}
    reason = ""
    for line in Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            reason = line.removeprefix("# ")
        elif line:
            found[line] = reason
    return found


def in_depth(short: int, long: int) -> int:
    """How many lives or steps: ``long`` where METERKIT_ALL_MUTANTS=1, as in ``make soak``; else ``short``."""
    return long if os.environ.get("METERKIT_ALL_MUTANTS") == "1" else short


def is_sampled() -> bool:
    """Whether a sample of the mutants is tried, each in short lives; some are only noticed in long ones."""
    return in_depth(1, 0) == 1 and not os.environ.get("METERKIT_MUTANTS_OF")


def sample_of(every: Sequence[Mutant], count: int) -> list[Mutant]:
    """Some of them, by what they are: the same scripts give the same sample on any day.

    With METERKIT_ALL_MUTANTS=1 all of them; with METERKIT_MUTANTS_OF=owed_of,decide all of these files.
    """
    named = os.environ.get("METERKIT_MUTANTS_OF")
    if named:
        return [mutant for mutant in every if PurePath(mutant.file).stem in named.split(",")]
    if in_depth(0, 1):
        return list(every)
    seed = crc32("\n".join(map(str, every)).encode())
    return Random(seed).sample(every, count)  # noqa: S311 - a failure must be repeatable, nothing is secret
