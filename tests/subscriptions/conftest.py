"""Stripe is asked as fast as it answers: its limits, and pauses between tries, have tests of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for Stripe's limits, or before it asks again, does not."""
    monkeypatch.setattr("meterkit.subscriptions.webhooks.worker._PAUSE_S", 0.0)
    monkeypatch.setattr("meterkit.stripe.api._PER_ENDPOINT_S", 10_000.0)
    monkeypatch.setattr("meterkit.stripe.api._LIVE_PER_S", 10_000.0)
    monkeypatch.setattr("meterkit.stripe.api._jitter", _hardly)


def _hardly(least: float, most: float) -> float:
    del least, most
    return 0.001
