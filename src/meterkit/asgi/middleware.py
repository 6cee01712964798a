"""The edge: every request belongs to a customer, is decided, and is counted."""

from __future__ import annotations

import logging
from asyncio import get_running_loop
from dataclasses import replace
from inspect import isawaitable
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol
from uuid import uuid4

from meterkit.asgi.details import Circumstances
from meterkit.asgi.exchange import Exchange, exchange
from meterkit.asgi.headers import fields, policy_field, quoted
from meterkit.asgi.identify import client_ip, is_customer
from meterkit.asgi.problems import problem, send_denial
from meterkit.asgi.routing import Router, is_preflight
from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.store.decision import Decision
from meterkit.store.verdict import reset_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from meterkit.asgi.identify import Identify
    from meterkit.catalog import Catalog, Route
    from meterkit.store.accounts import Account, DecideCall
    from meterkit.store.lane import Lane
    from meterkit.store.program import Program
    from meterkit.store.store import Store

__all__ = ["Kit", "MeterMiddleware"]

_log = logging.getLogger("meterkit.asgi")

_STORE_FAILED: Final = Decision(allowed=False, reason="store", degraded=True)
_ANONYMOUS: Final = Decision(allowed=False, reason="anonymous")
_INVALID: Final = Decision(allowed=False, reason="invalid_customer")
_UNDECIDED: Final = Decision(allowed=True, degraded=True)
_WARN_EVERY_S: Final = 10.0
_ALLOWED: Final = 0
_REFUSED: Final = 1


