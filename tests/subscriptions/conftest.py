"""Stripe is asked without pauses here: the emulator has no limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.emulated_account import unpaced
from drivers.near_store import leave_servers_to_field, near_store_url
from drivers.shop import shop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask at once, and again at once."""
    monkeypatch.setattr("meterkit.subscriptions.webhooks.worker._PAUSE_S", 0.0)
    unpaced(monkeypatch)


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty store within the process, or the server that ``--store`` names."""
    return near_store_url(request)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url) as opened:
        yield opened


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_servers_to_field(items, Path(__file__).parent)
