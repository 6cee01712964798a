"""MeterMiddleware: identifies the customer of each request, decides it and counts it.

A middleware that is added twice, or also to a mounted app, counts once: while the app runs, the scope
carries a mark of the kit, which names the method and the path that were decided. Two kits both count, which
the inner one logs once. Where no lifespan ran, the first request starts the kit, so that its usage is
delivered as well.
"""

from __future__ import annotations

from asyncio import CancelledError
from dataclasses import replace
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.asgi.active_plans import ActivePlans
from meterkit.asgi.buffered_body import BufferedBody
from meterkit.asgi.context import EXEMPT, MCP_REQUEST, exchange
from meterkit.asgi.exchange import Exchange
from meterkit.asgi.fallback_requests import decide_in_process
from meterkit.asgi.identify import Caller, find_id_fault, split_caller
from meterkit.asgi.job_settlement import is_poll_of_known_job
from meterkit.asgi.lifespan import StartedKit, run_lifespan
from meterkit.asgi.limit_fields import FixedFields
from meterkit.asgi.logs import RefusalLog, TroubleLog
from meterkit.asgi.mcp_exchange import McpExchange
from meterkit.asgi.middleware_arguments import check_arguments
from meterkit.asgi.plain_exchange import PlainExchange
from meterkit.asgi.preflights import Preflights
from meterkit.asgi.refuser import Refuser
from meterkit.asgi.request_reservation import (
    UnservedError,
    prepare_reservation,
    refuse_problem,
    socket_problem,
)
from meterkit.asgi.route_matching import AMBIGUOUS, is_same_request, root_path_of_app
from meterkit.asgi.upload import Upload
from meterkit.asgi.websocket import WebSocketExchange
from meterkit.decisions.decision import Decision, RequestProblem
from meterkit.errors import StoreError
from meterkit.redis.connection import ReplyError, abandon_call
from meterkit.redis.event_loops import running_loop
from meterkit.store.input_checks import is_customer
from meterkit.store.prepared_decisions import read_decision
from meterkit.store.replies import ALLOWED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from llm_usage.estimate import InputEstimator
    from meterkit.asgi.identify import Identify
    from meterkit.asgi.refuser import OnDenied
    from meterkit.catalog import Catalog, Outcome, Route
    from meterkit.redis.lane import Lane
    from meterkit.store.store import Prepare, Store
    from meterkit.store.views import CustomerCache, CustomerView, PreparedDecision

_DECIDED: Final = frozenset({"http", "websocket"})
_MARK: Final = "meterkit."
_UNIDENTIFIED: Final = Decision(allowed=False, reason="identify")
_ANONYMOUS: Final = Decision(allowed=False, reason="anonymous")
_INVALID: Final = Decision(allowed=False, reason="invalid_customer")
_TWO_READINGS: Final = Decision(
    allowed=False,
    problem=RequestProblem(
        code="path-ambiguous",
        detail="The path of this request can be read in several ways, which have different limits. Send it"
        " without dot segments, empty segments, backslashes, `;` and encoded slashes or percent signs.",
        members={},
    ),
)
_NEVER: Final = frozenset["Outcome"]()


class Kit(StartedKit, Protocol):
    """Parts of the kit that the middleware uses."""

    @property
    def store(self) -> Store:
        """Facade over Redis that decides and counts requests."""
        ...

    @property
    def estimate_input(self) -> InputEstimator | None:
        """Estimator of a request's input, until its usage is known."""
        ...

    async def begin(self) -> None:
        """Start for the running event loop, unless that was done: until it ends."""


