"""Admitted websocket: decided when it opens and per message; usage of Realtime and Live sessions is read."""

from __future__ import annotations

from asyncio import Lock, Task, TimerHandle, get_running_loop, shield, sleep
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from llm_usage import SocketReader
from llm_usage.requested_model import requested_models
from meterkit.asgi.buffered_body import head_of
from meterkit.asgi.exchange import Exchange
from meterkit.asgi.fallback_requests import decide_in_process
from meterkit.asgi.llm_calls import called_models
from meterkit.asgi.logs import ErrorGuard, warn_of_unread
from meterkit.asgi.refusal_responses import POLICY_VIOLATION
from meterkit.asgi.request_outcome import outcome_of
from meterkit.cancellation import start_task
from meterkit.catalog.routes import additions_of
from meterkit.decisions.compiled_decision import compile_program
from meterkit.decisions.customer_state import keep_holds_only
from meterkit.decisions.limit_policies import ASK_ONLY, Demand
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import StoreError
from meterkit.store.prepared_decisions import read_decision
from meterkit.store.replies import ALLOWED
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.settlement_parts import UsedQuantities
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from starlette.types import Message

    from llm_usage import CallUsage
    from llm_usage.framing.incremental import Work
    from llm_usage.session_models import SessionModels
    from meterkit.asgi.logs import RefusalLog, TroubleLog
    from meterkit.catalog import Entitlement, Outcome, Route
    from meterkit.decisions.decision import Decision
    from meterkit.redis.lane import Lane
    from meterkit.store.views import CustomerView

_CHECK_EVERY_S: Final = 60.0
_SWITCHING_PROTOCOLS: Final = 101
_TRANSCRIBES: Final = b"intent=transcription"
_FORBIDDEN: Final = 403
_REASON_BYTES_MAX: Final = 123  # A close frame has 125; the code takes two: RFC 6455 section 5.5.


