"""Who owns what an allowed decision holds: a request that is served, or a reservation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import get_running_loop
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError
from meterkit.store import replies
from meterkit.store.held import Correction, Held, Mark
from meterkit.store.marked import MarkedDecision
from meterkit.store.settlement import Settlement, settlement_of
from meterkit.store.used import NOTHING_USED, add

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.redis.lane import Lane
    from meterkit.store.store import Store
    from meterkit.store.used import Used
    from meterkit.store.views import PreparedDecision

__all__ = ["Holder"]

_RENEWAL_TRIES: Final = 2


class Holder(ABC):
    """Holds vanish from the store after two slots of five minutes; a live holder's are moved to the new slot.

    Slots:
        _store, _lane: where it is settled; no lane: nothing is held.
        _decided: the decision that holds, and ``_decided_ms`` when it was made, by the store's clock.
        _renewed: the one that holds in its place by now, or None.
        _slot: that it holds in.
        _settled: whether nothing is held any more.
    """

    __slots__ = ("_decided", "_decided_ms", "_lane", "_renewed", "_settled", "_slot", "_store")

    _store: Store
    _lane: Lane | None
    _decided: PreparedDecision | None
    _decided_ms: int
    _renewed: PreparedDecision | None
    _slot: int
    _settled: bool

    @abstractmethod
    def release_hold(self) -> None:
        """Give back what is held: the lane is about to stop."""

    def is_due(self) -> bool:
        """Whether what it holds is in a slot that is over."""
        return self._slot < self._store.now_ms() // HOLD_SLOT_MS

    async def renew(self) -> None:
        """Hold the same in the slot of now, and give back what is held in an earlier one.

        Where the store cannot be asked it is tried again, before the holds vanish.
        """
        lane, before = self._lane, self._renewed or self._decided
        if lane is None or before is None or self._settled:
            return
        view = before.view.cache.newest(before.view)
        for _ in range(_RENEWAL_TRIES):
            decision = view.prepare_renewing(before.held, before.program.concurrency)
            if before.digest:  # The mark of a request in flight moves with its holds.
                decision = MarkedDecision(decision, before.digest)
            try:
                reply: Any = await lane.ask(decision)
                if isinstance(reply, ReplyError):
                    reply = await lane.again(decision, reply)
            except MeterkitError:
                return
            if reply[0] == replies.ALLOWED:
                slot = reply[1] // HOLD_SLOT_MS
                if not self._holds(before):
                    self._store.settle(lane, settlement_of(decision, slot, billed=False))
                    return
                self._store.settle(lane, settlement_of(before, self._slot, billed=False))
                self._renewed, self._slot = decision, slot
            if reply[0] != replies.STALE:
                return
            view = view.cache.learn(view, reply)

    def _holds(self, decided: PreparedDecision) -> bool:
        """Whether what a decision held is held by now; not if some of it was given back meanwhile."""
        return not self._settled and decided is (self._renewed or self._decided)

    def give_back_gauge(self, meter: str) -> None:
        """Give back what is held of a gauge: its level says it by now.

        Not from another event loop than the request's: there it is held until the request ends.
        """
        lane, holding = self._lane, self._renewed or self._decided
        if lane is None or holding is None or self._settled or lane.loop is not get_running_loop():
            return
        held = dict(holding.held)
        quantity = held.pop(meter, 0)
        if quantity:
            self._store.settle(lane, Settlement(holding.view, held=Held({meter: quantity}, (), self._slot)))
            # Never asked for: it only says what is held.
            rest = holding.view.prepare_renewing(held, holding.program.concurrency)
            self._renewed = MarkedDecision(rest, holding.digest) if holding.digest else rest

    def _held(self, decided: PreparedDecision) -> Held:
        """What is held by now of what a decision held."""
        holding = self._renewed or decided
        return Held.of(holding, self._slot)

    def _settlements(
        self, decided: PreparedDecision, parts: Sequence[Used], *, billed: bool = True
    ) -> list[Settlement]:
        """What gives back what a decision held, and records what was used of it in all.

        Rates count the sum of the parts at once, in place of what they counted at the decision.
        """
        rated: dict[str, int] = {}
        for part in parts:
            rated = add(rated, part.rated)
        first, *others = parts or (NOTHING_USED,)
        measured = first.rated if first.measured is None else first.measured
        correction = Correction(decided.reserved, decided.program.rates, self._decided_ms)
        whole = Settlement(
            decided.view,
            held=self._held(decided),
            used=first._replace(rated=rated, measured=measured),
            correction=correction,
            mark=Mark.of(decided, billed=billed),
        )
        mark = Mark.of(decided, billed=False)
        behind = [
            Settlement(decided.view, used=part._replace(rated={}, measured=part.rated), mark=mark)
            for part in others
        ]
        # What remembers an idempotency key comes last: all before it are asked whether they are a repeat.
        return [*behind, whole] if mark else [whole, *behind]
