"""Admitted websocket: decided when it opens and per message; usage of Realtime and Live sessions is read."""

from __future__ import annotations

import re
from asyncio import Lock, Task, TimerHandle, get_running_loop, shield, sleep
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from llm_usage.call_usage import CallUsage, fill_estimates
from llm_usage.estimate import billed_input
from llm_usage.framing.content_codings import PIECE_BYTES
from llm_usage.framing.large_json import LargeJsonReader
from llm_usage.json_values import load, table
from llm_usage.layout import may_have_figures, may_report
from llm_usage.observer import UsageObserver
from llm_usage.providers import BY_NAME
from llm_usage.providers.gemini import GEMINI, live_api
from llm_usage.providers.openai import LIVE_SESSION, SESSION_LENGTHS
from llm_usage.requested_model import SessionModels, is_transcription, requested_models
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
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from starlette.types import Message

    from llm_usage.framing.incremental import Work
    from llm_usage.json_values import Table
    from llm_usage.providers.reader_interface import ProviderApi
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
                complain=self.warn,
                report_unread=partial(warn_of_unread, self._store, self._route),
            )
            self._usage.session.only_transcribes = _TRANSCRIBES in self._scope.get("query_string", b"")
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
            for _ in usage.read_large(message):
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


_BYTES_MAX: Final = 1 << 20
_PARSED_CHARS_MAX: Final = _BYTES_MAX // 4  # A character has four bytes at most.
_IDS_MAX: Final = 1_000
# Encoded sound and images, which come often.
_MEDIA: Final = (b'audio.delta"', b'"audio"', b'"inlineData"', b'"mediaChunks"', b'"realtimeInput"')
_SOUND: Final = re.compile(
    rb'\{\s*(?:"event_id"\s*:\s*"[^"\\]{0,512}"\s*,\s*)?'
    rb'"type"\s*:\s*"input_audio_buffer\.append"\s*,\s*"audio"\s*:\s*"'
)
"""Its pieces are not parsed: an open microphone sends ten a second."""
_LIVE: Final = frozenset({"setupComplete", "serverContent"})
_SAYS: Final = (b'.delta"', b'"serverContent"')


