"""ASGI app that serves a kit's metrics; it imports prometheus-client when it is made."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from meterkit.redis.daemon_thread import import_alone

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from meterkit.insights.revenue.revenue import Revenue
    from meterkit.store.store import Store


class _Kit(Protocol):
    @property
    def store(self) -> Store: ...
    @property
    def revenue(self) -> Revenue: ...


def metrics_app(kit: _Kit) -> ASGIApp:
    """An ASGI app to mount that serves the metrics of this process, and of what waits in the store.

    From now on the kit counts what it decides in this process. No label names a customer.

    Raises:
        ImportError: prometheus-client is not installed (the extra ``prometheus``).
    """
    try:
        import_module("prometheus_client")
    except ImportError as error:
        raise ImportError(
            "prometheus-client is required for metrics_app. Install with: pip install 'meterkit[prometheus]'"
        ) from error
    prometheus: Any = import_alone("meterkit.insights.prometheus")
    store = kit.store
    tallies = store.tally()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"metrics_app serves HTTP, not {scope['type']}; mount it in an app")
        del receive
        await prometheus.answer_metrics(store, kit.revenue, tallies, scope, send)

    return app
