"""Base class of admitted requests: the customer, the client's departure, the usage of language models."""

from __future__ import annotations

from abc import abstractmethod
from asyncio import CancelledError
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from llm_usage.call_location import locate_calls
from llm_usage.event_marks import is_counting
from meterkit.asgi.buffered_body import KeptRequest, has_body
from meterkit.asgi.llm_calls import LlmCalls, called_models, name_calls
from meterkit.asgi.logs import warn, warn_of_fetched, warn_of_lost, warn_of_unread
from meterkit.asgi.refusal_responses import problem_type_of
from meterkit.asgi.refuser import LateRefusal
from meterkit.asgi.response_usage import ResponseUsage
from meterkit.catalog.meters import check_feature, check_quantities
from meterkit.catalog.routes import is_fetched
from meterkit.catalog.usage_meters import USAGE_METERS
from meterkit.decisions.customer_state import refusal_for_feature
from meterkit.decisions.decision import Decision
from meterkit.safe_text import plain_text
from meterkit.store.prepared_decisions import read_decision, read_limits
from meterkit.store.reservations import HoldOwner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from starlette.types import Message, Receive, Scope, Send

    from llm_usage import CallUsage
    from llm_usage.estimate import InputEstimator
    from meterkit.asgi.buffered_body import BufferedBody
    from meterkit.asgi.limit_fields import FixedFields, LimitFields
    from meterkit.asgi.refuser import Refuser
    from meterkit.asgi.route_matching import RequestKey
    from meterkit.catalog import Outcome, Route
    from meterkit.metric_tallies import Tallies
    from meterkit.store.fallback_decider import FallbackDecision
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_NEVER: Final = frozenset["Outcome"]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """Customer, plan and decision of the request that is being served.

    Attributes:
        customer: the customer's id.
        plan: the key of the active plan.
        decision: what was decided about this request.
        subjects: kind to id of the customer's user, team or the like, as `Caller` named them.
        reserved: meter to the quantity that `reserve` of the route has set aside, all answers together. Empty
            where nothing is held: no `reserve`, enforcement `off`, or no store.
        anonymous: whether the request has no customer: `customer` is an address, which others share.
    """

    customer: str
    plan: str
    decision: Decision
    subjects: Mapping[str, str] = field(default_factory=dict[str, str])
    reserved: Mapping[str, int] = field(default_factory=dict[str, int])
    anonymous: bool = False


