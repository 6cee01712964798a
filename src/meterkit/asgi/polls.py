"""Polls: requests that fetch or cancel a provider's job, for which an earlier request holds tokens."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from meterkit.catalog.routes import additions_of, charging_meters
from meterkit.errors import StoreError
from meterkit.store.jobs import owners_of

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.decisions.decision import Decision
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_REASONS: Final = frozenset({"rate", "included", "cap", "credits", "spend"})
_METHODS: Final = frozenset({"GET", "HEAD", "DELETE"})
_CANCEL: Final = "/cancel"
_SEGMENTS_MAX: Final = 4
_JOB_ID_CHARS_MAX: Final = 256


async def polls_own_job(
    store: Store, view: CustomerView, route: Route, decision: Decision, scope: Scope
) -> bool:
    """Whether a refused request only fetches or cancels a job that the same customer began.

    That costs a further round trip, and only where the plan has refused the request.

    Args:
        store: which has refused it.
        view: the customer.
        route: of the request.
        decision: the refusal.
        scope: of the request.
    """
    if decision.degraded or decision.reason not in _REASONS:
        return False
    path: str = scope["path"]
    if scope.get("method", "").upper() not in _METHODS and not path.endswith(_CANCEL):
        return False
    meters = view.cache.catalog.meters
    tokens = charging_meters(meters)
    if tokens.isdisjoint(additions_of(route, meters)):
        return False
    names = [unquote(name) for name in path.split("/")[-_SEGMENTS_MAX:] if name]
    known = [name for name in names if len(name) <= _JOB_ID_CHARS_MAX]
    # A route that records tokens of its own could add more of them each time that an ended job is fetched.
    serves_ended = tokens.isdisjoint(route.records)
    with suppress(StoreError):
        owners = await owners_of(store, known, with_ended=serves_ended)
        return (view.customer, view.anonymous) in owners
    return False
