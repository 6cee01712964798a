"""Admitted upload: its body fills a gauge, also where it is longer than announced.

A body of unknown length asks for room in steps, each a decision of its own: by the room left at its start,
two uploads at once would both get all of it.
"""

from __future__ import annotations

from asyncio import get_running_loop
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from meterkit.asgi.exchange import Exchange
from meterkit.asgi.logs import warn
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.decision import Decision
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.store.prepared_decisions import prepare_holding, read_decision
from meterkit.store.replies import ALLOWED
from meterkit.store.reservations import prepare_renewing
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from starlette.types import Message

    from meterkit.asgi.buffered_body import BufferedBody
    from meterkit.catalog import Outcome
    from meterkit.metric_tallies import Tallies
    from meterkit.store.views import CustomerView, PreparedDecision

_STEP_BYTES: Final = 256 << 10
"""Bytes held at once, at least, for a body of unknown length: not one call for every piece."""
_SPARE_BYTES: Final = 64 * _STEP_BYTES
"""Least bytes left for uploads to hold ahead: with less, a hold would refuse others that fit."""
_LENGTH_DIGITS_MAX: Final = 15
_NEVER: Final = frozenset["Outcome"]()


def announced_bytes(body: BufferedBody) -> int | None:
    """Bytes that a request announces; 0: a body of unknown length; None: no body.

    A length that cannot be read is unknown: the bytes are counted as they arrive.
    """
    lengths = {value.strip() for value in body.header(b"content-length")}
    length = lengths.pop() if len(lengths) == 1 else b""
    if length.isdigit():
        digits = length.lstrip(b"0")
        declared = int(digits or b"0") if len(digits) <= _LENGTH_DIGITS_MAX else QUANTITY_MAX
        return max(declared, body.received) or None
    if body.ended:
        return body.received or None
    has_body = length or lengths or body.received or body.header(b"transfer-encoding")
    return body.received if has_body else None


