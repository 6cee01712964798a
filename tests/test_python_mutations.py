"""The library with one place made wrong on purpose: a test must notice (see faults/python_mutants.py).

A sample with the test that notices each; all mutants that are tried with ``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Final
from zlib import crc32

import pytest

from faults.python_mutants import Mutant, mutants, survivors_known

ROOT: Final = Path(__file__).parents[1]
NOTICED: Final = Path(__file__).parent / "faults" / "python_noticed.txt"
SAMPLE: Final = 2
LEAST: Final = 0.9
"""Such a share of all that are tried must be noticed. It may only rise: decision 0193 says what it was."""
ALL: Final = os.environ.get("METERKIT_ALL_MUTANTS") == "1"
PARTS: Final = {"decisions": 4, "delivery": 16, "outbox": 16, "store": 128, "customers": 128, "redis": 128}
"""Of each room one in so many mutants is tried, and one of each module."""
_ROOMS: Final = (
    "unit store delivery subscriptions asgi insights notify storage testing catalog pages cli promises"
)
TESTS: Final = tuple(f"tests/{room}" for room in _ROOMS.split())
"""The tests that are tried on mutants, of those that execute a mutant's line the narrowest first."""


@cache
def every(room: str) -> tuple[Mutant, ...]:
    return tuple(mutants(room))


def tried(room: str) -> list[Mutant]:
    """The mutants of a room that are tried: the same each time, and the same of code that stays."""
    found = sorted(every(room), key=_lot)
    first = {one.file: one for one in reversed(found)}
    return [one for one in found if one is first[one.file] or _lot(one) % PARTS[room] == 0]


def _lot(mutant: Mutant) -> int:
    return crc32(str(mutant).encode())


def run(directory: Path, places: str, tests: Iterable[str], lines: Sequence[str]) -> list[str]:
    """Try mutants; what became of each."""
    found, sample = directory / "found.txt", directory / "sample.txt"
    sample.write_text("\n".join(lines), "utf-8")
    more = {
        "METERKIT_MUTANTS": places,
        "METERKIT_MUTANTS_SAMPLE": str(sample),
        "METERKIT_MUTANTS_FOUND": str(found),
        # Many tests wait; the sample of `make test` has two processors and others beside it.
        "METERKIT_MUTANTS_AT_ONCE": "4" if ALL else "2",
        "METERKIT_HYPOTHESIS_PROFILE": "few",
        # The tests themselves are as long as those of `make test`.
        "METERKIT_ALL_MUTANTS": "",
    }
    plain = ("-q", "-p", "no:cacheprovider", "--tb", "native", "--timeout", "0")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "faults.python_mutants", *plain, *tests],
        cwd=ROOT,
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
    )
    *told, last = found.read_text("utf-8").splitlines() if found.exists() else [""]
    assert last == f"{len(lines)} mutants", (told, last, done.stdout + done.stderr)
    return told


@pytest.mark.dear("a run of pytest with two mutants, each in a process of its own")
def test_a_sample_of_mutants_is_noticed(tmp_path: Path) -> None:
    there = {str(mutant): mutant.file for room in PARTS for mutant in every(room)}
    # Those whose code has changed since are left out: `make mutants` tries them all.
    lines = [line for line in NOTICED.read_text("utf-8").splitlines() if line.partition("\t")[0] in there]
    chosen = Random(crc32("\n".join(lines).encode())).sample(lines, SAMPLE)  # noqa: S311 - repeatable
    files = sorted({there[line.partition("\t")[0]] for line in chosen})
    tests = sorted({line.partition("\t")[2] for line in chosen})
    found = run(tmp_path, " ".join(files), tests, chosen)
    assert [line for line in found if not line.startswith("noticed")] == []
    assert len(found) == SAMPLE


@pytest.mark.skipif(not ALL, reason="hours: make mutants")
def test_mutants_are_noticed_or_known_to_survive(tmp_path: Path) -> None:
    known = survivors_known()
    chosen = [str(mutant) for room in PARTS for mutant in tried(room) if str(mutant) not in known]
    found = run(tmp_path, " ".join(PARTS), TESTS, chosen)
    left = [line for line in found if not line.startswith(("noticed", "fails without a mutant"))]
    print(*left, sep="\n")  # noqa: T201 - `make mutants ARGS=-rP` lists them
    assert len(left) <= (1 - LEAST) * len(chosen), "\n".join(left)


def test_every_survivor_has_a_reason() -> None:
    known = survivors_known()
    assert known
    assert all(known.values())
    if ALL:
        assert set(known) <= {str(mutant) for room in PARTS for mutant in every(room)}
