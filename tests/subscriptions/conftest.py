"""Stripe is asked without pauses here: the emulator has no limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from drivers.emulated_account import unpaced
from drivers.shop import Shop, shop


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask at once, and again at once; wait for the answer of a busy machine."""
    monkeypatch.setattr("meterkit.subscriptions.service.accepted_changes.ANSWER_S", 600.0)
    monkeypatch.setattr("meterkit.subscriptions.webhooks.sync_worker._PAUSE_S", 0.0)
    unpaced(monkeypatch)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url) as opened:
        yield opened
