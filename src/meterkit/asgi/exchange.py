"""Admitted request between app and server: passes messages on, notes how it ends, settles the usage."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import CancelledError
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from meterkit.asgi.admitted_request import AdmittedRequest
from meterkit.asgi.fallback_requests import count_in_process, record_in_process, undecided_usage
from meterkit.asgi.job_settlement import call_on_loop, settle_jobs
from meterkit.asgi.llm_calls import LlmCalls
from meterkit.asgi.logs import ErrorGuard, warn_of_unfed
from meterkit.asgi.request_outcome import is_stopped, is_usage_due, outcome_of
from meterkit.catalog.meters import check_quantity
from meterkit.catalog.usage_meters import USAGE_METERS
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.store.call_amounts import join_used, price_tokens
from meterkit.store.request_idempotency import repeat_digest
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.settlement_parts import (
    NOTHING_USED,
    HeldQuantities,
    RepeatMark,
    UsedQuantities,
    add_quantities,
    find_used_meters,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from fractions import Fraction

    from starlette.types import Message, Scope, Send

    from llm_usage import StreamTap
    from meterkit.catalog import Outcome, Route
    from meterkit.decisions.decision import Decision
    from meterkit.redis.lane import Lane
    from meterkit.store.fallback_decider import FallbackDecision
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision

T = TypeVar("T")
Function = TypeVar("Function", bound="Callable[..., Awaitable[Any]]")

_NOTHING: Final[dict[str, int]] = {}
_NOTHING_CHARGED: Final[dict[str, Fraction]] = {}
recording: Final = RLock()
"""Guards the recorded usage of requests: endpoints may record from several threads at once, and a stream
that is collected reports wherever the garbage collector runs, even within another report."""


def mark_coroutine_function(function: Function) -> Function:
    """Mark a plain function as a coroutine function, as ``inspect`` does from Python 3.12 on.

    ``WsgiToAsgi`` of asgiref warns of a ``send`` without the mark.
    """
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        mark(function)
    else:
        vars(function)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
    return function


class Exchange(AdmittedRequest):
    """Admitted request: :meth:`receive` and :meth:`send` stand between the app and the server.

    It is settled right after the last byte of its response, or when the app ends without one.

    Attributes:
        is_counted: whether the store may have counted what the decision counts, though it did not reply.
    """

    __slots__ = ("_ending", "_recorded", "_status", "_trailers", "is_counted")

    counts_later: ClassVar[bool] = False

    def __init__(
        self,
        store: Store,
        lane: Lane | None,
        view: CustomerView,
        route: Route,
        decided: PreparedDecision | None,
        reply: Sequence[int],
        scope: Scope,
        send: Send,
    ) -> None:
        self._store = store
        self._lane = lane
        self._route = route
        self._decided = decided
        self._reply = reply
        self._scope = scope
        self._send = send
        self.limit_fields = None
        self._status = 0
        self._ending = self._complete = self._settled = False
        self._recorded: dict[str, int] | None = None
        self._llm = None
        self._nothing_to_settle = not (decided is None or decided.settles)
        self._begin(view)
        if decided is not None and lane is not None and (decided.program.holds or decided.digest):
            lane.live.add(self)
        if store.mark_span is not None:
            store.mark_span(view.effective.plan.key, None, False)

    def _begin(self, view: CustomerView) -> None:
        """Set what a plain request leaves unset; see :class:`~meterkit.asgi.plain_exchange.PlainExchange`."""
        decided = self._decided
        self._view = view
        self._charge_on = self._route.charge_on
        self.decision: Decision | None = None
        self._fallback_decision: FallbackDecision | None = None
        self.is_counted = False
        self._reading = None
        self._renewed: PreparedDecision | None = None
        self._trailers = self._begun = self._failed = self._gone = False
        self._decided_ms = self._store.now_ms() if decided is None else self._reply[1]
        self._slot = self._decided_ms // HOLD_SLOT_MS

    async def receive(self) -> Message:
        """Receive the next message, and note when the client leaves."""
        message = await self.server_receive()
        if message["type"] == "http.disconnect":
            # Servers say so too once the response is over, while its last message is on its way even.
            if not (self._ending or self._complete):
                self._note_disconnect()
        else:
            self._has_request = not message.get("more_body", False)
        return message

    @mark_coroutine_function
    def send(self, message: Message) -> Awaitable[None]:
        """Send a message. A plain function, so that most messages cost no coroutine."""
        kind = message["type"]
        if kind == "http.response.body":
            if not message.get("more_body", False) and not self._trailers:
                if not self._nothing_to_settle:
                    return self._send_last(message)
                self._complete = True
            elif message.get("body"):
                return self._send_piece(message)
        elif kind == "http.response.start":
            self._status = message["status"]
            if self._reading is not None:
                # Iterable by ASGI's word, so perhaps only once.
                message = {**message, "headers": list(message.get("headers", ()))}
                self._reading.begin(message)
            if "trailers" in message:
                self._trailers = bool(message["trailers"])
            message = self._with_fields(message)
        elif self._is_last_message(kind, message):
            return self._send_last(message)
        return self._send(message)

    def _is_last_message(self, kind: str, message: Message) -> bool:
        """Whether a message of a rare kind is the last of the response."""
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        if kind in {"http.response.pathsend", "http.response.zerocopysend"}:
            self._begun = True
            return not message.get("more_body", False) and not self._trailers
        return False

    async def _send_piece(self, message: Message) -> None:
        """Send a piece of the body that is not the last, then read its usage."""
        # Taken first: a middleware that receives the message may replace its bytes, as compression does.
        reading = self._reading
        body = b"" if reading is None else bytes(message["body"])
        self._ending = False
        try:
            await self._send(message)
        except BaseException as error:
            self._note_unsent(error, message, last=False)
            await self._read_unsent(error, body)
            raise
        if not self._begun:
            self._begun = bool(message.get("body"))
        if reading is not None and not reading.skip_repeats(body) and reading.read(body):
            await reading.catch_up()

    async def _send_last(self, message: Message) -> None:
        """Send the last message of the response, read its usage, and settle the request."""
        reading = self._reading
        body = b"" if reading is None else bytes(message.get("body", b""))
        self._ending = True
        try:
            await self._send(message)
        except BaseException as error:
            self._note_unsent(error, message, last=True)
            await self._read_unsent(error, body)
            raise
        self._complete = True
        self._note_sent_last(message)
        if reading is not None:
            reading.read(body)
            await reading.catch_up(complete=True)
        self.settle(None)

    async def _read_unsent(self, error: BaseException, body: bytes) -> None:
        """Read the usage of a piece that no client took: it was generated, too."""
        reading = self._reading
        # A closed coroutine cannot wait any more.
        if reading is not None and reading.read(body) and not isinstance(error, GeneratorExit):
            await reading.catch_up()

    def _note_sent_last(self, message: Message) -> None:
        """Note that an answer had a body, though its client has left."""
        if self._gone:
            self._begun = self._begun or bool(message.get("body"))

    def _note_unsent(self, error: BaseException, message: Message, *, last: bool) -> None:
        """Note that a piece of the body, or the last message, could not be sent."""
        if isinstance(error, OSError):
            self._note_left()
        if last and isinstance(error, OSError | CancelledError):
            # The app has finished, though no client takes its answer.
            self._complete, self._begun = True, self._begun or bool(message.get("body"))

    def settle(self, error: BaseException | None) -> None:
        """Settle the request with the store. Idempotent."""
        if self._settled:
            return
        if error is not None:
            self._note_error(error)
        # Set before reading: a thread that adds usage meanwhile settles it itself once it sees this.
        self._settled = True
        if self._store.tallies is not None:
            self._tally(self._store.tallies)
        if self._nothing_to_settle:
            return
        recorded, decided, lane = self._recorded, self._decided, self._lane
        if recorded is not None:
            with recording:
                recorded = self._recorded
        if lane is None:
            return
        outcome = self._outcome()
        billed = outcome in self._charge_on
        # Usage recorded in a request with an idempotency key is settled with its mark, or not at all.
        is_whole = decided is None or decided.reserved or (recorded and decided.digest)
        if self._llm is not None or is_whole:
            self._settle_with_usage(lane, decided, recorded or _NOTHING, outcome, billed=billed)
            return
        if decided is not None and decided.settles:
            lane.live.discard(self)
            if self._renewed is None:
                settlement = settle_decision(decided, self._slot, billed=billed)
            else:
                used = UsedQuantities(recorded=decided.recorded if billed else _NOTHING)
                mark = RepeatMark.of(decided, billed=billed)
                settlement = Settlement(decided.view, held=self._current_hold(decided), used=used, mark=mark)
            if decided.is_allotted and lane.allotments is not None:
                lane.allotments.settle(settlement)
            else:
                lane.settle(settlement)
        if recorded:
            used = self._price_tokens(UsedQuantities(recorded, recorded), due=self._is_due(outcome))
            self._view.cache.routes.learn(self._route, find_used_meters((used,)))
            self._store.settle(lane, Settlement(self._view, used=used))

    def _settle_with_usage(
        self,
        lane: Lane,
        decided: PreparedDecision | None,
        recorded: Mapping[str, int],
        outcome: Outcome,
        *,
        billed: bool,
    ) -> None:
        """Settle the hold together with what the app and its models used, or what no decision counts."""
        has_more = recorded or self._llm or self.is_counted or self._route.idempotency_header
        if decided is None and not has_more:
            self._settle_undecided(lane, billed=billed)
            return
        extra = UsedQuantities(recorded, recorded)
        if decided is None:
            extra = undecided_usage(
                self._view,
                self._route,
                self._fallback_decision,
                recorded,
                is_counted=self.is_counted,
                billed=billed,
            )
        extra = self._price_tokens(extra)
        parts = self._usage_of_calls(outcome)
        used = find_used_meters((extra, *parts))
        self._view.cache.routes.learn(self._route, used)
        if decided is not None and not decided.reserved.keys() <= used and outcome == "success":
            self._warn_of_unfed({*used, *recorded})
        late = {} if self._llm is None else self._llm.outliving(self._name_calls, self._requested_models)
        keeps_rates = settle_jobs(
            self._store,
            lane,
            self._view,
            decided,
            late,
            route=self._route,
            billed=billed,
            decided_ms=self._decided_ms,
        )
        due = self._is_due(outcome)
        self._settle_parts(lane, parts, extra, billed=billed, due=due, keeps_rates=keeps_rates)

    def _warn_of_unfed(self, known: Collection[str]) -> None:
        """Log reserved meters that nothing was recorded for; of those that `usage` feeds other lines tell."""
        for reserve in self._route.reserve:
            if reserve.meter not in known and reserve.meter not in USAGE_METERS:
                warn_of_unfed(self._store, self._route, reserve.meter)

    def _usage_of_calls(self, outcome: Outcome) -> Sequence[UsedQuantities]:
        """End the reading of model calls; their usage, one part for each model."""
        if self._llm is None:
            return ()
        is_stopped_early = self._left_early and is_stopped(self._status, outcome)
        is_cut = outcome == "client_gone" or (is_stopped_early and self._llm.has_text)
        if not self._complete:
            with recording, ErrorGuard(self._warn_of_broken_tap):
                self._llm.snapshot_taps()
        calls = self._llm.end(complete=self._complete and not is_cut, gone=is_cut)
        if self._complete:
            self.warn_of_uncounted(calls, self._llm, self._recorded)
        with recording:
            parts = self._llm.uncounted(self._view.cache, self._name_calls, self._requested_models)
        if self._route.reads_model:
            for model in {part.dimensions["model"] for part in parts if "model" in part.dimensions}:
                self._view.cache.routes.learn_alias(self._route, model, self._requested_models)
        if self._reading is not None:
            self._request.release()
        return parts

    def _warn_of_broken_tap(self, error: str) -> None:
        self.warn(f"what a tapped stream used is counted only once the stream ends: {error}")

    def _settle_parts(
        self,
        lane: Lane,
        parts: Sequence[UsedQuantities],
        extra: UsedQuantities,
        *,
        billed: bool,
        due: bool,
        keeps_rates: bool,
    ) -> None:
        """Settle the hold and the usage: in one call, plus one for each further model that meters filter by.

        Args:
            lane: the event loop's.
            parts: usage of model calls, by model where that matters.
            extra: usage that the app has recorded itself, and what was consumed without a decision.
            billed: whether the request's outcome is billed; rates count it in either case.
            due: whether the usage is.
            keeps_rates: whether the customer's rates keep what they counted at the decision.
        """
        held = self._decided
        if held is not None and not held.settles:
            held = None
        if held is not None:
            lane.live.discard(self)
            extra = extra._replace(
                recorded=add_quantities(held.recorded if billed else _NOTHING, extra.recorded)
            )
        if parts and (not parts[0].dimensions or extra.recorded.keys().isdisjoint(parts[0].recorded)):
            first, *parts = parts
            extra = join_used(first, extra)
        parts = [extra, *parts]
        if not due:
            parts = [part._replace(recorded=_NOTHING, charged=_NOTHING_CHARGED) for part in parts]
        if held is not None:
            for settlement in self._build_settlements(held, parts, billed=billed, keeps_rates=keeps_rates):
                self._store.settle(lane, settlement)
            return
        # Without a decision it is unknown whether this is a repeat: the store finds out at settlement. If its
        # reply was lost, it may have the mark of a request in flight.
        recorded = parts
        may_be_marked = self._decided is None and (billed or self.is_counted)
        digest = self._undecided_digest() if may_be_marked else None
        parts = [part for part in parts if part.recorded or part.rated or part.charged]
        if digest is not None:
            parts = parts or [NOTHING_USED]
        for part in reversed(parts):  # What remembers the key comes last.
            mark = None if digest is None else RepeatMark(digest, billed and part is parts[0])
            # Nothing is held: the slot says whose mark ends.
            slot = HeldQuantities(slot=0 if mark is None else self._slot)
            self._store.settle(lane, Settlement(self._view, held=slot, used=part, mark=mark))
        if self._decided is None:
            record_in_process(self._store, self._view, self._fallback_decision, recorded)
            for part in parts:
                count_in_process(self._store, self._view, self._route, part.rated)

    def _undecided_digest(self) -> str | None:
        """Digest of the idempotency key, read before the app: routers may change the scope's path."""
        fallback = self._fallback_decision
        known = None if fallback is None else fallback.decided.digest
        return known or repeat_digest(self._route, self._scope)

    def settle_attempt(self, decided: PreparedDecision) -> None:
        """Settle at once what the store records with the decision, however the request ends."""
        if not (self._lane is None or self.is_counted or decided.settles):
            self._settle_undecided(self._lane, billed=True)
            self.is_counted = self._nothing_to_settle = True

    def _settle_undecided(self, lane: Lane, *, billed: bool) -> None:
        """Settle only what the route consumes: without the store nearly every request ends so."""
        decided = None if self._fallback_decision is None else self._fallback_decision.decided
        settlement = None if decided is None else decided.unheld.get(billed)
        counted = self._route.consume
        if settlement is None:
            used = UsedQuantities(counted if billed else _NOTHING, counted)
            settlement = Settlement(self._view, used=used)
            if decided is not None and not settlement.is_single:
                decided.unheld = {**decided.unheld, billed: settlement}
        if counted:
            self._store.settle(lane, settlement)
        if decided is not None and not billed:
            record_in_process(self._store, self._view, self._fallback_decision)

    def release_hold(self) -> None:
        """Settle the request as it is now; see :class:`meterkit.redis.lane.Renewable`."""
        self.settle(None)

    def record(self, quantities: dict[str, int]) -> None:
        """Record usage of the request; usage after its end is settled at once."""
        lane = self._lane
        with recording:
            self._follow_plans(quantities)
            if lane is None or not (self._settled or self._complete):
                before, total = self._recorded, dict(self._recorded or _NOTHING)
                # All of them or none: where one is refused, nothing of this call is recorded.
                for meter, more in quantities.items():
                    total[meter] = check_quantity(total.get(meter, 0) + more)
                self._recorded = total
                self._nothing_to_settle = False
                if lane is None or not self._settled:
                    return
                # The request ended meanwhile, in another thread, and may have missed this.
                self._recorded = before
        self._settle_late(lane, [self._price_tokens(UsedQuantities(quantities, quantities))])

    def _price_tokens(self, used: UsedQuantities, *, due: bool = True) -> UsedQuantities:
        priced = price_tokens(used, self._view.cache, self._name_calls)
        return priced if due else priced._replace(recorded=_NOTHING, charged=_NOTHING_CHARGED)

    def open_tap(self, key: object, tap: StreamTap[Any]) -> None:
        """Note the tap of a stream, for a client that leaves before its end."""
        with recording:
            if not (self._settled or self._complete):
                llm = self._llm = self._llm or LlmCalls()
                self._nothing_to_settle = False
                llm.open_tap(key, tap)

    def update_calls(self, change: Callable[[LlmCalls], T]) -> T:
        """Change the record of model calls; late usage is settled at once.

        Args:
            change: gets the calls known so far; must not block.
        """
        lane = self._lane
        with recording:
            llm = self._llm = self._llm or LlmCalls()
            self._follow_plans()
            result = change(llm)
            if not self._complete:
                self._nothing_to_settle = False
            # Looked at after that: in another thread the request may end meanwhile, and miss this.
            if lane is None or not (self._settled or self._complete):
                return result
            parts = llm.uncounted(self._view.cache, self._name_calls, self._requested_models)
            outliving = llm.outliving(self._name_calls, self._requested_models)
            llm.forget_oldest(self._view.cache, self._name_calls, self._requested_models)
        self._settle_late(lane, parts)
        settle = partial(settle_jobs, route=self._route, billed=self._outcome() in self._charge_on)
        call_on_loop(self._store, lane, settle, self._store, lane, self._view, None, outliving)
        return result

    @property
    def _counts_at_once(self) -> bool:
        """Whether usage that comes now is settled by itself, and nothing of the request is still to be."""
        return self._settled or (self._complete and self._nothing_to_settle)

    def _follow_plans(self, meters: Collection[str] = ()) -> None:
        """Count later usage by the current plans file, if it has the meters.

        A background task may report usage for hours, and an open websocket for days.
        """
        cache, view = self._store.cache, self._view
        if cache is view.cache or not self._counts_at_once or view.is_deleted:
            return
        if not cache.counters.issuperset({*meters, *(self._recorded or ())}):
            return  # The app still records what the file has no more.
        self._route = cache.routes.find_newest(self._route.match) or self._route
        self._view = cache.rebind(view)
        if self._llm is not None:
            self._llm.reprice(cache, self._name_calls, self._requested_models)

    def _settle_late(self, lane: Lane, parts: Sequence[UsedQuantities]) -> None:
        due = self._is_due(self._outcome())
        self._view.cache.routes.learn(self._route, find_used_meters(parts))
        for part in parts:
            used = part if due else part._replace(recorded=_NOTHING, charged=_NOTHING_CHARGED)
            call_on_loop(self._store, lane, self._store.settle, lane, Settlement(self._view, used=used))
        if lane.is_open:
            record_in_process(self._store, self._view, None, parts)

    def _outcome(self) -> Outcome:
        return outcome_of(
            self._status,
            is_complete=self._complete and not self._left_within,
            has_begun=self._begun,
            has_failed=self._failed,
            has_left=self._gone,
            has_left_early=self._left_early,
        )

    def _is_due(self, outcome: Outcome) -> bool:
        return is_usage_due(outcome, self._status, self._charge_on, has_left_early=self._left_early)
