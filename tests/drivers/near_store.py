"""The store within the process, for tests whose point is not the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pytest

__all__ = ["near_store_url"]

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
