"""Stripe is asked without pauses here: the emulator has no limits."""

from __future__ import annotations

import pytest

from drivers.emulated_account import unpaced


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask at once, and again at once."""
    monkeypatch.setattr("meterkit.subscriptions.webhooks.worker._PAUSE_S", 0.0)
    unpaced(monkeypatch)
