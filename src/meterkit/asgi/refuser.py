"""Refuser: responds to refused requests, also in place of the app's own error response.

A FastAPI dependency can refuse only by an exception, and the client must get meterkit's own response. So the
dependency raises an ``HTTPException``, and the response to that is replaced here. An exception of ours would
look like a failure to the middleware and error trackers between.
"""

from __future__ import annotations

import logging
from copy import copy
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import uuid4

from meterkit.asgi.logs import LogSampler
from meterkit.asgi.mcp import mcp_denial
from meterkit.asgi.refusal_responses import (
    Denial,
    Offer,
    ProblemContext,
    can_answer,
    complete_headers,
    problem,
    send_denial,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

    from meterkit.asgi.logs import RefusalLog
    from meterkit.asgi.mcp import McpMessage
    from meterkit.catalog import Route
    from meterkit.decisions.decision import Decision
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision


class LateRefusal:
    """Replacement for the server's send after the app has refused a request.

    The app raises an exception; the response that its handlers make gives way to the refusal. A response with
    another status passes.

    Args:
        send: the server's.
        status: of the response that gives way.
        refuse: sends the refusal.
    """

    def __init__(self, send: Send, status: int, refuse: Callable[[Send], Awaitable[None]]) -> None:
        self._send = send
        self._status = status
        self._refuse = refuse
        self._is_answered = False

    async def __call__(self, message: Message) -> None:
        """Send a message, unless it belongs to the response that gives way."""
        if self._is_answered:
            return
        # Of a websocket the kind has a prefix.
        if message["type"].endswith("http.response.start") and message["status"] == self._status:
            self._is_answered = True
            await self._refuse(self._send)
        else:
            await self._send(message)


if TYPE_CHECKING:
    OnDenied = Callable[[Scope, Decision], Response | Awaitable[Response | None] | None]
    """See :class:`meterkit.MeterMiddleware`."""

_logger = logging.getLogger("meterkit.asgi")
_FAILURES_EVERY_S: Final = 10.0


class Refuser:
    """Writes refusals.

    Attributes:
        log: where each is written.

    Args:
        on_denied: the app's own answer, or None for ours; see :class:`meterkit.MeterMiddleware`.
        cors: the origins whose scripts may read a refusal.
        store: of the kit.
        log: where each is written.
    """

    def __init__(
        self,
        on_denied: OnDenied | None,
        cors: Collection[str],
        store: Store,
        log: RefusalLog,
    ) -> None:
        self._on_denied = on_denied
        self._cors = frozenset(cors)
        self._store = store
        self.log = log
        self._failures = LogSampler(1, _FAILURES_EVERY_S, _log_more_failures)
        self._message: McpMessage | None = None

    def for_mcp_message(self, message: McpMessage) -> Refuser:
        """Copy this refuser to one that answers an MCP message in its form."""
        own = copy(self)
        own._message = message  # noqa: SLF001 - of a copy of this one
        return own

    async def refuse(
        self,
        decision: Decision,
        route: Route,
        decided: PreparedDecision | None,
        view: CustomerView | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        is_admitted: bool = False,
    ) -> None:
        """Answer a request or a websocket that is not served, or that was admitted and is refused since."""
        tallies = None if is_admitted else self._store.tallies
        if tallies is not None:  # One that was admitted is counted when it ends.
            tallies.count_request(decision.plan, "refused", decision.cause, degraded=decision.degraded)
        if self._store.mark_span is not None:
            self._store.mark_span(decision.plan, decision.cause, decision.degraded)
        context = self._problem_context(decision, route, decided, view, scope)
        now_ms = self._store.now_ms()
        denial = problem(decision, context, mode=route.headers, now_ms=now_ms, instance=uuid4())
        if self._message is not None:
            denial = mcp_denial(denial, self._message)
        answer = _AppResponse(denial, scope, send)
        try:
            if self._on_denied is not None and can_answer(scope):
                await self._send_app_response(self._on_denied, decision, answer, receive)
            if not answer.began:
                await send_denial(denial, scope, send)
        finally:
            status = answer.status or denial.status
            self.log.log_refused(decision, route, view, scope, status=status, instance=denial.instance)

    async def _send_app_response(
        self, on_denied: OnDenied, decision: Decision, answer: _AppResponse, receive: Receive
    ) -> None:
        try:
            response = on_denied(answer.scope, decision)
            if isawaitable(response):
                response = await response
            if response is not None:
                await response(answer.scope, receive, answer.send)
        except Exception:
            if answer.began:
                raise  # The response has begun.
            if self._failures.admits():
                _logger.exception("on_denied failed; the client gets meterkit's own answer")

    def _problem_context(
        self,
        decision: Decision,
        route: Route,
        decided: PreparedDecision | None,
        view: CustomerView | None,
        scope: Scope,
    ) -> ProblemContext:
        about_customer: dict[str, Any] = {}
        feature = route.feature
        if view is not None:
            feature = route.first_feature_beyond(view.effective.plan.features)
            catalog = view.catalog
            plans = catalog.plans.values()
            about_customer = {
                "plan": view.effective.plan.key,
                "available_in": tuple(plan.key for plan in plans if feature in plan.features),
                "portal_url": catalog.billing.portal_url,
                "offer": Offer.of(catalog, decision),
                "resource": _request_url(scope),
                "currency": catalog.currency,
            }
        gauge = decision.gauge
        if gauge is not None:
            about_customer |= {"limit": gauge.limit, "used": gauge.used, "requested": gauge.requested}
            about_customer["unit"] = gauge.unit
        return ProblemContext(
            policies=() if decided is None else tuple(measure.policy for measure in decided.program.measures),
            feature=feature,
            origin=next((value for name, value in scope["headers"] if name == b"origin"), None),
            cors=self._cors,
            **about_customer,
        )


class _AppResponse:
    """Sends the app's own response to a refused request, with the headers that it lacks."""

    def __init__(self, denial: Denial, scope: Scope, send: Send) -> None:
        self.scope = scope
        self._denial = denial
        self._is_head = scope.get("method") == "HEAD"
        self._send = send
        self.began = False
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        """Stand in for the server's ``send``."""
        kind = message["type"]
        self.began = True
        if kind.endswith("http.response.start"):
            self.status = message["status"]
            message = {**message, "headers": complete_headers(message.get("headers", ()), self._denial)}
        elif self._is_head and kind == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


def _request_url(scope: Scope) -> str:
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    return f"{scope.get('scheme', 'http')}://{host}{quote(scope['path'])}"


def _log_more_failures(number: int) -> None:
    _logger.error("on_denied failed %d more times within %.0f s", number, _FAILURES_EVERY_S)
