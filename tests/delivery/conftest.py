"""Deliveries use the store within the process; ``--store`` runs them on a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.near_store import near_store_url


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty store within the process, or the server that ``--store`` names."""
    return near_store_url(request)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make field` what runs on a server once more."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("any_store_url", "memory") != "memory":
            item.add_marker(pytest.mark.whole)
