"""Each line of the scripts' arithmetic, made wrong on purpose: the model must notice.

A sample of the mutants, another one each day; all of them, in some minutes, with ``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.store.resp import pack
from store.script_checks import MismatchError
from store.script_driver import World, life
from store.script_plans import CUSTOMERS
from store.script_wires import CLOCK, clock_answers, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from servers import Server
    from store.script_wires import Wire

FILES: Final = (
    *("decide.lua", "settle.lua"),
    *("include/rates.lua", "include/period.lua", "include/roll.lua", "include/standing.lua"),
)
SWAPS: Final = (
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
SEEDS: Final = (0, 1, 2)
STEPS: Final = 5000
SAMPLE: Final = 120
ALL: Final = os.environ.get("METERKIT_ALL_MUTANTS") == "1"


def equivalents() -> dict[str, str]:
    """Mutants that do what the original does, each with the reason that stands above it in the file."""
    found: dict[str, str] = {}
    reason = ""
    for line in Path(__file__).with_name("script_equivalents.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            reason = line.removeprefix("# ")
        elif line:
            found[line] = reason
    return found


EQUIVALENT: Final = equivalents()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One file with one thing wrong; ``wrong`` is what ``line`` has become."""

    file: str
    number: int
    line: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.file}: {self.line.strip()} -> {self.wrong.strip()}"

    def texts(self) -> dict[str, str]:
        """All scripts, the wrong file in every one that includes it."""
        right = source(self.file)
        lines = right.split("\n")
        lines[self.number] = self.wrong
        return {name: text.replace(right, "\n".join(lines)) for name, text in texts(self.file).items()}


def source(file: str) -> str:
    """A file's text, as it stands in the scripts: a command without its includes."""
    text = (resources.files("meterkit.store") / "lua" / file).read_text(encoding="utf-8")
    return text if file.startswith("include") else text[text.rindex("--include") :].partition("\n")[2]


def texts(file: str) -> Mapping[str, str]:
    found = load_texts()
    assert any(source(file) in text for text in found.values())
    return found


def mutants() -> Iterator[Mutant]:
    """Every mutant that does something else than the original."""
    for file in FILES:
        for number, line in enumerate(source(file).split("\n")):
            if not line.lstrip().startswith("--"):
                for wrong in dict.fromkeys(wrongs(line)):
                    mutant = Mutant(file=file, number=number, line=line, wrong=wrong)
                    if str(mutant) not in EQUIVALENT:
                        yield mutant


def wrongs(line: str) -> Iterator[str]:
    code = line.partition(" -- ")[0]
    for pattern, replacements in SWAPS:
        for found in re.finditer(pattern, code):
            for replacement in replacements:
                is_number = re.fullmatch(r"-?\d+", found[0])
                put = str(int(found[0]) + int(replacement)) if is_number else replacement
                yield line[: found.start()] + put + line[found.end() :]


def live(wire: Wire, scripts: Mapping[str, str], seed: int) -> dict[str, int]:
    """Live some thousand steps; how often each command was called."""
    world = World(wire, scripts, life(seed))
    wire(pack("CONFIG", "RESETSTAT"))
    for _ in range(STEPS):
        world.step()
    for name in CUSTOMERS:
        world.check(name)
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


def is_caught(mutant: Mutant, wire: Wire, right: Mapping[int, Mapping[str, int]]) -> bool:
    """Whether the model answers otherwise, or the scripts ask the store more often than they need to."""
    scripts = mutant.texts()
    try:
        return any(live(wire, scripts, seed) != right[seed] for seed in SEEDS)
    except MismatchError:
        return True
    finally:
        wire(pack("SCRIPT", "FLUSH"))


@cache
def chosen() -> list[Mutant]:
    every = list(mutants())
    # A new sample each day, the same all day long.
    return every if ALL else life(datetime.now(UTC).toordinal()).sample(every, SAMPLE)


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        right = {seed: live(wire, load_texts(), seed) for seed in SEEDS}
        survivors = [str(mutant) for mutant in chosen() if not is_caught(mutant, wire, right)]
    assert survivors == []


def test_every_mutant_of_the_clock_is_caught(valkey: Server) -> None:
    right = source("include/wall.lua")
    with server_wire(valkey) as wire:
        answers = {
            wrong: clock_answers(wire, right.replace(line, wrong))
            for line in right.split("\n")
            if not line.startswith("--")
            for wrong in wrongs(line)
        }
    assert len(answers) > 10
    assert [wrong for wrong, answer in answers.items() if answer == CLOCK] == []


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    possible = {
        str(Mutant(file=file, number=number, line=line, wrong=wrong))
        for file in FILES
        for number, line in enumerate(source(file).split("\n"))
        for wrong in wrongs(line)
    }
    assert set(EQUIVALENT) <= possible
    assert all(EQUIVALENT.values())
