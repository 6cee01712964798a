"""Background tasks of an event loop that need the audit log: draining, revenue, overview."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.insights.audit.draining import drainer_of
from meterkit.insights.overview.overview import Overview
from meterkit.insights.revenue.revenue import Revenue

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from meterkit.settings import Settings
    from meterkit.store.store import Store


def root_of(
    store: Store, settings: Settings
) -> Callable[[str], Coroutine[object, object, tuple[int, str] | None]] | None:
    """What gives the root of a customer's audit log; None: there is no audit log."""
    return None if settings.audit_url is None else drainer_of(store, settings).root_of


def insights_tasks(
    store: Store, settings: Settings, *, is_worker: bool = False
) -> Mapping[str, Callable[[], Coroutine[object, object, None]]]:
    """What drains the audit log and makes the snapshots of revenue and of all customers, by name."""
    if settings.audit_url is None or (settings.flush is False and not is_worker):
        return {}
    drainer = drainer_of(store, settings)
    return {
        "audit": drainer.run,
        "audit bound": drainer.keep_bound,
        "revenue": Revenue(store, settings).run,
        "overview": Overview(store, settings).run,
    }