class MeterMiddleware:
    """Decides and counts the requests of an ASGI app.

    Holds configuration only; what belongs to one request lives in its ``Exchange``.

    Args:
        app: the app that is wrapped.
        kit: the plans and the store. Started and stopped with the app's lifespan; if the server runs
            none, started by the first request.
        identify: from an ASGI scope to the customer's id, a `Caller`, or None; sync or async.
        on_denied: from a scope and a refusal to a response in place of meterkit's own, or None to keep that;
            sync or async. The response gets the fields of meterkit's own that it lacks.
        cors: the origins whose scripts may read a refusal, cookies sent or not; ``*`` for all that send none.
            Leave it empty where a CORS middleware stands outside of this one.

    Raises:
        MeterkitError: an argument is not allowed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        kit: Kit,
        identify: Identify,
        on_denied: OnDenied | None = None,
        cors: Collection[str] = (),
    ) -> None:
        check_arguments(kit, identify, on_denied, cors)
        self.app = app
        self._kit = kit
        self._identify = identify
        self._log = RefusalLog()
        self._refuser = Refuser(on_denied, cors, kit.store, self._log)
        self._troubles = TroubleLog()
        self._preflights = Preflights(app, cors, self._troubles)
        self._mark = f"{_MARK}{id(kit):x}"
        self._has_warned_unmatched = False
        self._plans: ActivePlans | None = None

    @property
    def catalog(self) -> Catalog:
        """Catalog that decides requests."""
        return self._kit.store.catalog

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope: a request, a websocket or the lifespan; anything else passes as it is."""
        mark, kind = self._mark, scope["type"]
        if mark in scope or kind not in _DECIDED:
            await self._serve_undecided(scope, receive, send)
            return
        plans = self._plans
        if plans is None or plans.cache is not self._kit.store.cache:
            plans = self._plans = self._compile_plans(self._kit.store.cache, scope)
        key = (
            kind,
            scope.get("method"),
            scope["path"],
            scope.get("raw_path"),
            scope.get("root_path"),
            scope.get("app_root_path"),
        )
        route = plans.router[key]
        if route is None or not route.is_plain or kind != "http" or scope["method"] == "OPTIONS":
            passed = await self._admit_special(plans, route, scope, receive, send)
        else:
            lane = self._kit.store.lanes.get(running_loop())
            try:
                found = self._identify(scope)
            except Exception as error:  # noqa: BLE001 - logged there
                passed = await self._answer_unidentified(
                    error, plans, route, scope, receive, send, self._refuser
                )
            else:
                passed = None
                if plans.cache.allots:
                    passed = self._use_unit(plans, lane, route, found, scope, send)
                if passed is None:
                    passed = await self._admit_request(
                        plans, lane, route, found, scope, receive, send, None, self._refuser
                    )
            if passed is not None:
                passed.server_receive, passed.refuser = receive, self._refuser
        if passed is None:
            return
        passed.decided = key
        token = exchange.set(passed)
        # In the scope, which mounts hand on: the context also is that of requests the app makes of its own.
        scope[mark] = passed
        try:
            await self.app(scope, passed.receive, passed.send)
        except BaseException as error:
            passed.settle(error)
            if not passed.is_expected_error(error):
                raise
        finally:
            try:
                exchange.reset(token)
                del scope[mark]
            except (KeyError, ValueError):
                pass  # The collector closes a request in whatever context it runs, and apps may empty scopes.
        passed.settle(None)

    async def _admit_special(
        self, plans: ActivePlans, route: Route | None, scope: Scope, receive: Receive, send: Send
    ) -> Exchange | None:
        """Admit a request that needs more than a decision; None: it was answered."""
        refuser, is_http = self._refuser, scope["type"] == "http"
        if route is not None and route.mcp is not None:
            read = await plans.mcp.read(route, scope, receive, send, self._kit.store)
            if read is None:
                return None
            route, receive = read.route, read.receive
            refuser = refuser if read.message is None else refuser.for_mcp_message(read.message)
        if route is None or route.exempt:
            await self._serve_unmetered(plans, route, scope, receive, send, refuser)
            return None
        if scope.get("method") == "OPTIONS" and await self._preflights.serve(route, scope, receive, send):
            return None
        may_be_poll = is_http and plans.may_be_poll(route, scope)
        body = BufferedBody(scope, receive) if may_be_poll or (is_http and route.is_buffered) else None
        if body is not None and may_be_poll:
            await body.read()  # HTTP/2 and API gateways of clouds need not announce one.
            route = route if body.received else plans.poll_route(route)
        asked = body if route.is_buffered else None
        passed = await (
            self._serve_uncounted(plans, route, scope, send)
            if route.enforcement == "off"
            else self._identify_and_admit(plans, route, scope, receive, send, asked, refuser)
        )
        if passed is None:
            return None
        if body is not None and body.untouched:
            body = None
        passed.server_receive, passed.refuser = receive, refuser
        if route.mcp is not None:
            scope[MCP_REQUEST] = passed
        if isinstance(passed, WebSocketExchange):
            passed.begin(self._log, self._troubles)
        elif body is not None or route.usage != "none" or route.keeps_request:
            passed.read_usage(body, self._kit.estimate_input)
        if isinstance(passed, Upload):
            passed.begin()
        return passed

    async def _serve_unmetered(
        self,
        plans: ActivePlans,
        route: Route | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        refuser: Refuser,
    ) -> None:
        """Serve a request that no line decides, unless it is ambiguous which one does."""
        if route is not None and route is AMBIGUOUS:
            self._troubles.log_ambiguous(scope, plans.router)
            await refuser.refuse(_TWO_READINGS, route, None, None, scope, receive, send)
            return
        if route is not None:
            scope[EXEMPT] = True
        elif not self._has_warned_unmatched:
            self._has_warned_unmatched = True
            self._troubles.log_unmatched(plans.cache.catalog.source, scope)
        await self.app(scope, receive, send)

    async def _serve_undecided(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a scope that is not decided here."""
        decided = scope.get(self._mark)
        if isinstance(decided, Exchange) and not is_same_request(
            scope, decided.decided, is_within=decided.refuser is not self._refuser
        ):
            # An endpoint dispatches a copy of its scope, or itself changes the path.
            await self({name: scope[name] for name in scope if name != self._mark}, receive, send)
            return
        if decided is not None:
            self._troubles.log_inner()
        elif scope["type"] == "lifespan":
            self._warn_of_second_kit(scope)
            await run_lifespan(self.app, self._kit, self._mark, scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _identify_and_admit(
        self,
        plans: ActivePlans,
        route: Route,
        scope: Scope,
        receive: Receive,
        send: Send,
        body: BufferedBody | None,
        refuser: Refuser,
    ) -> Exchange | None:
        """Identify the customer of a request, then decide it; None: it was refused and answered."""
        try:
            found = self._identify(scope)
        except Exception as error:  # noqa: BLE001 - logged there
            return await self._answer_unidentified(error, plans, route, scope, receive, send, refuser)
        lane = self._kit.store.lanes.get(running_loop())
        return await self._admit_request(plans, lane, route, found, scope, receive, send, body, refuser)

    async def _answer_unidentified(
        self,
        error: Exception,
        plans: ActivePlans,
        route: Route,
        scope: Scope,
        receive: Receive,
        send: Send,
        refuser: Refuser,
    ) -> Exchange | None:
        """Log that `identify` has failed, and answer; in shadow mode serve the request."""
        self._troubles.log_unidentified(error, route, scope)
        return await self._answer_refusal(
            _UNIDENTIFIED, plans, route, None, None, scope, receive, send, refuser
        )

    def _use_unit(
        self, plans: ActivePlans, lane: Lane | None, route: Route, found: object, scope: Scope, send: Send
    ) -> Exchange | None:
        """Admit a plain request by a unit of an allotment; None: the store has to decide it."""
        view = plans.cache.named.get(found) if type(found) is str else None
        if view is None or lane is None or lane.allotments is None:
            return None
        try:
            used = lane.allotments.use_unit(view.decisions.get(id(route)))
        except Exception as error:  # noqa: BLE001 - the store decides it as it does any other
            self._troubles.log_undecided(error, route, lane)
            used = None
        if used is None:
            return None
        # As _pass_request has it, without a call.
        unit, reply = used
        passed = PlainExchange(self._kit.store, lane, route, unit, reply, scope, send)
        if route.headers != "none":
            passed.limit_fields = plans.limit_fields.get(unit.program) or plans.fields_of(unit.program, route)
        return passed

    def _pass_request(
        self,
        plans: ActivePlans,
        lane: Lane,
        route: Route,
        decided: PreparedDecision,
        reply: Sequence[int],
        scope: Scope,
        send: Send,
    ) -> Exchange:
        """Pass on a request that the store allows."""
        view, program = decided.view, decided.program
        if route.is_plain and scope["type"] == "http":
            passed: Exchange = PlainExchange(self._kit.store, lane, route, decided, reply, scope, send)
        else:
            passed = exchange_class(scope, route)(
                self._kit.store, lane, view, route, decided, reply, scope, send
            )
        if route.headers != "none":
            passed.limit_fields = plans.limit_fields.get(program) or plans.fields_of(program, route)
        return passed

    async def _admit_request(
        self,
        plans: ActivePlans,
        lane: Lane | None,
        route: Route,
        found: object,
        scope: Scope,
        receive: Receive,
        send: Send,
        body: BufferedBody | None,
        refuser: Refuser,
    ) -> Exchange | None:
        """Decide a request; None: it was refused and answered."""
        store = self._kit.store
        view: CustomerView | None = None
        decided: PreparedDecision | None = None
        prepare: Prepare | None = None
        try:
            known = plans.cache.named.get(found) if type(found) is str else None
            view = known or await self._find_view(plans, found, scope)
            if lane is None or not lane.is_served:
                await self._kit.begin()
                lane = store.lanes[running_loop()]
            if body is not None or route.refuses_unpriced:
                prepare = await self._read_reservation(lane, view, route, body, scope)
            prepared = None if prepare else view.decisions.get(id(route))
            asked = prepared or (prepare or _preparer(route))(view, "d")
            admitted: tuple[PreparedDecision, list[int] | None] = (
                lane.allotments.admit(asked, route)
                if plans.cache.allots and scope["type"] == "http" and lane.allotments is not None
                else (asked, None)
            )
            decided, reply = admitted
            if reply is None and not lane.is_open:
                pending = lane.call(decided)
                try:
                    reply = await pending
                except CancelledError:
                    abandon_call(decided, pending)
                    raise
                if isinstance(reply, ReplyError) or reply[0] > REFUSED:
                    decided, reply = await store.conclude(lane, decided, prepare or _preparer(route), reply)
                    view = decided.view
                    if decided.is_repeat:
                        route = replace(route, charge_on=_NEVER)
        except UnservedError as error:
            passed: Exchange | Decision = error.decision
            decided = error.decided
        except Exception as error:  # noqa: BLE001 - the app is served in any case; the error is logged below
            passed, decided = self._use_fallback(error, plans, lane, view, route, prepare, scope, send)
        else:
            if reply is None:
                passed, decided = self._use_fallback(None, plans, lane, view, route, prepare, scope, send)
            elif reply[0] == ALLOWED and decided.waived is None:
                return self._pass_request(plans, lane, route, decided, reply, scope, send)
            else:
                passed = self._handle_refusal(decided, reply, lane, route, scope, send)
        if isinstance(passed, Exchange):
            return passed
        return await self._answer_refusal(passed, plans, route, decided, view, scope, receive, send, refuser)

    async def _serve_uncounted(self, plans: ActivePlans, route: Route, scope: Scope, send: Send) -> Exchange:
        """Serve a request while enforcement is off; its customer is identified for the app only."""
        await self._kit.begin()  # Usage counted before is delivered.
        try:
            view = await self._find_view(plans, self._identify(scope), scope)
        except UnservedError:
            view = plans.unknown_customer()
        except Exception as error:  # noqa: BLE001 - it is logged, and the app is served
            self._troubles.log_unidentified(error, route, scope)
            view = plans.unknown_customer()
        passed = exchange_class(scope, route)(self._kit.store, None, view, route, None, [], scope, send)
        passed.note_decision(view.undecided())
        return passed

    async def _read_reservation(
        self, lane: Lane, view: CustomerView, route: Route, body: BufferedBody | None, scope: Scope
    ) -> Prepare:
        """Prepare the decision of a route that reads the request's body, length or idempotency key."""
        if body is None:
            return refuse_problem(view, route, _preparer(route), socket_problem(view, route, scope))
        return await prepare_reservation(
            self._kit.store, lane, view, route, body, estimate=self._kit.estimate_input
        )

    async def _answer_refusal(
        self,
        decision: Decision,
        plans: ActivePlans,
        route: Route,
        decided: PreparedDecision | None,
        view: CustomerView | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        refuser: Refuser,
    ) -> Exchange | None:
        """Answer a refused request; in shadow mode serve it."""
        if route.enforcement == "shadow":
            # Its usage is discarded where the customer is not known.
            view = view or plans.unknown_customer()
            self._log.log_shadowed(decision, route, view)
            passed = exchange_class(scope, route)(self._kit.store, None, view, route, None, [], scope, send)
            passed.note_decision(replace(decision, allowed=True, shadow=True))
            return passed
        if view is not None and await is_poll_of_known_job(self._kit.store, view, route, decision, scope):
            return await self._identify_and_admit(
                plans, plans.job_poll_route(route), scope, receive, send, None, refuser
            )
        await refuser.refuse(decision, route, decided, view, scope, receive, send)
        return None

    async def _find_view(self, plans: ActivePlans, found: object, scope: Scope) -> CustomerView:
        """Find the view of a new customer, or of a request without one."""
        if not isinstance(found, Caller) and isawaitable(found):
            found = await found
        if isinstance(found, Caller):
            view = plans.cache.find_with_subjects(found.customer, tuple(found.subjects.items()))
            if view is not None:
                return view
        customer, subjects = split_caller(found)
        if is_customer(customer) and subjects is not None:
            return plans.cache.get(customer, subjects=subjects)
        if isinstance(customer, str):
            raise UnservedError(replace(_INVALID, fault=find_id_fault(found)))
        # False is no customer, as None: `user.is_authenticated and user.id` gives it.
        if customer is not None and customer is not False:
            self._troubles.log_wrong_type(customer)
            raise UnservedError(_UNIDENTIFIED)
        anonymous = None if plans.by_ip is None else plans.by_ip(scope)
        if anonymous is None:
            raise UnservedError(_ANONYMOUS)
        return plans.cache.get(anonymous, anonymous=True)

    def _handle_refusal(
        self,
        decided: PreparedDecision,
        reply: Sequence[int],
        lane: Lane,
        route: Route,
        scope: Scope,
        send: Send,
    ) -> Exchange | Decision:
        """Return the refusal; in shadow mode the admitted request, which is counted and held."""
        store = self._kit.store
        decision = read_decision(decided, reply)
        if not decision.shadow:
            return decision
        self._log.log_shadowed(decision, route, decided.view)
        passed = exchange_class(scope, route)(store, lane, decided.view, route, decided, reply, scope, send)
        passed.note_decision(decision)
        passed.limit_fields = FixedFields.of_shadow(decision, decided, route.headers, reply[1])
        return passed

    def _use_fallback(
        self,
        error: Exception | None,
        plans: ActivePlans,
        lane: Lane | None,
        view: CustomerView | None,
        route: Route,
        prepare: Prepare | None,
        scope: Scope,
        send: Send,
    ) -> tuple[Exchange | Decision, PreparedDecision | None]:
        """Log a request that the store could not decide, and serve or refuse it by its route and plan.

        Without an error the store was not asked, as the breaker is open. A refusal comes with its prepared
        decision.
        """
        if view is None:  # So far only `identify` can have failed.
            self._troubles.log_unidentified(error, route, scope)
            return _UNIDENTIFIED, None
        self._troubles.log_undecided(error, route, lane)
        store = self._kit.store
        decision, fallback = decide_in_process(store, view, route, prepare)
        if decision is not None:
            if not decision.allowed:
                return decision, None if fallback is None else fallback.decided
            if decision.cause is not None:
                self._log.log_shadowed(decision, route, view)
        passed = exchange_class(scope, route)(store, lane, view, route, None, [], scope, send)
        passed.use_fallback_decision(decision, fallback)
        passed.is_counted = isinstance(error, StoreError) and error.executed is None
        if fallback is not None:
            passed.settle_attempt(fallback.decided)
            if route.headers != "none":
                program = fallback.decided.program
                passed.limit_fields = plans.policy_fields.get(program) or plans.policies_of(program, route)
        return passed, None

    def _compile_plans(self, cache: CustomerCache, scope: Scope) -> ActivePlans:
        self._warn_of_second_kit(scope)
        self._has_warned_unmatched = not cache.catalog.routes  # The kit has warned of a file without routes.
        without_mount = partial(self._troubles.log_without_mount, cache.catalog.source)
        return ActivePlans(cache, root_path_of_app(self.app), without_mount)

    def _warn_of_second_kit(self, scope: Scope) -> None:
        """Warn if a scope carries the mark of another kit, whose middleware is outside of this one."""
        if any(key.startswith(_MARK) and key not in {self._mark, EXEMPT, MCP_REQUEST} for key in scope):
            self._troubles.log_second_kit()


def _preparer(route: Route) -> Prepare:
    return lambda view, mode: view.prepare(route, mode)


def exchange_class(scope: Scope, route: Route) -> type[Exchange]:
    """Choose the class of an admitted request by its scope and line."""
    if scope["type"] != "http":
        return WebSocketExchange
    if route.mcp is not None:
        return McpExchange
    return Upload if route.storage_meter else Exchange
