"""Quantities held now and captured later, where there is no request to hold them for."""

from __future__ import annotations

from asyncio import get_running_loop
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.store.holder import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from meterkit.decisions.decision import Decision
    from meterkit.store.settlement import Settlement
    from meterkit.store.store import Store
    from meterkit.store.used import Used
    from meterkit.store.views import CustomerView

__all__ = ["Reservation"]


class Reservation(Holder):
    """Quantities that are set aside while their ``async with`` block runs.

    What is captured counts; what is not captured when the block ends is given back. As long as the block runs
    the hold is renewed; if the process dies it vanishes within ten minutes.
    """

    def __init__(
        self,
        store: Store,
        view: CustomerView,
        quantities: Mapping[str, int],
        read: Callable[[object, str | None, str | None], Sequence[Used]],
    ) -> None:
        self._store = store
        self._view = view
        self._quantities = dict(quantities)
        self._read = read
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
            self._view, lambda view, mode: view.prepare_holding(self._quantities, mode)
        )
        self._decision = store.verdict(decided, reply)
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
            self._settled = True  # It was refused and holds nothing; usage is a fact all the same.
            for part in parts:
                await self._store.record(self._view, part, event_id=None)
            return
        await self._store.acknowledged(self._end(parts), self._lane)

    async def release(self) -> None:
        """Give back what is set aside; nothing is recorded, and rates count none of it. Repeated: a no-op."""
        if not self._settled:
            self._give_back()

    async def released(self) -> None:
        """As :meth:`release`, but waits as :meth:`capture` does: for whoever ends with it."""
        settlements = () if self._settled else self._end(())
        if settlements:
            with suppress(MeterkitError):  # It is logged: nobody is told otherwise either.
                await self._store.acknowledged(settlements, self._lane)

    def release_hold(self) -> None:
        """See :class:`meterkit.redis.hold_renewal.Renewable`."""
        self._give_back()
        # What is captured later is recorded all the same.
        self._lane, self._decided, self._settled = None, None, False

    def _give_back(self) -> None:
        lane, settlements = self._lane, self._end(())
        if lane is not None:
            for settlement in settlements:
                self._store.settle(lane, settlement)

    def _end(self, parts: Sequence[Used]) -> Sequence[Settlement]:
        """What gives back what is held, and records what was used: a settlement for each model of it."""
        self._settled = True
        lane, decided = self._lane, self._decided
        if lane is None or decided is None:
            return ()
        lane.live.discard(self)
        return self._settlements(decided, parts)