class WebSocketExchange(Exchange):
    """Admitted websocket. Its opening is billed as a request is, by its outcome.

    It succeeds once the app has accepted it, whichever side closes it; an app that rejects it answers with
    a client's error. What the app records once it is open is settled at once, as an open websocket may last
    for days.
    """

    __slots__ = ("_has_closed", "_is_closed", "_log", "_next", "_timer", "_troubles", "_turns", "_usage")

    def begin(self, log: RefusalLog, troubles: TroubleLog) -> None:
        """Start to check every minute whether the customer may still be served.

        Args:
            log: takes what is refused, or would be in shadow.
            troubles: takes why a message could not be decided.
        """
        self._log = log
        self._troubles = troubles
        self._has_closed = self._is_closed = False  # By the app, and here.
        self._timer: TimerHandle | None = None
        self._next: Task[Message] | None = None
        self._turns = Lock()
        self._usage = None
        if self._route.usage != "none":
            self._usage = SocketUsage(
                self._route.usage,
                count=self._count_calls,
                models=self._requested_models,
                only_transcribes=_TRANSCRIBES in self._scope.get("query_string", b""),
                complain=self.warn,
                report_unread=partial(warn_of_unread, self._store, self._route),
            )
        self._schedule_check()

    async def receive(self) -> Message:
        """Receive the next message; a counted message that is refused ends the websocket."""
        if self._is_closed:
            return _disconnected()
        if self._next is None and (self._lane is None or not self._route.per_message):
            return self._note_message(await self.server_receive())
        async with self._turns:  # Of the app's tasks, each gets messages of its own.
            if self._is_closed:
                return _disconnected()
            # Apps cancel the wait for a message; what was taken from the server meanwhile is the next one's.
            self._next = self._next or start_task(self._decided_message())
            message = await shield(self._next)
            self._next = None
            return message

    def _note_message(self, message: Message) -> Message:
        self._gone = self._gone or message["type"] == "websocket.disconnect"
        if self._usage is not None and message["type"] == "websocket.receive":
            self._usage.received(message)
        return message

    def _count_calls(self, calls: Sequence[CallUsage]) -> None:
        """Count answers of a model at once: an open websocket may last for days."""
        if self._lane is not None:
            self.update_calls(lambda known: known.add_read(self._name_calls(calls)))

    @property
    def _counts_at_once(self) -> bool:
        return self._complete

    def _requested_models(self) -> Sequence[str]:
        """Find the model of the session by the server, otherwise those that the client or the URL names."""
        session = None if self._usage is None else self._usage.session
        if session is not None and session.current is not None:
            return (session.current,)
        asked = () if session is None else session.asked
        of_url = requested_models(head_of(self._scope, self.decided[2]), ())
        return called_models(self._route, tuple(dict.fromkeys((*asked, *of_url))))

    async def _decided_message(self) -> Message:
        message, lane = self._note_message(await self.server_receive()), self._lane
        if message["type"] == "websocket.receive" and lane is not None:
            decision = await self._decide_message(lane)
            if decision is not None:
                await self._close(decision)
                return _disconnected()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message; raises after meterkit has closed the websocket, as if the client had left."""
        if self._is_closed:
            raise ConnectionAbortedError("meterkit has closed this websocket")
        kind = message["type"]
        if kind == "websocket.send":
            usage = self._usage
            if usage is not None:  # Also an answer that does not arrive was generated.
                if usage.is_large(message):
                    return self._send_large(message, usage)
                usage.sent(message)
        elif kind == "websocket.accept":
            self._status = _SWITCHING_PROTOCOLS
            self._complete = True
            message = self._with_fields(message)
        elif kind == "websocket.http.response.start":
            self._status = message["status"]
            message = self._with_fields(message)
        elif kind == "websocket.close":
            self._has_closed = True
            self._status = self._status or _FORBIDDEN
        return self._send_message(message)

    async def _send_large(self, message: Message, usage: SocketUsage) -> None:
        """Send a message first, as no other may overtake it, and then read it with pauses."""
        try:
            await self._send_message(message)
        finally:
            for _ in usage.sent_large(message):
                await sleep(0)

    async def _send_message(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # So servers say that the client has left.
            self._gone = True
            raise

    def settle(self, error: BaseException | None) -> None:
        """Settle the opening of the websocket with the store. Idempotent."""
        for pending in (self._timer, self._next):
            if pending is not None:
                pending.cancel()
        if self._usage is not None:
            self._usage.close()
        super().settle(error)

    def release_hold(self) -> None:
        """Detach an open websocket from a kit that stops: it goes on, undecided and uncounted."""
        pending, self._next = self._next, None  # The app goes on waiting for it.
        super().release_hold()
        self._next, self._lane = pending, None

    def _outcome(self) -> Outcome:
        return outcome_of(
            self._status,
            is_complete=self._status > 0 and not self._failed,
            has_begun=False,
            has_failed=self._failed,
        )

    def _current_line(self) -> tuple[Route, CustomerView]:
        """Find the line and the customer in the current plans file, which may be a newer one."""
        cache = self._store.cache
        route, is_same = cache.routes.find_newest(self._route.match), cache is self._view.cache
        if route is None:
            return self._route, self._view  # What the line has admitted goes by it.
        if is_same and (route.feature, ()) != (self._route.feature, self._route.further_features):
            return self._route, self._view  # Its path leads to gates of further lines.
        return route, self._view if is_same else cache.rebind(self._view)

    async def _decide_message(self, lane: Lane) -> Decision | None:
        """Decide and count one message; the refusal, or None if the app gets it."""
        store = self._store
        route, view = self._current_line()
        billed = "success" in route.charge_on
        try:
            decided, reply = await store.decide(view, partial(_prepare_message, route))
        except Exception as error:  # noqa: BLE001 - the app is served whatever it is, if the route says so
            self._troubles.log_undecided(error, route)
            decision, _ = decide_in_process(store, view, route, partial(_prepare_message, route))
            if decision is not None and not decision.allowed:
                return decision
            # In doubt the decision may have counted it in rates.
            in_doubt = isinstance(error, StoreError) and error.executed is None
            counted = route.per_message
            used = UsedQuantities(recorded=counted if billed else {}, rated={} if in_doubt else counted)
            store.settle(lane, Settlement(view, used=used))
            return None
        if reply[0] != ALLOWED or decided.waived is not None:
            decision = read_decision(decided, reply)
            if not decision.shadow:
                return decision
            self._log.log_shadowed(decision, route, view)
        if decided.program.settles:
            slot = reply[1] // HOLD_SLOT_MS
            store.settle(lane, settle_decision(decided, slot, billed=billed))
        return None

    def _schedule_check(self) -> None:
        lane = self._lane
        if lane is not None:
            self._timer = get_running_loop().call_later(
                _CHECK_EVERY_S, lambda: lane.spawn(self._check_customer())
            )

    async def _check_customer(self) -> None:
        """Close the websocket if its customer may not be served any more. Counts nothing."""
        with suppress(Exception):  # What cannot be decided goes on: it was allowed to begin.
            route, view = self._current_line()
            looked = await self._store.decide(view, partial(_prepare_check, route), mode="c")
            decision = read_decision(*looked)
            if not (decision.allowed or self._settled):
                await self._close(decision)
        if not (self._settled or self._is_closed):
            self._schedule_check()

    async def _close(self, decision: Decision) -> None:
        if self._is_closed or self._has_closed:
            return
        # In each case it ends as if the client had left.
        self._is_closed = self._gone = True
        of = self._route, self._view, self._scope
        self._log.log_refused(decision, *of, status=POLICY_VIOLATION, instance=None)
        reason = decision.limit or decision.reason or ""
        with suppress(OSError):  # The client has left meanwhile.
            await self._send(
                {
                    "type": "websocket.close",
                    "code": POLICY_VIOLATION,
                    "reason": reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore"),
                }
            )


def _prepare_message(route: Route, view: CustomerView, mode: str) -> PreparedDecision:
    """Prepare the decision that counts a message."""

    def prepare() -> PreparedDecision:
        counted = {name: Demand.of(quantity) for name, quantity in route.per_message.items()}
        demands = {**_demands_while_open(route, view), **counted}
        return _compile_decision(route, view, mode, view.entitlements, demands)

    return view.memoize(("message", id(route), mode), prepare)


def _prepare_check(route: Route, view: CustomerView, _: str) -> PreparedDecision:
    """Prepare the decision whether one more message could be counted, regardless of rates."""

    def prepare() -> PreparedDecision:
        demands = _demands_while_open(route, view)
        return _compile_decision(route, view, "c", keep_holds_only(view.entitlements, demands, ()), demands)

    return view.memoize(("look", id(route)), prepare)


def _demands_while_open(route: Route, view: CustomerView) -> dict[str, Demand]:
    """Ask for what an open websocket can still add to; its opening has been counted."""
    additions = additions_of(route, view.cache.catalog.meters)
    return {name: ASK_ONLY for name, key in additions.items() if key != "consume"}


def _compile_decision(
    route: Route,
    view: CustomerView,
    mode: str,
    entitlements: Mapping[str, Entitlement],
    demands: Mapping[str, Demand],
) -> PreparedDecision:
    """Compile a decision about an open websocket: it is not another request in flight."""
    program = compile_program(
        entitlements,
        view.catalog,
        demands,
        in_flight=False,
        rates_only=route.always,
        prepaid=view.prepaid,
    )
    if (subjects := view.subjects) is not None:
        subjects = subjects.without_rates() if mode == "c" else subjects
        program = subjects.extend(program, demands, in_flight=False, rates_only=route.always)
    return PreparedDecision(view, program, mode, route=route)


def _disconnected() -> Message:
    return {"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": ""}


_READ_AT_ONCE_CHARS: Final = (1 << 20) // 4  # A character has four bytes at most.


class SocketUsage:
    """Reads the usage in a websocket's messages, and keeps errors of the reader from the app.

    Args:
        usage: the route's word.
        count: takes the calls whose figures have come.
        models: finds those that may answer.
        only_transcribes: see :class:`llm_usage.SocketReader`.
        complain: logs an error of the reader, which then reads no more.
        report_unread: takes, at the end, the path of a token figure that was not read.
    """

    def __init__(
        self,
        usage: str,
        *,
        count: Callable[[Sequence[CallUsage]], None],
        models: Callable[[], Sequence[str]],
        only_transcribes: bool,
        complain: Callable[[str], None],
        report_unread: Callable[[str], None],
    ) -> None:
        self._reader = SocketReader(usage, count=count, models=models, only_transcribes=only_transcribes)
        self._has_failed = False
        self._guard = ErrorGuard(self._stop_reading)
        self._complain = complain
        self._report_unread = report_unread

    @property
    def session(self) -> SessionModels:
        """The models that the messages name."""
        return self._reader.session

    @staticmethod
    def is_large(message: Message) -> bool:
        """Whether a message takes too long to be read at once."""
        return len(message.get("text") or message.get("bytes") or "") > _READ_AT_ONCE_CHARS

    def sent(self, message: Message) -> None:
        """Read a message of the app's."""
        if not self._has_failed:
            with self._guard:
                self._reader.sent(_data_of(message))

    def sent_large(self, message: Message) -> Work:
        """Read a message of the app's in steps."""
        if not self._has_failed:
            with self._guard:
                yield from self._reader.sent_large(_data_of(message))

    def received(self, message: Message) -> None:
        """Read a message of the client's."""
        if not self._has_failed:
            with self._guard:
                self._reader.received(_data_of(message))

    def close(self) -> None:
        """Count the answer that has begun and has not ended. Idempotent."""
        if self._has_failed:
            return
        with self._guard:
            unread = self._reader.close()
            if unread is not None:
                self._report_unread(unread)

    def _stop_reading(self, error: str) -> None:
        self._has_failed = True
        self._complain(f"reading token usage off a websocket failed, which counts nothing: {error}")


def _data_of(message: Message) -> bytes:
    text: str | None = message.get("text")
    return text.encode("utf-8", "surrogatepass") if text is not None else message.get("bytes") or b""
