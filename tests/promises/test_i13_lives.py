"""Random lives of one year: whatever happens, each billed unit is charged once, at the price of its time."""

from __future__ import annotations

import os
from typing import Final

import pytest

from lives import drawn, lived

LIVES: Final = int(os.environ.get("METERKIT_LIVES", "6"))


@pytest.mark.parametrize("seed", range(LIVES))
def test_i13_a_year_of_a_customer(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    wrong, told = lived(monkeypatch, drawn(seed))
    assert wrong == [], "\n".join(["a life with the events", *told])