class Kit(Protocol):
    """What the edge needs of the kit."""

    @property
    def store(self) -> Store: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class MeterMiddleware:
    """Decides and counts the requests of an ASGI app.

    Holds configuration only; what belongs to one request lives in its :class:`~meterkit.asgi.exchange.Exchange`.

    Args:
        app: the app that is wrapped.
        kit: what is sold, and where it is counted. Started and stopped with the app's lifespan; where the
            server runs none, started by the first request.
        identify: from an ASGI scope to the customer's id, or None; sync or async.
        on_denied: from a scope and a refusal to a response in place of meterkit's own, or None to keep that.
        cors: the origins whose scripts may read a refusal; ``*`` for all. Leave it empty where a CORS
            middleware stands outside of this one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        kit: Kit,
        identify: Identify,
        on_denied: Callable[[Scope, Decision], Response | None] | None = None,
        cors: Collection[str] = (),
    ) -> None:
        self.app = app
        self._kit = kit
        self._identify = identify
        self._on_denied = on_denied
        self._cors = frozenset(cors)
        self._by_ip = client_ip()
        self._warned_at = 0.0
        self._adopt(kit.store.catalog)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self._lifespan if scope["type"] == "lifespan" else self.app)(scope, receive, send)
            return
        store = self._kit.store
        if store.catalog is not self._catalog:
            self._adopt(store.catalog)
        route = self._router.match_http(scope)
        if route is None or route.exempt or (scope["method"] == "OPTIONS" and is_preflight(scope)):
            await self.app(scope, receive, send)
            return
        try:
            found = self._identify(scope)
            account = store.accounts.named.get(found) if type(found) is str else None
            if account is None:
                account = await self._account(found, scope)
        except _UnservedError as error:
            await self._refuse(error.decision, route, None, None, scope, receive, send)
            return
        except Exception:
            _log.exception("identify raised; the request is refused")
            await self._refuse(_STORE_FAILED, route, None, None, scope, receive, send)
            return
        call = account.calls.get(id(route)) or account.call(route)
        lane = store.lanes.get(get_running_loop())
        try:
            if lane is None:
                lane = await store.start()
            reply = await lane.call(call)
            if type(reply) is not list or reply[0] > _REFUSED:
                call, reply = await store.conclude(lane, call, _again(account, route), reply)
        except (StoreError, SettingsError) as error:
            await self._without_store(error, route, account, lane, scope, receive, send)
            return
        if reply[0] == _ALLOWED:
            passed = Exchange(store, lane, account, route, call, reply, None, scope, send)
            if route.headers != "none":
                passed.fields = self._fields(route, call, reply)
            await self._pass(passed, scope, receive)
        else:
            await self._refused(store.decision(call, reply), route, call, lane, scope, receive, send)

    async def _pass(self, passed: Exchange, scope: Scope, receive: Receive) -> None:
        token = exchange.set(passed)
        try:
            await self.app(scope, receive, passed.send)
        except BaseException as error:
            passed.settle(error)
            raise
        finally:
            exchange.reset(token)
        passed.settle(None)

    async def _account(self, found: object, scope: Scope) -> Account:
        """The account of a customer not met before, or of nobody in particular."""
        if isawaitable(found):
            found = await found
        accounts = self._kit.store.accounts
        if is_customer(found):
            return accounts.get(found)
        if found is not None:
            raise _UnservedError(_INVALID)
        anonymous = self._by_ip(scope) if accounts.catalog.anonymous is not None else None
        if anonymous is None:
            raise _UnservedError(_ANONYMOUS)
        return accounts.get(anonymous, anonymous=True)

    async def _refused(
        self,
        decision: Decision,
        route: Route,
        call: DecideCall,
        lane: Lane,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        if route.enforcement == "on":
            await self._refuse(decision, route, call, call.account, scope, receive, send)
            return
        _log.info("shadow: %s would be refused: %s", route.match, decision.reason)
        decision = replace(decision, allowed=True, shadow=True)
        store = self._kit.store
        await self._pass(
            Exchange(store, lane, call.account, route, None, None, decision, scope, send), scope, receive
        )

    async def _refuse(
        self,
        decision: Decision,
        route: Route,
        call: DecideCall | None,
        account: Account | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        if self._on_denied is not None:
            response = self._on_denied(scope, decision)
            if response is not None:
                await response(scope, receive, send)
                return
        plans = self._catalog.plans.values()
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        circumstances = Circumstances(
            policies=() if call is None else tuple(measure.policy for measure in call.program.measures),
            feature=route.feature,
            plan=None if account is None else account.standing.plan.key,
            available_in=tuple(plan.key for plan in plans if route.feature in plan.features),
            portal_url=self._catalog.billing.portal_url,
            origin=origin,
            cors=self._cors,
        )
        now_s = int(self._kit.store.clock())
        denial = problem(decision, circumstances, mode=route.headers, now_s=now_s, instance=uuid4())
        await send_denial(denial, scope, send)

    async def _without_store(
        self,
        error: MeterkitError,
        route: Route,
        account: Account,
        lane: Lane | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        now = monotonic()
        if now - self._warned_at > _WARN_EVERY_S:
            self._warned_at = now
            _log.error("requests go undecided (on_store_failure: %s): %s", route.on_store_failure, error)
        if route.on_store_failure == "deny":
            await self._refuse(_STORE_FAILED, route, None, account, scope, receive, send)
            return
        store = self._kit.store
        await self._pass(
            Exchange(store, lane, account, route, None, None, _UNDECIDED, scope, send), scope, receive
        )

    def _fields(self, route: Route, call: DecideCall, reply: list[int]) -> list[tuple[bytes, bytes]]:
        program = call.program
        told = self._told.get(program)
        if told is None:
            told = self._told[program] = _Told(program)
        nth = reply[2]
        if not nth:
            return told.policy_fields if route.headers != "x-ratelimit" else []
        measure = program.measures[nth - 1]
        reset = reset_ms(measure, reply[3], reply[1], call.period_end_ms(reply[1]))
        if route.headers == "ietf":
            name, left = told.names[nth - 1], reply[3] if reply[3] > 0 else 0
            if reset is None:
                return [*told.policy_fields, (b"ratelimit", b"%b;r=%d" % (name, left))]
            return [*told.policy_fields, (b"ratelimit", b"%b;r=%d;t=%d" % (name, left, -(-reset // 1000)))]
        return fields(
            route.headers,
            policies=told.policies,
            limit=measure.policy,
            remaining=max(0, reply[3]),
            reset_s=None if reset is None else -(-reset // 1000),
            now_s=reply[1] // 1000,
        )

    def _adopt(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._router = Router(catalog.routes)
        self._told: dict[Program, _Told] = {}

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def starting() -> Message:
            nonlocal started
            message = await receive()
            if message["type"] == "lifespan.startup" and not started:
                await self._kit.start()
                started = True
            return message

        try:
            await self.app(scope, starting, send)
        finally:
            if started:
                await self._kit.stop()


class _Told:
    """What a client is told of a program, written once."""

    __slots__ = ("names", "policies", "policy_fields")

    def __init__(self, program: Program) -> None:
        policies = [measure.policy for measure in program.measures]
        self.policies = policy_field(policies)
        self.policy_fields = [(b"ratelimit-policy", self.policies)] if policies else []
        self.names = [quoted(policy.name) for policy in policies]


class _UnservedError(Exception):
    """The request has no customer that could be served."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision


def _again(account: Account, route: Route) -> Callable[[str], DecideCall]:
    return lambda mode: account.call(route, mode=mode)
