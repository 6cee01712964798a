"""A request that fills a gauge with its body; what comes beyond the length that it announced counts, too."""

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
from meterkit.store.prepared_decisions import read_decision
from meterkit.store.replies import ALLOWED
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from starlette.types import Message

    from meterkit.asgi.body import BufferedBody
    from meterkit.catalog import Outcome
    from meterkit.redis.tallies import Tallies
    from meterkit.store.views import CustomerView, PreparedDecision

_STEP_BYTES: Final = 256 << 10
"""Bytes set aside at once, at least, for a body of unknown length: not one call for every piece."""
_SPARE_BYTES: Final = 64 * _STEP_BYTES
"""Where less is left, uploads set nothing aside ahead: it would refuse others that fit."""
_LENGTH_DIGITS_MAX: Final = 15
_NEVER: Final = frozenset["Outcome"]()


def announced_bytes(body: BufferedBody) -> int | None:
    """How many bytes a request says that it has; 0: it has some and does not say how many; None: none.

    A length that cannot be read is none: what comes is counted as it comes.
    """
    lengths = {value.strip() for value in body.header(b"content-length")}
    length = lengths.pop() if len(lengths) == 1 else b""
    if length.isdigit():
        digits = length.lstrip(b"0")
        said = int(digits or b"0") if len(digits) <= _LENGTH_DIGITS_MAX else QUANTITY_MAX
        return max(said, len(body.head)) or None
    if body.ended:
        return len(body.head) or None
    has_body = length or lengths or body.head or body.header(b"transfer-encoding")
    return len(body.head) if has_body else None


