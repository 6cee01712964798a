"""The store within the process, for tests whose point is not the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["leave_servers_to_field", "near_store_url"]

_SERVERS: Final = {"valkey": "valkey", "cluster": "cluster", "sentinel": "watched"}


def near_store_url(request: pytest.FixtureRequest) -> str:
    """``memory://``, or a server: with ``--store``, for ``each_store``, and where a test takes ``valkey``."""
    kind: str | None = getattr(request, "param", None) or request.config.getoption("--store")
    if kind is None and "valkey" in request.fixturenames:
        kind = "valkey"
    if kind is None:
        return "memory://"
    server: Any = request.getfixturevalue(_SERVERS[kind])
    return str(server.url)


def leave_servers_to_field(items: list[pytest.Item], folder: Path) -> None:
    """Mark ``whole`` what tests of a folder that take any store run on a server once more."""
    for item in items:
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("any_store_url", "memory") != "memory" and folder in item.path.parents:
            item.add_marker(pytest.mark.whole)
