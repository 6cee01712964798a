"""Stripe is asked without pauses here: the emulator has no limits."""

from __future__ import annotations

import pytest

from drivers.emulated_account import unpaced
from drivers.near_store import near_store_url


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask at once, and again at once."""
    monkeypatch.setattr("meterkit.subscriptions.webhooks.worker._PAUSE_S", 0.0)
    unpaced(monkeypatch)


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty store within the process, or the server that ``--store`` names."""
    return near_store_url(request)
