"""Requests that a process admits by an allotment, without asking the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.redis.lane import Lane
    from meterkit.store.views import PreparedDecision


def admit(
    lane: Lane, decided: PreparedDecision, route: Route, scope: Scope
) -> tuple[PreparedDecision, list[int] | None]:
    """What decides a request, and the reply; None: the store is to be asked. Of a websocket it always is.

    Args:
        lane: the running event loop's.
        decided: what is asked of the plan.
        route: the line.
        scope: of the request.
    """
    if lane.allotments is None or scope["type"] != "http":
        return decided, None
    return lane.allotments.admit(decided, route)
