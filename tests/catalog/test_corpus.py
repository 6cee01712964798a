"""Every file of the corpus is refused with exactly the messages beside it, or accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from meterkit.catalog import loads
from meterkit.errors import PlansError

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
GOOD = sorted((Path(__file__).parent / "good").glob("*.yaml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_is_refused_with_all_its_problems(path: Path) -> None:
    with pytest.raises(PlansError) as caught:
        loads(path.read_bytes(), source=path.name)
    assert path.with_suffix(".expected").read_text("utf-8").splitlines() == str(caught.value).splitlines()
    # Each has its place, and they come in the order of the file.
    places = [(problem.line, problem.column) for problem in caught.value.problems]
    lines = path.read_bytes().splitlines() or [b""]
    assert sorted(places) == places
    for line, column in places:
        assert 1 <= line <= len(lines)
        assert 1 <= column <= len(lines[line - 1]) + 1


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_file_is_accepted(path: Path) -> None:
    catalog = loads(path.read_bytes(), source=path.name)
    assert path.name == catalog.source
    for plan in catalog.plans.values():
        assert list(catalog.meters) == list(plan.entitlements)
