"""Owners of holds, which renew them: requests in progress, and ``kit.reserve`` outside of requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import get_running_loop
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from meterkit.decisions.compiled_decision import ModelPricing, compile_program
from meterkit.decisions.customer_state import keep_holds_only
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.decisions.subjects import renew_hold
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError
from meterkit.store import replies
from meterkit.store.prepared_decisions import prepare_holding, read_decision
from meterkit.store.request_idempotency import MarkedDecision
from meterkit.store.script_arguments import NO_HOLDS
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.settlement_parts import (
    NOTHING_USED,
    HeldQuantities,
    RateCorrection,
    RepeatMark,
    add_quantities,
)
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from meterkit.decisions.decision import Decision
    from meterkit.decisions.subjects import SubjectHold
    from meterkit.redis.lane import Lane
    from meterkit.store.settlement_parts import UsedQuantities
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_RENEWAL_TRIES: Final = 2


def prepare_renewing(
    view: CustomerView,
    held: Mapping[str, int],
    in_flight: tuple[str, ...],
    costs: Mapping[str, int] | None = None,
    subjects: Mapping[str, SubjectHold] = NO_HOLDS,
) -> PreparedDecision:
    """Decision that renews a hold at the same costs, even beyond the limits."""

    def prepare() -> PreparedDecision:
        demands = {name: Demand(needed=0, taken=held.get(name, 0)) for name in (*held, *in_flight)}
        kept, catalog = keep_holds_only(view.entitlements, demands, in_flight), view.catalog
        program = compile_program(kept, catalog, demands, prepaid=view.prepaid, at=ModelPricing(costs))
        if view.subjects is not None and subjects:
            program = program.with_subjects(tuple(renew_hold(kind, hold) for kind, hold in subjects.items()))
        return PreparedDecision(view, program, "h")

    if subjects:
        return prepare()  # Subjects seldom hold the same again.
    return view.memoize(("renew", *held.items(), *in_flight, *(costs or {}).items()), prepare)


class HoldOwner(ABC):
    """Owner of a hold, which expires in the store after two slots of five minutes unless it is renewed.

    Slots:
        _store, _lane: settle the hold; no lane: nothing is held.
        _decided: the decision that holds; ``_decided_ms``: its time by the store's clock.
        _renewed: the decision that renewed it; None: none.
        _slot: slot of the hold.
        _settled: whether the hold is released.

    Attributes:
        counts_later: see :class:`meterkit.redis.lane.Renewable`.
    """

    __slots__ = ("_decided", "_decided_ms", "_lane", "_renewed", "_settled", "_slot", "_store")

    _store: Store
    _lane: Lane | None
    _decided: PreparedDecision | None
    _decided_ms: int
    _renewed: PreparedDecision | None
    _slot: int
    _settled: bool

    counts_later: ClassVar[bool] = True

    @abstractmethod
    def release_hold(self) -> None:
        """Release the hold: the lane is about to stop."""

    @property
    def is_settled(self) -> bool:
        """Whether the hold is released."""
        return self._settled

    def is_due(self) -> bool:
        """Whether the hold is in another slot than the current one: that is over, or the clock went back."""
        return self._slot != self._store.now_ms() // HOLD_SLOT_MS

    async def renew(self) -> None:
        """Move the hold to the current slot.

        If the store is down, this is tried again before the hold expires.
        """
        lane, before = self._lane, self._renewed or self._decided
        if lane is None or before is None or self._settled or before.view.is_deleted:
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
                if not self._is_holding(before):
                    self._store.settle(lane, settle_decision(decision, slot, billed=False))
                    return
                self._store.settle(lane, settle_decision(before, self._slot, billed=False))
                self._renewed, self._slot = decision, slot
            if reply[0] != replies.STALE:
                return
            view = view.cache.learn(view, reply)

    def _is_holding(self, decided: PreparedDecision) -> bool:
        """Whether a decision still holds all of its quantities."""
        return not self._settled and decided is (self._renewed or self._decided)

    def release_gauge(self, meter: str) -> None:
        """Release the held quantity of a gauge whose level now includes it.

        From another event loop this does nothing: it is held until the request ends.
        """
        lane = self._lane
        if lane is not None and lane.loop is get_running_loop():
            for settlement in self._detach_gauge(meter):
                self._store.settle(lane, settlement)

    def _detach_gauge(self, meter: str) -> list[Settlement]:
        """Settlements that release the held quantity of a gauge, for the caller to send."""
        holding = self._renewed or self._decided
        if holding is None or self._settled:
            return []
        held = dict(holding.held)
        quantity = held.pop(meter, 0)
        if not quantity:
            return []
        # Never sent: it only lists the held quantities.
        rest = prepare_renewing(
            holding.view, held, holding.program.concurrency, holding.program.costs, holding.subjects
        )
        self._renewed = MarkedDecision(rest, holding.digest) if holding.digest else rest
        return [Settlement(holding.view, held=HeldQuantities({meter: quantity}, (), self._slot))]

    def _current_hold(self, decided: PreparedDecision) -> HeldQuantities:
        """Quantities of a decision that are still held."""
        return HeldQuantities.of(self._renewed or decided, self._slot)

    def _build_settlements(
        self,
        decided: PreparedDecision,
        parts: Sequence[UsedQuantities],
        *,
        billed: bool = True,
        keeps_rates: bool = False,
    ) -> list[Settlement]:
        """Settlements that release a decision's hold and record its usage.

        Rates count the sum of the parts at once, instead of their counts at the decision; where a job of a
        provider has the hold, the customer's rates keep these counts, too.
        """
        first, *others = parts or (NOTHING_USED,)
        rated = first.rated
        for part in others:
            rated = add_quantities(rated, part.rated)
        measured = first.rated if first.measured is None else first.measured
        corrected = frozenset[str]() if keeps_rates else decided.program.rates
        correction = RateCorrection(decided.reserved, corrected, self._decided_ms)
        whole = Settlement(
            decided.view,
            held=self._current_hold(decided),
            used=first._replace(rated=rated, measured=measured),
            correction=correction,
            mark=RepeatMark.of(decided, billed=billed),
        )
        mark = RepeatMark.of(decided, billed=False)
        behind = [
            Settlement(decided.view, used=part._replace(rated={}, measured=part.rated), mark=mark)
            for part in others
        ]
        # The one that stores the idempotency key comes last: those before it would be repeats otherwise.
        return [*behind, whole] if mark else [whole, *behind]


class Reservation(HoldOwner):
    """Quantities that are reserved while their ``async with`` block runs.

    Captured quantities count; the others are released when the block ends. As long as the block runs the
    hold is renewed; if the process dies, it expires within ten minutes.
    """

    def __init__(
        self,
        store: Store,
        view: CustomerView,
        quantities: Mapping[str, int],
        read: Callable[
            [object, str | None, str | None], Awaitable[tuple[Sequence[UsedQuantities], Sequence[Settlement]]]
        ],
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
        self._begun = self._settled = False

    @property
    def decision(self) -> Decision:
        """Whether the quantities are reserved; a refused reservation holds nothing.

        Raises:
            MeterkitError: before the block has begun.
        """
        if self._decision is None:
            raise MeterkitError(
                "a reservation is decided when its block begins: async with kit.reserve(…) as r"
            )
        return self._decision

    async def __aenter__(self) -> Self:
        if self._begun:
            raise MeterkitError("a reservation serves one block; take another one")
        self._begun, store = True, self._store
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
            if self._settled:  # A signal has interrupted the thread that waits for the decision.
                self._give_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._settled:
            self._give_back()

    async def capture(
        self, used: Mapping[str, int] | object, *, model: str | None = None, provider: str | None = None
    ) -> None:
        """Record the true quantities instead of the reserved ones; never denied, even beyond them.

        Returns when the store has acknowledged them, or after the store timeout: they are sent until it does.

        Args:
            used: meter to used quantity; or an object that :func:`meterkit.usage_of` can read: then meters
                that count no tokens are recorded as reserved, and a job of a provider counts once.
            model: of the language model, for meters with ``where:``; overrides the object's.
            provider: likewise.

        Raises:
            QuantityError, UnknownMeterError: a quantity cannot be recorded.
            MeterkitError: the reservation is over, or the object says nothing of usage.
        """
        self._check_capture()
        parts, jobs = await self._read(used, model, provider)
        self._check_capture()  # Another task may have captured it while a job was looked up.
        if self._decided is None:
            self._settled = True  # It was refused and holds nothing; usage is a fact in any case.
            settlements: Sequence[Settlement] = [Settlement(self._view, used=part) for part in parts]
        else:
            settlements = self._end(parts)
        if not self._store.is_off:
            await self._store.settle_acknowledged([*settlements, *jobs], self._lane)

    def _check_capture(self) -> None:
        if self._settled or self._decision is None:
            raise MeterkitError("a reservation is captured or released once, within its block")
        if self._lane is not None and self._lane.loop is not get_running_loop():
            raise MeterkitError("a reservation is captured in the event loop that its block runs in")

    async def release(self) -> None:
        """Release the reservation: nothing is recorded, and rates count none of it. Idempotent."""
        if not self._settled:
            self._give_back()

    async def released(self) -> None:
        """Release and wait as :meth:`capture` does, for a process that ends afterwards."""
        settlements = () if self._settled else self._end(())
        if settlements:
            with suppress(MeterkitError):  # It is logged, as after `release`.
                await self._store.settle_acknowledged(settlements, self._lane)

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
        """End the hold; return settlements that release it and record the usage, one for each model."""
        self._settled = True
        lane, decided = self._lane, self._decided
        if lane is None or decided is None:
            return ()
        lane.live.discard(self)
        return self._build_settlements(decided, parts)