class Upload(Exchange):
    """An admitted request of a line with ``storage``.

    What it announced is held by the decision that admitted it. What comes beyond that, or without a word of
    its length, is held as it comes; the first piece that does not fit ends the request.

    Uploads that come at once hold parts of what each needs, so that none may fit. An upload that is refused a
    further part therefore gives back its own parts, and then asks for all of them together. At least one of
    several uploads passes if each fits alone: of those refused the last one to ask finds no other's parts.

    Slots:
        _is_ample: whether so much is left that bytes are set aside ahead.
        _read: bytes of the body that came.
        _set_aside: how many of them may come before more is set aside.
        _more: what is held beside the decision, by the slot of holds.
        _counts: whether anybody may be refused for what comes.
        _refusal: why the request was ended here, or None.
        _is_answered: whether the client could be answered.
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
        """To be called before the app is."""
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
        """The server's next message; once the body does not fit any more, that the client has left."""
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
                await self._end(refusal)
                return {"type": "http.disconnect"}
        if not message.get("more_body", False):
            self._give_back_rest()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on; where the request was ended here, none goes to the client any more."""
        return super().send(message) if self._refusal is None else self._drop()

    async def _drop(self) -> None:
        if not self._is_answered:  # What the app has begun to answer is left incomplete: it is not true.
            raise ConnectionAbortedError("meterkit has ended this request: its body does not fit")

    def settle(self, error: BaseException | None) -> None:
        """Tell the store what the request came to; once."""
        super().settle(error)
        self._give_back_more()

    def _tally(self, tallies: Tallies) -> None:
        refusal = self._refusal
        if refusal is None:
            super()._tally(tallies)
        else:
            plan = self._view.effective.plan.key
            tallies.ended(plan, "refused", refusal.reason, degraded=refusal.degraded)

    def is_over_by(self, error: BaseException) -> bool:
        """Whether an error only says that the request was ended here."""
        return self._refusal is not None and isinstance(error, ClientDisconnect | ConnectionAbortedError)

    def give_back_gauge(self, meter: str) -> None:
        """Give back what is held of a gauge: its level says it by now. See :class:`HoldOwner`."""
        super().give_back_gauge(meter)
        if meter == self._meter and self._lane is not None and self._lane.loop is get_running_loop():
            self._give_back_more()

    def is_due(self) -> bool:
        """Whether what it holds is in a slot that is over."""
        now_slot = self._store.now_ms() // HOLD_SLOT_MS
        return super().is_due() or any(held and slot < now_slot for slot, held in self._more.items())

    async def renew(self) -> None:
        """Hold the same in the slot of now, and give back what is held in an earlier one."""
        if super().is_due():
            await super().renew()
        before = dict(self._more)
        total = sum(before.values())
        if not total:
            return
        with suppress(MeterkitError):  # Tried again before the holds vanish.
            held = {self._meter: total}
            _, reply = await self._store.decide(self._view, lambda view, _: view.prepare_renewing(held, ()))
            if self._more == before and reply[0] == ALLOWED:
                self._give_back_more()
                self._more = {reply[1] // HOLD_SLOT_MS: total}
            elif reply[0] == ALLOWED:  # It has changed meanwhile, and is renewed as it is then.
                self._give_back({reply[1] // HOLD_SLOT_MS: total})

    async def _hold_more(self) -> Decision | None:
        """Set aside what has come beyond what is; why that cannot be, or None."""
        missing = self._read - self._set_aside
        try:
            if missing < _STEP_BYTES and self._is_ample:
                self._is_ample = await self._ask(_STEP_BYTES, spare=_SPARE_BYTES) is None
                if self._is_ample:
                    return None
            refusal = await self._ask(missing)
            if refusal is not None and not refusal.shadow:
                refusal = await self._ask_for_all(refusal)
        except MeterkitError as error:
            warn(self._store, self._route.match, f"an upload cannot be counted: {error}")
            self._counts = False
            if self._route.on_store_failure == "allow" or self._route.enforcement == "shadow":
                return None
            return Decision(allowed=False, reason="store", degraded=True)
        if refusal is None or not refusal.shadow:
            return refusal
        self.refuser.log.shadowed(refusal, self._route, self._view)
        self._counts = False
        return None

    async def _ask_for_all(self, refusal: Decision) -> Decision | None:
        """Give back all that this request holds, and ask for it together with what is missing."""
        more, self._more = self._more, {}
        settlements = [*self._take_gauge_out(self._meter), *self._returns(more)]
        lane = self._lane
        if not settlements or lane is None:
            return refusal
        self._set_aside -= sum(sum(one.held.quantities.values()) for one in settlements)
        *before, last = settlements
        for settlement in before:
            self._store.settle(lane, settlement)
        # Acknowledged first: what the store still had of this request would refuse it.
        await self._store.acknowledged([last], lane)
        return await self._ask(self._read - self._set_aside)

    async def _ask(self, quantity: int, *, spare: int = 0) -> Decision | None:
        """Hold so much more, if ``spare`` bytes are left besides; the refusal, if there is one."""
        store, meter = self._store, self._meter

        def prepare(view: CustomerView, mode: str) -> PreparedDecision:
            return view.prepare_holding({meter: quantity}, mode, route=self._route, spare=spare)

        decided, reply = await store.decide(self._view, prepare)
        decision = read_decision(decided, reply)
        if decision.allowed:
            slot = reply[1] // HOLD_SLOT_MS
            would_be_refused = decision.reason is not None  # Shadow mode holds it too.
            is_ahead = quantity > self._read - self._set_aside
            if self._settled or (would_be_refused and is_ahead):
                self._give_back({slot: quantity})
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

    async def _end(self, refusal: Decision) -> None:
        """Answer the client, if the app has not begun to; to the app it is as if the client had left."""
        self._refusal, self._charge_on = refusal, _NEVER
        self._give_back_more()
        if self._status:
            self._gone = True
            self.refuser.log.refused(
                refusal, self._route, self._view, self._scope, status=self._status, instance=None
            )
            return
        self._is_answered = True
        decided, view = self._decided, self._view
        scope, receive, send = self._scope, self.server_receive, self._send
        await self.refuser.refuse(refusal, self._route, decided, view, scope, receive, send, is_admitted=True)

    def _give_back_rest(self) -> None:
        """Give back what was set aside for more than came."""
        rest, self._set_aside = self._set_aside - self._read, self._read
        for slot, held in sorted(self._more.items(), reverse=True):
            part = min(rest, held)
            if part > 0:
                self._more[slot] -= part
                self._give_back({slot: part})
                rest -= part

    def _give_back_more(self) -> None:
        held, self._more = self._more, {}
        self._give_back(held)
        if self._settled and self._lane is not None:
            self._lane.live.discard(self)

    def _give_back(self, held: Mapping[int, int]) -> None:
        for settlement in self._returns(held):
            if self._lane is not None:
                self._store.settle(self._lane, settlement)

    def _returns(self, held: Mapping[int, int]) -> list[Settlement]:
        """Settlements that give back bytes, by the slot that they are held in."""
        meter = self._meter
        return [
            Settlement(self._view, held=HeldQuantities({meter: quantity}, (), slot))
            for slot, quantity in held.items()
            if quantity
        ]
