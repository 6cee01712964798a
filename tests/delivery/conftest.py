"""Deliveries use the store within the process; ``--store`` runs them on a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.near_store import leave_servers_to_field, near_store_url


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty store within the process, or the server that ``--store`` names."""
    return near_store_url(request)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_servers_to_field(items, Path(__file__).parent)
