"""Background tasks of an event loop that need the audit log: draining, revenue, overview."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.overview.overview import CustomerOverview
from meterkit.insights.revenue.revenue import Revenue
from meterkit.store.task_lease import RepeatedTask

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from meterkit.settings import Settings
    from meterkit.store.store import Store


def audit_root_reader(
    store: Store, settings: Settings
) -> Callable[[str], Coroutine[object, object, tuple[int, str] | None]] | None:
    """Reader of the root of a customer's audit log; None: no audit log is set."""
    return None if settings.audit_url is None else open_drainer(store, settings).root_of


def audit_tasks(store: Store, settings: Settings) -> Mapping[str, RepeatedTask]:
    """The task that drains the audit log, by name; none without one."""
    if settings.audit_url is None:
        return {}
    drainer = open_drainer(store, settings)
    return {"audit": RepeatedTask(drainer.run, drainer.drain_under_lease)}


def insights_tasks(
    store: Store, settings: Settings, *, is_worker: bool = False
) -> Mapping[str, Callable[[], Coroutine[object, object, None]]]:
    """Background tasks by name: draining the audit log, snapshots of revenue and of the overview."""
    if settings.audit_url is None or (settings.flush is False and not is_worker):
        return {}
    drainer = open_drainer(store, settings)
    return {
        "audit": drainer.run,
        "audit bound": drainer.fold_full_streams,
        "revenue": Revenue(store, settings).run,
        "overview": CustomerOverview(store, settings).run,
    }
