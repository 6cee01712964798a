"""The library with one expression made wrong on purpose: a test must notice (see python_mutants.py).

A sample with the test that notices each; all mutants of some modules with ``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final
from zlib import crc32

import pytest

from python_mutants import mutants, survivors_known

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).parents[1]
NOTICED: Final = Path(__file__).with_name("python_noticed.txt")
SAMPLE: Final = 12
ALL: Final = os.environ.get("METERKIT_ALL_MUTANTS") == "1"


TESTS: Final = (
    *(
        f"tests/unit/test_{name}.py"
        for name in (
            *("customer_state", "dunning", "identify_arguments", "in_process", "kept_intents"),
            *("limit_fields", "log_sampler", "money", "periods", "program", "relinking"),
            *("subscription_periods", "subscription_state", "verdict", "verdicts"),
        )
    ),
    *("tests/catalog/test_overrides.py", "tests/delivery/test_outcomes.py"),
)
"""Tests without a server: a mutant costs a fifth of a second."""
MODULES: Final = tuple(f"decisions/{name}.py" for name in ("ambiguity", "customer_state", "dunning"))
"""Modules of which each mutant is noticed by a test of :data:`TESTS`, or is known to survive."""


def run(directory: Path, module: str, tests: Iterable[str], sample: str = "") -> list[str]:
    """Try mutants; what became of each."""
    found = directory / "found.txt"
    more = {
        "METERKIT_MUTANTS": module,
        "METERKIT_MUTANTS_SAMPLE": sample,
        "METERKIT_MUTANTS_FOUND": str(found),
        "METERKIT_HYPOTHESIS_PROFILE": "few",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "python_mutants", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
    )
    *lines, last = found.read_text("utf-8").splitlines() if found.exists() else [""]
    assert last == f"{len(lines)} mutants", done.stdout + done.stderr
    return lines


def test_a_sample_of_mutants_is_noticed(tmp_path: Path) -> None:
    there = {str(mutant) for module in MODULES for mutant in mutants(module)}
    lines = NOTICED.read_text("utf-8").splitlines()
    # What has been changed since is tried by `make mutants`, which tells of its lines.
    lines = [line for line in lines if line.partition("\t")[0] in there]
    chosen = Random(crc32("\n".join(lines).encode())).sample(lines, SAMPLE)  # noqa: S311 - repeatable
    tests = sorted({line.partition("\t")[2] for line in chosen})
    found = run(tmp_path, "decisions", tests, "\n".join(chosen))
    assert [line for line in found if not line.startswith("noticed")] == []
    assert len(found) == SAMPLE


@pytest.mark.skipif(not ALL, reason="minutes: make mutants")
@pytest.mark.parametrize("module", MODULES)
def test_every_mutant_is_noticed_or_known_to_survive(tmp_path: Path, module: str) -> None:
    found = run(tmp_path, module, TESTS)
    assert [line for line in found if not line.startswith("noticed")] == []


def test_every_survivor_has_a_reason() -> None:
    known = survivors_known()
    assert known
    assert all(known.values())
    if ALL:
        assert set(known) <= {str(mutant) for module in MODULES for mutant in mutants(module)}
