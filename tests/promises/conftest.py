"""A store that is restored or emptied, beside a Stripe emulator: for the tests of I6 and I11."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from drivers.delivery import NOW
from drivers.emulated_account import unpaced
from drivers.restorable_kit import House, house_at


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[House]:
    unpaced(monkeypatch)  # It is asked as fast as it answers, not 20 times in a second.
    async with house_at(tmp_path, NOW) as made:
        yield made