class Upload(Exchange):
    """Admitted request of a line with ``storage``.

    The decision that admitted it holds the announced bytes. Bytes beyond that, or of an unknown length, are
    held as they arrive; the first piece that does not fit ends the request.

    Concurrent uploads each hold a part of what they need, so that none may fit. An upload that is refused a
    further part therefore releases its own parts, and then asks for all of them together. If each fits
    alone, at least one passes: the last one to ask finds no parts of the others.

    Slots:
        _is_ample: whether so much is left that bytes are held ahead.
        _read: bytes of the body that have arrived.
        _set_aside: bytes that may arrive before more is held.
        _more: bytes held beside the decision, by the slot of holds.
        _counts: whether the gauge has a limit, so that bytes may be refused.
        _refusal: why the request was ended here, or None.
        _is_answered: whether the client got the refusal.
        _unread: the piece that the app was about to get when its waiting was cancelled, or None.
    """

    __slots__ = (
        "_counts",
        "_is_ample",
        "_is_answered",
        "_more",
        "_read",
        "_refusal",
        "_set_aside",
        "_unread",
    )

    def begin(self) -> None:
        """Set up the count of bytes; called before the app."""
        decided, meter = self._decided, self._meter
        self._read = self._set_aside = 0
        self._is_ample = True
        self._more: dict[int, int] = {}
        self._refusal: Decision | None = None
        self._unread: Message | None = None
        self._counts = self._is_answered = False
        if decided is not None and self._lane is not None and not decided.is_repeat:
            self._counts = decided.view.entitlements[meter].included is not None
            self._set_aside = decided.reserved.get(meter, 0)

    @property
    def _meter(self) -> str:
        return self._route.storage_meter or ""

    async def receive(self) -> Message:
        """Receive the next message; once the body does not fit, a disconnect."""
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        message, self._unread = self._unread, None
        if message is None:
            message = await super().receive()
            if not self._counts or message["type"] != "http.request":
                return message
            self._read += len(message.get("body", b""))
        if self._counts and self._read > self._set_aside:
            try:
                refusal = await self._hold_more()
            except BaseException:
                self._unread = message  # A caller that stopped waiting for it may ask once more.
                raise
            if refusal is not None:
                await self._end_request(refusal)
                return {"type": "http.disconnect"}
        if not message.get("more_body", False):
            self._release_rest()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message, unless the request was ended here."""
        return super().send(message) if self._refusal is None else self._drop_message()

    async def _drop_message(self) -> None:
        if not self._is_answered:  # What the app has begun to answer is left incomplete: it is not true.
            raise ConnectionAbortedError("meterkit has ended this request: its body does not fit")

    def settle(self, error: BaseException | None) -> None:
        """Settle the request with the store. Idempotent."""
        super().settle(error)
        self._release_more()

    def _tally(self, tallies: Tallies) -> None:
        refusal = self._refusal
        if refusal is None:
            super()._tally(tallies)
        else:
            plan = self._view.effective.plan.key
            tallies.count_request(plan, "refused", refusal.reason, degraded=refusal.degraded)

    def is_expected_error(self, error: BaseException) -> bool:
        """Whether an error only reports that the request was ended here."""
        return self._refusal is not None and isinstance(error, ClientDisconnect | ConnectionAbortedError)

    def release_gauge(self, meter: str) -> None:
        """Release the hold of a gauge whose level was changed. See :class:`HoldOwner`."""
        super().release_gauge(meter)
        if meter == self._meter and self._lane is not None and self._lane.loop is get_running_loop():
            self._release_more()

    def is_due(self) -> bool:
        """Whether a hold is in a slot that is over."""
        now_slot = self._store.now_ms() // HOLD_SLOT_MS
        return super().is_due() or any(held and slot < now_slot for slot, held in self._more.items())

    async def renew(self) -> None:
        """Hold the same bytes in the current slot, and release those of earlier slots."""
        if super().is_due():
            await super().renew()
        before = dict(self._more)
        total = sum(before.values())
        if not total:
            return
        with suppress(MeterkitError):  # Retried before the holds expire.
            held = {self._meter: total}
            _, reply = await self._store.decide(self._view, lambda view, _: prepare_renewing(view, held, ()))
            if self._more == before and reply[0] == ALLOWED:
                self._release_more()
                self._more = {reply[1] // HOLD_SLOT_MS: total}
            elif reply[0] == ALLOWED:  # It has changed meanwhile, and is renewed as it is then.
                self._release({reply[1] // HOLD_SLOT_MS: total})

    async def _hold_more(self) -> Decision | None:
        """Hold the bytes that have arrived beyond the held ones; the refusal, or None."""
        missing = self._read - self._set_aside
        try:
            if missing < _STEP_BYTES and self._is_ample:
                self._is_ample = await self._hold_bytes(_STEP_BYTES, spare=_SPARE_BYTES) is None
                if self._is_ample:
                    return None
            refusal = await self._hold_bytes(missing)
            if refusal is not None and not refusal.shadow:
                refusal = await self._hold_all(refusal)
        except MeterkitError as error:
            warn(self._store, self._route.match, f"an upload cannot be counted: {error}")
            self._counts = False
            if self._route.on_store_failure == "allow" or self._route.enforcement == "shadow":
                return None
            return Decision(allowed=False, reason="store", degraded=True)
        if refusal is None or not refusal.shadow:
            return refusal
        self.refuser.log.log_shadowed(refusal, self._route, self._view)
        self._counts = False
        return None

    async def _hold_all(self, refusal: Decision) -> Decision | None:
        """Release all that this request holds, and hold it again together with the missing bytes."""
        more, self._more = self._more, {}
        settlements = [*self._detach_gauge(self._meter), *self._release_settlements(more)]
        lane = self._lane
        if not settlements or lane is None:
            return refusal
        self._set_aside -= sum(sum(one.held.quantities.values()) for one in settlements)
        *before, last = settlements
        for settlement in before:
            self._store.settle(lane, settlement)
        # Acknowledged first: what the store still had of this request would refuse it.
        await self._store.settle_acknowledged([last], lane)
        return await self._hold_bytes(self._read - self._set_aside)

    async def _hold_bytes(self, quantity: int, *, spare: int = 0) -> Decision | None:
        """Hold more bytes, if ``spare`` bytes are left besides; the refusal, or None."""
        store, meter = self._store, self._meter

        def prepare(view: CustomerView, mode: str) -> PreparedDecision:
            return prepare_holding(view, {meter: quantity}, mode, route=self._route, spare=spare)

        decided, reply = await store.decide(self._view, prepare)
        decision = read_decision(decided, reply)
        if decision.allowed:
            slot = reply[1] // HOLD_SLOT_MS
            would_be_refused = decision.reason is not None  # Shadow mode holds it too.
            is_ahead = quantity > self._read - self._set_aside
            if self._settled or (would_be_refused and is_ahead):
                self._release({slot: quantity})
                return None if self._settled else decision
            self._more[slot] = self._more.get(slot, 0) + quantity
            self._set_aside += quantity
            self._nothing_to_settle = False
            if self._lane is not None:
                self._lane.live.add(self)
            return decision if would_be_refused else None
        gauge = decision.gauge
        if gauge is not None:  # What this request holds already is a part of what it asks for.
            own = self._read - quantity
            used = max(0, gauge.used - own)
            decision = replace(decision, gauge=replace(gauge, used=used, requested=self._read))
        return decision

    async def _end_request(self, refusal: Decision) -> None:
        """End the request: refuse it, unless the app has begun to answer. The app sees a disconnect."""
        self._refusal, self._charge_on = refusal, _NEVER
        self._release_more()
        if self._status:
            self._gone = True
            self.refuser.log.log_refused(
                refusal, self._route, self._view, self._scope, status=self._status, instance=None
            )
            return
        self._is_answered = True
        decided, view = self._decided, self._view
        scope, receive, send = self._scope, self.server_receive, self._send
        await self.refuser.refuse(refusal, self._route, decided, view, scope, receive, send, is_admitted=True)

    def _release_rest(self) -> None:
        """Release the held bytes that did not arrive."""
        rest, self._set_aside = self._set_aside - self._read, self._read
        for slot, held in sorted(self._more.items(), reverse=True):
            part = min(rest, held)
            if part > 0:
                self._more[slot] -= part
                self._release({slot: part})
                rest -= part

    def _release_more(self) -> None:
        held, self._more = self._more, {}
        self._release(held)
        if self._settled and self._lane is not None:
            self._lane.live.discard(self)

    def _release(self, held: Mapping[int, int]) -> None:
        for settlement in self._release_settlements(held):
            if self._lane is not None:
                self._store.settle(self._lane, settlement)

    def _release_settlements(self, held: Mapping[int, int]) -> list[Settlement]:
        """Build the settlements that release bytes, one for each slot."""
        meter = self._meter
        return [
            Settlement(self._view, held=HeldQuantities({meter: quantity}, (), slot))
            for slot, quantity in held.items()
            if quantity
        ]