class AdmittedRequest(HoldOwner):
    """Base of admitted requests: answers what the app asks, watches the client, reads the usage.

    Servers report in three ways that the client has left: ``http.disconnect``, an OSError of ``send``, and
    cancellation of the app.

    Attributes:
        decision: the decision; None until its details are read.
        limit_fields: writes the limit fields of the response, or None.
        decided: method and path, as the router's key has them; to be set before the app is called. Routers of
            the app may change the path in the scope.
        server_receive: the server's receive, to be set likewise.
        refuser: answers what the app itself refuses; to be set likewise.

    Slots:
        _view: the customer, as of the state that decided.
        _route: the line of the plans file.
        _charge_on: the outcomes that are billed.
        _reply: the store's, where it has decided.
        _scope, _send: the server's.
        _fallback_decision: how this process has decided in place of the store, or None.
        _begun: whether the app sent a byte of the body.
        _complete: whether the app sent its response to the end.
        _failed: whether the app ended by an error of its own.
        _gone: whether the client left before the end.
        _has_request: whether the app has read the request to its end; unset until it reads.
        _early: whether the client left before the first byte; unset until it leaves.
        _within: whether the app heard that it left before its own request had ended; likewise.
        _llm: the calls of language models; None: none are known.
        _reading: reads the response; None: the route has no usage.
        _request: keeps the request's body; unset where neither its body nor its response is read.
    """

    __slots__ = (
        "_begun",
        "_charge_on",
        "_complete",
        "_early",
        "_failed",
        "_fallback_decision",
        "_gone",
        "_has_request",
        "_llm",
        "_nothing_to_settle",
        "_reading",
        "_reply",
        "_request",
        "_route",
        "_scope",
        "_send",
        "_view",
        "_within",
        "decided",
        "decision",
        "limit_fields",
        "refuser",
        "server_receive",
    )

    decided: RequestKey
    _view: CustomerView
    _route: Route
    _charge_on: frozenset[Outcome]
    _reply: Sequence[int]
    _scope: Scope
    _send: Send
    _fallback_decision: FallbackDecision | None
    _begun: bool
    _complete: bool
    _failed: bool
    _gone: bool
    _nothing_to_settle: bool
    # Unset where nothing needs them: a request pays for each field that it sets.
    _has_request: bool
    _early: bool
    _within: bool
    _llm: LlmCalls | None
    _reading: ResponseUsage | None
    _request: KeptRequest
    decision: Decision | None
    limit_fields: LimitFields | FixedFields | None
    server_receive: Receive
    refuser: Refuser

    @property
    def is_anonymous(self) -> bool:
        """Whether the request has no customer and is limited by its client address."""
        return self._view.anonymous

    @property
    def is_of_parent(self) -> bool:
        """Whether this is a copy, in a child process: what it records would reach no store."""
        return self._lane is not None and self._lane.is_of_parent

    def is_request_of(self, customer: str, store: Store) -> bool:
        """Whether this is a request of that customer, decided by that store."""
        return self._view.customer == customer and self._store is store

    def is_expected_error(self, error: BaseException) -> bool:
        """Whether an error of the app only reports that meterkit has ended the request; False here."""
        del error
        return False

    def note_decision(self, decision: Decision) -> None:
        """Store a decision that says more than that the plan allows the request."""
        self.decision = decision
        if self._store.mark_span is not None:
            self._store.mark_span(decision.plan, decision.cause, decision.degraded)

    def use_fallback_decision(self, decision: Decision | None, fallback: FallbackDecision | None) -> None:
        """Store a decision made without the store; None: the plan just allows the request."""
        self._fallback_decision = fallback
        if decision is not None:
            self.note_decision(decision)
        elif fallback is not None and self._store.mark_span is not None:
            self._store.mark_span(fallback.plan, None, True)

    def unfold(self) -> None:
        """Set the slots that a plain request leaves unset; others have set them."""

    @abstractmethod
    def _outcome(self) -> Outcome:
        """Outcome of the request, by which it is billed."""

    def _tally(self, tallies: Tallies) -> None:
        outcome = self._outcome()
        decision, fallback = self.decision, self._fallback_decision
        if decision is not None:
            tallies.count_request(decision.plan, outcome, decision.cause, degraded=decision.degraded)
        else:  # Allowed, and no code has asked for more.
            plan = self._view.effective.plan.key if fallback is None else fallback.plan
            tallies.count_request(plan, outcome, None, degraded=fallback is not None)

    def warn(self, message: str) -> None:
        """Log a warning about the request's route, throttled."""
        warn(self._store, self._route.match, message)

    def warn_of_lost(self, calls: Iterable[CallUsage]) -> None:
        """Log calls whose figures are missing, throttled."""
        warn_of_lost(self._store, self._route.match, calls)

    def warn_of_uncounted(
        self, calls: Iterable[CallUsage], llm: LlmCalls, recorded: Mapping[str, int] | None
    ) -> None:
        """Log calls whose figures are missing, and token figures of the response that are not read.

        Args:
            calls: those read off the response.
            llm: knows which figures are not read.
            recorded: what the app has recorded itself.
        """
        route = self._route
        if llm.reports.overflowed:
            self.warn("a request reports more model calls than meterkit distinguishes; the first count")
        if is_counting(self.decided[2]):
            return
        self.warn_of_lost(calls)
        path = llm.unread_figure
        is_known = route.usage_fields or not USAGE_METERS.isdisjoint(recorded or ())
        if llm.fetched is not None and not is_known:
            warn_of_fetched(self._store, route, self._scope, llm.fetched)
        if path is not None and self._scope["method"].upper() == "POST" and not is_known:
            warn_of_unread(self._store, route, path)

    def check_meters(self, quantities: dict[str, int]) -> dict[str, int]:
        """Return the quantities by the plain names of their meters.

        Raises:
            UnknownMeterError: a meter is not in the plans file, or is a gauge or derived.
            QuantityError: a quantity is not an integer from 0 to 10^15 - 1.
        """
        return check_quantities(quantities, self._view.cache.catalog.meters)

    def _with_fields(self, message: Message) -> Message:
        """Add the limit fields of the decision to the message that begins a response."""
        fields = self.limit_fields
        if fields is None:
            return message
        headers = fields.add(message.get("headers", ()), self._decided, self._reply, self._scope["headers"])
        return {**message, "headers": headers}

    def current(self) -> Current:
        """Customer, plan and decision of this request."""
        if self.decision is None and self._decided is not None:
            self.decision = read_decision(self._decided, self._reply)
        elif self.decision is None and self._fallback_decision is not None:
            self.decision = read_limits(*self._fallback_decision, degraded=True)
        return Current(
            customer=self._view.customer,
            plan=self._view.effective.plan.key,
            decision=self.decision or Decision(allowed=True),
            subjects={} if self._view.subjects is None else dict(self._view.subjects.given),
            reserved={} if self._decided is None else self._reserved(self._decided.reserved),
            anonymous=self.is_anonymous,
        )

    def _reserved(self, held: Mapping[str, int]) -> dict[str, int]:
        """Select the meters that the route reserves: not those derived from them, nor estimated input."""
        return {one.meter: held[one.meter] for one in self._route.reserve if one.meter in held}

    def refusal_without(self, feature: str) -> Decision | None:
        """Refusal of a customer who lacks a feature, by the state that decided the request; None: it has it.

        In shadow mode the refusal allows. A request that was not decided is not refused.

        Raises:
            UnknownFeatureError: the feature is not in the plans file.
        """
        decided = self._decided
        view = self._view if decided is None else decided.view
        feature = check_feature(feature, view.cache.catalog.features)
        if decided is None:
            return None
        refusal = refusal_for_feature(view.customer, view.effective, feature)
        return replace(refusal, allowed=True, shadow=True) if refusal and decided.shadow else refusal

    def require(self, feature: str) -> Decision | None:
        """Refuse a customer who lacks a feature, in place of the error response of the app.

        The app raises an error; its response gives way to the refusal, see
        :class:`~meterkit.asgi.refuser.LateRefusal`. The request stays counted in its rates and is not billed.

        Raises:
            UnknownFeatureError: the feature is not in the plans file.
        """
        refusal = self.refusal_without(feature)
        if refusal is None:
            return None
        if refusal.shadow:
            self.refuser.log.log_shadowed(refusal, self._route, self._view)
            return None
        if not isinstance(self._send, LateRefusal):  # The first one stands.
            route = replace(self._route, feature=plain_text(feature))
            decided, view, scope, receive = self._decided, self._view, self._scope, self.server_receive

            async def refuse(send: Send) -> None:
                self._charge_on = _NEVER
                await self.refuser.refuse(
                    refusal, route, decided, view, scope, receive, send, is_admitted=True
                )

            self._send = LateRefusal(self._send, problem_type_of(refusal).status, refuse)
        return refusal

    @property
    def _left_early(self) -> bool:
        return self._gone and getattr(self, "_early", False)

    @property
    def _left_within(self) -> bool:
        return self._gone and getattr(self, "_within", False)

    def _note_disconnect(self) -> None:
        self._note_left()
        is_whole: bool | None = getattr(self, "_has_request", None)  # None: the app has read nothing.
        self._within = has_body(self._scope) if is_whole is None else not is_whole

    def _note_left(self) -> None:
        if not self._gone:
            self._gone, self._early = True, not self._begun
            self._nothing_to_settle = False  # Later messages tell whether the app finished.

    def _note_error(self, error: BaseException) -> None:
        if isinstance(error, CancelledError):
            self._note_left()
        is_disconnect = self._gone or isinstance(error, ClientDisconnect)
        self._failed = isinstance(error, Exception) and not is_disconnect

    def read_usage(self, body: BufferedBody | None, estimate: InputEstimator | None) -> None:
        """Read the response's token usage as it is sent, where the route says so.

        Args:
            body: the request's, where it was read before.
            estimate: the app's own estimator of the input, for a client that does not wait for the usage.
        """
        self.unfold()
        if body is not None:
            self.server_receive = body.receive
            # An app that does not read further has not answered to a part of the request.
            self._gone = self._early = body.gone
        usage = self._route.usage
        if usage == "none" and not self._route.keeps_request:
            return
        self._request = request = KeptRequest(self._scope, self.server_receive, body)
        self.server_receive = request.receive
        if usage != "none":
            fetched = is_fetched(usage, self._scope["method"].upper())  # h11 hands on "post".
            self._reading = ResponseUsage(
                self._route, request, complain=self.warn, estimate=estimate, is_fetched=fetched
            )
            self._llm = LlmCalls(self._reading, self._scope["path"])
            self._nothing_to_settle = False

    def _requested_models(self) -> Sequence[str]:
        """Models that a call of the request may be of; empty: not known."""
        request: KeptRequest | None = getattr(self, "_request", None)
        if request is None:
            request = KeptRequest({**self._scope, "path": self.decided[2]}, self.server_receive)
        return called_models(self._route, request.models())

    def _requested_location(self) -> str | None:
        request: KeptRequest | None = getattr(self, "_request", None)
        return None if request is None else request.location()

    def _name_calls(self, calls: Sequence[CallUsage]) -> Sequence[CallUsage]:
        named = name_calls(calls, self._requested_models, self._route.provider, self._view.cache)
        return locate_calls(named, self.decided[2], self._requested_location)
