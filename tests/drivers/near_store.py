"""The store within the process, for tests whose point is not the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

_FOLDERS: Final = {Path(__file__).parents[1] / name for name in ("delivery", "insights", "subscriptions")}
_SERVERS: Final = {"valkey": "valkey", "cluster": "cluster", "sentinel": "watched"}


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    """``memory://``, or a server: with ``--store``, for ``each_store``, and where a test takes ``valkey``."""
    kind: str | None = getattr(request, "param", None) or request.config.getoption("--store")
    if kind is None and "valkey" in request.fixturenames:
        kind = "valkey"
    if kind is None:
        return "memory://"
    server: Any = request.getfixturevalue(_SERVERS[kind])
    return str(server.url)


def leave_servers_to_field(items: list[pytest.Item]) -> None:
    """Mark ``whole`` what tests of these folders that take any store run on a server once more."""
    for item in items:
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("any_store_url", "memory") != "memory" and not _FOLDERS.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.whole)
