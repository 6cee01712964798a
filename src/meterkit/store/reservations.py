"""Quantities held now and captured later, where there is no request to hold them for."""

from __future__ import annotations

from asyncio import get_running_loop
from typing import TYPE_CHECKING, Final, Self

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.store.used import Used

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from meterkit.decisions.decision import Decision
    from meterkit.redis.lane import Lane
    from meterkit.store.accounts import Account, DecideCall
    from meterkit.store.store import Store

__all__ = ["Reservation"]

_NOTHING: Final = Used(recorded={}, rated={}, dimensions={})


class Reservation:
    """Quantities that are set aside while their ``async with`` block runs.

    What is captured counts; what is not captured when the block ends is given back. As long as the block runs
    the hold is renewed; if the process dies it vanishes within ten minutes.
    """

    def __init__(
        self,
        store: Store,
        account: Account,
        quantities: Mapping[str, int],
        read: Callable[[object, str | None, str | None], Sequence[Used]],
    ) -> None:
        self._store = store
        self._account = account
        self._quantities = dict(quantities)
        self._read = read
        self._lane: Lane | None = None
        self._call: DecideCall | None = None
        self._decision: Decision | None = None
        self._decided_ms = 0
        self._slot = 0
        self._renewed: DecideCall | None = None
        self._is_over = False

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
        store, account = self._store, self._account
        if store.is_off:
            self._decision = account.passage()
            return self
        call, reply = await store.decide(lambda mode: account.view.call_holding(self._quantities, mode=mode))
        self._decision = store.decision(call, reply)
        if self._decision.allowed:
            self._call, self._decided_ms = call, reply[1]
            self._slot = reply[1] // HOLD_SLOT_MS
            self._lane = await store.lane()
            self._lane.live.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_over:
            self._end((), None)

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
        if self._is_over or self._decision is None:
            raise MeterkitError("a reservation is captured or released once, within its block")
        if self._lane is not None and self._lane.loop is not get_running_loop():
            raise MeterkitError("a reservation is captured in the event loop that its block runs in")
        if self._call is None:
            self._is_over = True  # It was refused and holds nothing; usage is a fact all the same.
            for part in parts:
                await self._store.record(self._account, part, event_id=None)
            return
        await self._store.acknowledged(lambda waiter: self._end(parts, waiter))

    async def release(self) -> None:
        """Give back what is set aside; nothing is recorded, and rates count none of it. Repeated: a no-op."""
        if not self._is_over:
            self._end((), None)

    def _end(self, parts: Sequence[Used], waiter: asyncio.Future[None] | None) -> None:
        self._is_over = True
        lane, call = self._lane, self._call
        if lane is None or call is None:
            return
        lane.live.discard(self)
        seen: dict[str, int] = {}
        for part in parts:
            for meter, quantity in part.rated.items():
                seen[meter] = min(seen.get(meter, 0) + quantity, QUANTITY_MAX)
        first = parts[0] if parts else _NOTHING
        self._store.capture(
            lane,
            call,
            self._decided_ms,
            recorded=first.recorded,
            seen=seen,
            dimensions=first.dimensions,
            measured=first.rated,
            renewed=None if self._renewed is None else (self._renewed, self._slot),
            waiter=waiter,
        )
        for part in parts[1:]:
            self._store.post(
                lane, self._account, part.recorded, rated={}, dimensions=part.dimensions, measured=part.rated
            )

    def let_go(self) -> None:
        """See :class:`meterkit.redis.renewal.Holder`."""
        if self._call is not None and not self._is_over:
            self._end((), None)
            # What is captured later is recorded all the same.
            self._lane, self._call, self._is_over = None, None, False

    def outlives_hold(self) -> bool:
        """See :class:`meterkit.redis.renewal.Holder`."""
        return self._slot < self._store.now_ms() // HOLD_SLOT_MS

    async def renew(self) -> None:
        """See :class:`meterkit.redis.renewal.Holder`."""
        lane, held = self._lane, self._renewed or self._call
        if lane is None or held is None or self._is_over:
            return
        renewed = await self._store.renew(lane, self._account, held, self._slot, lambda: self._is_over)
        if renewed is not None:
            self._renewed, self._slot = renewed
