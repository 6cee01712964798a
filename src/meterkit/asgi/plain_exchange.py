"""Plain request between app and server: it is only decided and counted, as nearly every request is."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Final

from meterkit.asgi.exchange import Exchange, mark_coroutine_function
from meterkit.asgi.request_outcome import BAD_REQUEST
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.store.settlement import settle_decision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from starlette.types import Message, Scope, Send

    from meterkit.catalog import Route
    from meterkit.redis.lane import Lane
    from meterkit.store.store import Store
    from meterkit.store.views import PreparedDecision


_unfolding: Final = RLock()
"""Held for some stores, never while an app's code runs: the event loop waits for it, too."""


class PlainExchange(Exchange):
    """Request that the store allows, whose body and response are not read.

    It sets a few slots and serves an answer of one piece. Whatever else happens (the app streams, fails or
    records usage, the client leaves) sets the others first: from then on it is like any :class:`Exchange`.

    Slots:
        _is_folded: whether the others are unset.
    """

    __slots__ = ("_is_folded",)

    _lane: Lane
    _decided: PreparedDecision

    def __init__(
        self,
        store: Store,
        lane: Lane,
        route: Route,
        decided: PreparedDecision,
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
        # What other threads, and finalizers within `unfold`, may set at any time.
        self._recorded = self._llm = None
        self._nothing_to_settle = not decided.settles
        self._is_folded = True
        if decided.program.holds:
            lane.live.add(self)
        if store.mark_span is not None:
            store.mark_span(decided.view.effective.plan.key, None, False)

    def unfold(self) -> None:
        """Set the other slots. Idempotent, in any thread."""
        if self._is_folded:
            with _unfolding:
                if self._is_folded:
                    self._begin(self._decided.view)
                    self._is_folded = False

    async def receive(self) -> Message:
        """See :meth:`Exchange.receive`."""
        message = await self.server_receive()
        if message["type"] != "http.disconnect":
            self._has_request = not message.get("more_body", False)
        elif not (self._ending or self._complete):
            self.unfold()
            self._note_disconnect()
        return message

    @mark_coroutine_function
    def send(self, message: Message) -> Awaitable[None]:
        """See :meth:`Exchange.send`."""
        if self._is_folded:
            kind = message["type"]
            if kind == "http.response.start":
                if "trailers" not in message:
                    self._status = message["status"]
                    fields = self.limit_fields
                    if fields is not None:
                        headers = message.get("headers", ())
                        headers = fields.add(headers, self._decided, self._reply, self._scope["headers"])
                        message = {**message, "headers": headers}
                    return self._send(message)
            elif kind == "http.response.body" and not message.get("more_body", False):
                if not self._nothing_to_settle:
                    return self._send_last(message)
                self._complete = True
                return self._send(message)
            self.unfold()
        return super().send(message)

    async def _send_last(self, message: Message) -> None:
        """See :meth:`Exchange._send_last`; nothing is read."""
        self._ending = True
        try:
            await self._send(message)
        except BaseException as error:
            self.unfold()
            self._note_unsent(error, message, last=True)
            raise
        self._complete = True
        if not self._is_folded:
            self._note_sent_last(message)
        self.settle(None)

    def settle(self, error: BaseException | None) -> None:
        """See :meth:`Exchange.settle`."""
        if self._settled:
            return
        if error is None and self._complete and self._status < BAD_REQUEST and self._store.tallies is None:
            # Set before reading: a thread that adds usage meanwhile settles it itself once it sees this.
            self._settled = True
            if self._is_folded:
                decided, lane = self._decided, self._lane
                if self._nothing_to_settle:
                    return
                lane.live.discard(self)
                slot, billed = self._reply[1] // HOLD_SLOT_MS, "success" in self._route.charge_on
                # As settle_decision has it, without a call: nearly every request ends here.
                settlement = decided.settlements.get(billed)
                if settlement is None or settlement.held.slot != slot:
                    settlement = settle_decision(decided, slot, billed=billed)
                if decided.is_allotted and lane.allotments is not None:
                    lane.allotments.settle(settlement)
                else:
                    lane.settle(settlement)
                return
            self._settled = False
        self.unfold()
        super().settle(error)

    def is_due(self) -> bool:
        """See :meth:`HoldOwner.is_due`."""
        self.unfold()
        return super().is_due()

    async def renew(self) -> None:
        """See :meth:`HoldOwner.renew`."""
        self.unfold()
        await super().renew()