@dataclass(slots=True, eq=False)
class SocketUsage:
    """Reads the usage in an app's messages: events of OpenAI's Realtime API and of Gemini Live.

    Each answer of the model is counted when its figures come. An answer that has begun when the websocket
    closes is estimated by its text, and by the texts that the client has sent for it.

    Args:
        usage: the route's word.
        count: takes the calls whose figures have come.
        models: finds those that may answer.
        complain: logs an error of the reader, which the app never sees.
        report_unread: takes, at the end, the path of a token figure that was not read.

    Attributes:
        session: the models that the messages name.
    """

    usage: str
    count: Callable[[Sequence[CallUsage]], None]
    models: Callable[[], Sequence[str]]
    complain: Callable[[str], None]
    report_unread: Callable[[str], None]
    session: SessionModels = field(default_factory=SessionModels, init=False)
    _declared: bool = field(init=False)
    _live: ProviderApi = field(init=False)
    _input_tokens: int = field(default=0, init=False)
    _unread: str | None = field(default=None, init=False)
    _note_message: dict[str, None] = field(default_factory=dict[str, None], init=False)
    _length: tuple[CallUsage, ...] = field(default=(), init=False)
    _observer: UsageObserver | None = field(init=False)

    def __post_init__(self) -> None:
        self._declared, self._live = self.usage != "auto", live_api(self.models)
        self._observer = self._new_observer()

    def _new_observer(self) -> UsageObserver:
        apis = (self._live,) if self.usage == GEMINI.name else BY_NAME[self.usage]
        return UsageObserver(apis, declared=self._declared)

    def sent(self, message: Message) -> None:
        """Read a message of the app's."""
        data = _data_of(message)
        with ErrorGuard(self._stop_reading):
            self.session.sent(data)
        if _is_read(data):
            with ErrorGuard(self._stop_reading):
                self._read(data)

    @staticmethod
    def is_large(message: Message) -> bool:
        """Whether a message takes too long to be read at once."""
        return len(message.get("text") or message.get("bytes") or "") > _PARSED_CHARS_MAX

    def read_large(self, message: Message) -> Work:
        """Read a message of the app's that is large: one that ends an answer may repeat all that went in."""
        data = _data_of(message)
        with ErrorGuard(self._stop_reading):
            self.session.sent(data)
        if not _is_read(data):
            return
        with ErrorGuard(self._stop_reading):
            reader = LargeJsonReader(self._read_event, lambda: None)
            for at in range(0, len(data), PIECE_BYTES):
                yield from reader.feed(data[at : at + PIECE_BYTES]) or ()
                yield
            reader.end()

    def _read(self, data: bytes) -> None:
        try:
            event = table(load(data))
        except ValueError:
            return  # No event of a model's.
        if event is not None:
            self._read_event(event)

    def _read_event(self, event: Table, measured: int | None = None) -> None:
        observer = self._observer
        if observer is None:
            return
        if not (self._declared or _LIVE.isdisjoint(event)):
            # The figures of a turn come in a message that has nothing else.
            self.usage, self._declared = GEMINI.name, True
            observer = self._observer = self._new_observer()
        if event.get("type") in SESSION_LENGTHS:
            self._count_length(event)
            return
        # A transcription is another model's call: an answer that has begun goes on.
        is_apart = is_transcription(event)
        reader = self._new_observer() if is_apart else observer
        reader.observe(event, measured)
        calls = [call for call in reader.close(complete=False, notes=()) if call.source == "reported"]
        if calls or is_apart:  # The reader is not kept.
            self._unread = self._unread or reader.unread_figure
        if not calls:
            return
        calls = [call for call in calls if self._is_new(call)]
        if is_apart:
            model = self.session.transcription_of()
            calls = [call if call.model else replace(call, model=model) for call in calls]
        else:
            self._observer = self._new_observer()
            self._input_tokens = 0
        # The length comes last: of the calls of an open websocket only the newest ones are kept.
        self.count((*calls, *self._length))

    def _count_length(self, event: Table) -> None:
        """Count how long a session is so far, in place of what was counted of it before."""
        reader = self._new_observer()
        reader.observe(event)
        found = reader.close(complete=True, notes=())
        if _seconds_of(found) > _seconds_of(self._length):
            self._length = tuple(replace(call, response_id=LIVE_SESSION) for call in found)
            self.count(self._length)

    def _is_new(self, call: CallUsage) -> bool:
        """Whether an answer was not counted before: its last event may be sent more than once."""
        name = call.response_id
        if name is None or name in self._note_message:
            return name is None
        if len(self._note_message) >= _IDS_MAX:
            del self._note_message[next(iter(self._note_message))]
        self._note_message[name] = None
        return True

    def received(self, message: Message) -> None:
        """Measure the texts of a message of the client's, for an answer that may be cut off."""
        data = _data_of(message)
        with ErrorGuard(self._stop_reading):
            self.session.received(data)
        # Texts alone: sound comes in many pieces, as JSON or as bytes.
        if data and not _is_sound(data):
            with ErrorGuard(self._stop_reading):
                self._input_tokens += billed_input(data[:_BYTES_MAX], size=len(data), media_tokens=0)

    def close(self) -> None:
        """Estimate the answer that has begun and has not ended, if there is one."""
        observer, self._observer = self._observer, None
        if observer is None:
            return
        with ErrorGuard(self._stop_reading):
            unread = self._unread or observer.unread_figure
            if unread is not None:
                self.report_unread(unread)
            calls = observer.close(complete=False, notes=())
            tokens = observer.estimated_output_tokens
            if not calls and tokens:
                calls = (CallUsage(source="missing"),)
            if tokens or any(call.source == "partial" for call in calls):
                self.count(
                    fill_estimates(calls, input_tokens=lambda: self._input_tokens, output_tokens=tokens)
                )

    def _stop_reading(self, error: str) -> None:
        self._observer = None
        self.complain(f"reading token usage off a websocket failed, which counts nothing: {error}")


def _seconds_of(calls: Iterable[CallUsage]) -> int:
    return sum(sum(call.details.values()) for call in calls)


def _is_read(data: bytes) -> bool:
    """Whether a message may hold usage, or a model's text without sound and images."""
    if may_report(data) or may_have_figures(data):
        return True
    return any(mark in data for mark in _SAYS) and not _is_media(data)


def _is_sound(data: bytes) -> bool:
    """Whether a message is a piece of sound for OpenAI's Realtime API, and nothing else."""
    begun = _SOUND.match(data)
    return begun is not None and data.find(b'"', begun.end()) == len(data) - 2 and data.endswith(b'"}')


def _is_media(data: bytes) -> bool:
    return any(mark in data for mark in _MEDIA)


def _data_of(message: Message) -> bytes:
    text: str | None = message.get("text")
    return text.encode("utf-8", "surrogatepass") if text is not None else message.get("bytes") or b""
