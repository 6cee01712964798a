"""Owners of holds: a request being served, and ``kit.reserve`` for work outside requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import get_running_loop
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError
from meterkit.store import replies
from meterkit.store.prepared_decisions import MarkedDecision, prepare_holding, prepare_renewing, read_decision
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.settlement_parts import (
    NOTHING_USED,
    HeldQuantities,
    RateCorrection,
    RepeatMark,
    add_quantities,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from meterkit.decisions.decision import Decision
    from meterkit.redis.lane import Lane
    from meterkit.store.settlement_parts import UsedQuantities
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision

_RENEWAL_TRIES: Final = 2


class HoldOwner(ABC):
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
            decision = prepare_renewing(
                view, before.held, before.program.concurrency, before.program.costs, before.subjects
            )
            if before.digest:  # The mark of a request in flight moves with its holds.
                decision = MarkedDecision(decision, before.digest)
            try:
                reply: Any = await lane.ask(decision)
                if isinstance(reply, ReplyError):
                    reply = await lane.retry_call(decision, reply)
            except MeterkitError:
                return
            if reply[0] == replies.ALLOWED:
                slot = reply[1] // HOLD_SLOT_MS
                if not self._holds(before):
                    self._store.settle(lane, settle_decision(decision, slot, billed=False))
                    return
                self._store.settle(lane, settle_decision(before, self._slot, billed=False))
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
        lane = self._lane
        if lane is not None and lane.loop is get_running_loop():
            for settlement in self._take_gauge_out(meter):
                self._store.settle(lane, settlement)

    def _take_gauge_out(self, meter: str) -> list[Settlement]:
        """Settlements that give back what is held of a gauge; the caller has them applied."""
        holding = self._renewed or self._decided
        if holding is None or self._settled:
            return []
        held = dict(holding.held)
        quantity = held.pop(meter, 0)
        if not quantity:
            return []
        # Never asked for: it only says what is held.
        rest = prepare_renewing(
            holding.view, held, holding.program.concurrency, holding.program.costs, holding.subjects
        )
        self._renewed = MarkedDecision(rest, holding.digest) if holding.digest else rest
        return [Settlement(holding.view, held=HeldQuantities({meter: quantity}, (), self._slot))]

    def _held(self, decided: PreparedDecision) -> HeldQuantities:
        """The quantities of a decision that are still held."""
        holding = self._renewed or decided
        return HeldQuantities.of(holding, self._slot)

    def _settlements(
        self, decided: PreparedDecision, parts: Sequence[UsedQuantities], *, billed: bool = True
    ) -> list[Settlement]:
        """What gives back what a decision held, and records what was used of it in all.

        Rates count the sum of the parts at once, in place of what they counted at the decision.
        """
        rated: dict[str, int] = {}
        for part in parts:
            rated = add_quantities(rated, part.rated)
        first, *others = parts or (NOTHING_USED,)
        measured = first.rated if first.measured is None else first.measured
        correction = RateCorrection(decided.reserved, decided.program.rates, self._decided_ms)
        whole = Settlement(
            decided.view,
            held=self._held(decided),
            used=first._replace(rated=rated, measured=measured),
            correction=correction,
            mark=RepeatMark.of(decided, billed=billed),
        )
        mark = RepeatMark.of(decided, billed=False)
        behind = [
            Settlement(decided.view, used=part._replace(rated={}, measured=part.rated), mark=mark)
            for part in others
        ]
        # What remembers an idempotency key comes last: all before it are asked whether they are a repeat.
        return [*behind, whole] if mark else [whole, *behind]


class Reservation(HoldOwner):
    """Quantities that are set aside while their ``async with`` block runs.

    Captured quantities count; the others are given back when the block ends. As long as the block runs
    the hold is renewed; if the process dies it vanishes within ten minutes.
    """

    def __init__(
        self,
        store: Store,
        view: CustomerView,
        quantities: Mapping[str, int],
        read: Callable[[object, str | None, str | None], Sequence[UsedQuantities]],
        model: str | None = None,
    ) -> None:
        self._store = store
        self._view = view
        self._quantities = dict(quantities)
        self._read = read
        self._model = model
        self._decision: Decision | None = None
        self._lane = self._decided = self._renewed = None
        self._decided_ms = self._slot = 0
        self._settled = False

    @property
    def decision(self) -> Decision:
        """Whether the quantities are set aside; a refused reservation holds nothing.

        Raises:
            MeterkitError: before the block has begun.
        """
        if self._decision is None:
            raise MeterkitError(
                "a reservation is decided when its block begins: async with kit.reserve(…) as r"
            )
        return self._decision

    async def __aenter__(self) -> Self:
        if self._decision is not None:
            raise MeterkitError("a reservation serves one block; take another one")
        store = self._store
        if store.is_off:
            self._decision = self._view.undecided()
            return self
        decided, reply = await store.decide(
            self._view, lambda view, mode: prepare_holding(view, self._quantities, mode, model=self._model)
        )
        self._decision = read_decision(decided, reply)
        if self._decision.allowed:
            self._decided, self._decided_ms = decided, reply[1]
            self._slot = reply[1] // HOLD_SLOT_MS
            self._lane = await store.lane()
            self._lane.live.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._settled:
            self._give_back()

    async def capture(
        self, used: Mapping[str, int] | object, *, model: str | None = None, provider: str | None = None
    ) -> None:
        """Record the true quantities in place of the reserved ones; never denied, more than reserved or less.

        Returns once the store has acknowledged it, or after the store timeout: it is kept until it can be.

        Args:
            used: meter to the quantity that was used; or what :func:`meterkit.usage_of` can read, with which
                the meters that count no tokens are recorded as they were reserved.
            model: of the language model, for meters that ask for it (``where:``); overrules the object's.
            provider: likewise.

        Raises:
            QuantityError, UnknownMeterError: a quantity cannot be recorded.
            MeterkitError: the reservation is over, or the object says nothing of usage.
        """
        parts = self._read(used, model, provider)
        if self._settled or self._decision is None:
            raise MeterkitError("a reservation is captured or released once, within its block")
        if self._lane is not None and self._lane.loop is not get_running_loop():
            raise MeterkitError("a reservation is captured in the event loop that its block runs in")
        if self._decided is None:
            self._settled = True  # It was refused and holds nothing; usage is a fact in any case.
            for part in parts:
                await self._store.record(self._view, part, event_id=None)
            return
        await self._store.acknowledged(self._end(parts), self._lane)

    async def release(self) -> None:
        """Give back what is set aside; nothing is recorded, and rates count none of it. Repeated: a no-op."""
        if not self._settled:
            self._give_back()

    async def released(self) -> None:
        """As :meth:`release`, but waits as :meth:`capture` does, for a process that ends afterwards."""
        settlements = () if self._settled else self._end(())
        if settlements:
            with suppress(MeterkitError):  # It is logged; no caller receives it in other cases either.
                await self._store.acknowledged(settlements, self._lane)

    def release_hold(self) -> None:
        """See :class:`meterkit.redis.lane.Renewable`."""
        self._give_back()
        # A later capture is recorded nevertheless.
        self._lane, self._decided, self._settled = None, None, False

    def _give_back(self) -> None:
        lane, settlements = self._lane, self._end(())
        if lane is not None:
            for settlement in settlements:
                self._store.settle(lane, settlement)

    def _end(self, parts: Sequence[UsedQuantities]) -> Sequence[Settlement]:
        """What gives back what is held, and records what was used: a settlement for each model of it."""
        self._settled = True
        lane, decided = self._lane, self._decided
        if lane is None or decided is None:
            return ()
        lane.live.discard(self)
        return self._settlements(decided, parts)
