"""Answers requests that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from meterkit.asgi.details import Circumstances
from meterkit.asgi.problems import problem, send_denial

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from meterkit.catalog import Route
    from meterkit.store.accounts import Account, DecideCall
    from meterkit.store.decision import Decision

__all__ = ["Refuser"]


class Refuser:
    """Writes refusals.

    Args:
        on_denied: the app's own answer, or None for ours; see :class:`meterkit.MeterMiddleware`.
        cors: the origins whose scripts may read a refusal.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        on_denied: Callable[[Scope, Decision], Response | None] | None,
        cors: Collection[str],
        clock: Callable[[], float],
    ) -> None:
        self._on_denied = on_denied
        self._cors = frozenset(cors)
        self._clock = clock

    async def refuse(
        self,
        decision: Decision,
        route: Route,
        call: DecideCall | None,
        account: Account | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a request that is not served; the app never sees it."""
        response = self._on_denied(scope, decision) if self._on_denied is not None else None
        if response is not None:
            await response(scope, receive, send)
            return
        circumstances = self._circumstances(route, call, account, scope)
        denial = problem(
            decision, circumstances, mode=route.headers, now_s=int(self._clock()), instance=uuid4()
        )
        await send_denial(denial, scope, send)

    def _circumstances(
        self, route: Route, call: DecideCall | None, account: Account | None, scope: Scope
    ) -> Circumstances:
        about_customer: dict[str, Any] = {}
        if account is not None:
            catalog = account.accounts.catalog
            plans = catalog.plans.values()
            about_customer = {
                "plan": account.standing.plan.key,
                "available_in": tuple(plan.key for plan in plans if route.feature in plan.features),
                "portal_url": catalog.billing.portal_url,
            }
        return Circumstances(
            policies=() if call is None else tuple(measure.policy for measure in call.program.measures),
            feature=route.feature,
            origin=next((value for name, value in scope["headers"] if name == b"origin"), None),
            cors=self._cors,
            **about_customer,
        )
