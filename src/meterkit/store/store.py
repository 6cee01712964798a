"""The store: decisions and settlements, from any event loop, over one lane each."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions import verdict
from meterkit.decisions.keys import Keys
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis import scripts
from meterkit.redis.connection import ReplyError
from meterkit.redis.links import Links
from meterkit.redis.moved_clock import not_past
from meterkit.store.accounts import Accounts
from meterkit.store.endings import Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.decision import Decision
    from meterkit.decisions.program import Demand
    from meterkit.redis.lane import Lane
    from meterkit.redis.scripts import Script
    from meterkit.redis.url import Address
    from meterkit.store.accounts import Account, DecideCall
    from meterkit.store.used import Used

__all__ = ["Store"]

_logger = logging.getLogger("meterkit.store")

_ALLOWED: Final = 0
_REFUSED: Final = 1
_STALE: Final = 2
_CLOCK: Final = 3

_RENEWAL_TRIES: Final = 2
_NOTHING: Final[dict[str, int]] = {}
_NO_DIMENSIONS: Final[dict[str, str]] = {}


class Store:
    """Where decisions are made and usage is counted; ``start``, ``lane``, ``stop``, ``admin`` are its links'.

    Args:
        address: where Redis is; ``memory`` for the store within this process.
        catalog: what is sold.
        prefix: the first part of every key.
        shards: how many shards there are; fixed once a store is in use.
        timeout_s, start_timeout_s: how long a request may wait for the store, and how long starting tries.
        seal_delay_ms: how long pending usage waits before it is sealed.
        deliver_without_persistence: whether usage may be delivered from a store that forgets it at a restart.
        clock: seconds since the epoch. Any other than the system's replaces the server's too: for tests.
    """

    def __init__(
        self,
        address: Address,
        catalog: Catalog,
        *,
        prefix: str = "mk",
        shards: int = 128,
        timeout_s: float = 0.25,
        start_timeout_s: float = 5.0,
        seal_delay_ms: int = 300_000,
        deliver_without_persistence: bool = False,
        clock: Callable[[], float] = time,
    ) -> None:
        self.address = address
        self.keys = Keys(prefix, shards)
        self.deliver_without_persistence = deliver_without_persistence
        if clock is not time and address.kind != "memory":
            clock = not_past(clock, str(address))
        self.clock = clock
        self._timeout_s = timeout_s
        self._seal_delay_ms = seal_delay_ms
        self.scripts = {name: self._script(name) for name in scripts.NAMES}
        self.links = links = Links(
            address,
            self.keys,
            self.scripts,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            clock=clock,
        )
        self.lanes = links.lanes
        self.start, self.lane, self.stop, self.admin = links.start, links.lane, links.stop, links.admin
        self.on_low: Callable[[str, str], None] = lambda _customer, _credit: None
        self.use(catalog)

    def use(self, catalog: Catalog) -> None:
        """Decide by this catalog from now on."""
        self.accounts = Accounts(
            catalog,
            keys=self.keys,
            decide=self.scripts["decide"],
            settle=self.scripts["settle"],
            seal_delay_ms=self._seal_delay_ms,
            now_ms=self.now_ms,
            on_orphan=self._release,
            on_low=self._lowered,
        )

    @property
    def catalog(self) -> Catalog:
        """What is sold."""
        return self.accounts.catalog

    @property
    def is_off(self) -> bool:
        """Whether nothing is decided or counted."""
        return self.accounts.catalog.enforcement == "off"

    def now_ms(self) -> int:
        """This process's clock."""
        return int(self.clock() * 1000)

    async def decide(
        self, make: Callable[[str], DecideCall], *, mode: Literal["d", "c"] = "d"
    ) -> tuple[DecideCall, Any]:
        """Ask for a decision; see :meth:`conclude`."""
        lane = await self.lane()
        call = make(mode)
        return await self.conclude(lane, call, make, await lane.ask(call), mode=mode)

    async def conclude(
        self,
        lane: Lane,
        call: DecideCall,
        make: Callable[[str], DecideCall],
        reply: Any,
        *,
        mode: Literal["d", "c"] = "d",
    ) -> tuple[DecideCall, Any]:
        """From the first reply to the last: with the newest state, and with scripts that were lost.

        Args:
            lane: the running event loop's.
            call: what was asked.
            make: packs the call anew, in a mode of the decision script.
            reply: what came back.
            mode: ``c`` looks only.

        Returns:
            The call that was answered, and its reply: allowed, refused, or the rev of a preset confirmed.

        Raises:
            StoreError: the store cannot decide.
        """
        stale = 0
        while True:
            if isinstance(reply, ReplyError):
                reply = await lane.again(call, reply)
            if reply[0] == _CLOCK:
                raise StoreError(
                    f"this host's clock and the store's differ by more than 60 s (store: {reply[1]} ms); "
                    "nothing is decided until they agree",
                    executed=False,
                )
            if reply[0] != _STALE:
                return call, reply
            call.account.take(reply)
            stale += 1
            call = make("f" if stale > 1 and mode == "d" else mode)
            if stale > 1 and call.preset is not None:
                return call, [_REFUSED, reply[1]]
            reply = await lane.ask(call)

    def decision(self, call: DecideCall, reply: Any) -> Decision:
        """What a concluded reply says."""
        if call.preset is not None:
            return call.preset
        end_ms = call.period_end_ms(reply[1])
        if reply[0] == _ALLOWED:
            decision = verdict.allowed(call.program, reply, end_ms)
        else:
            decision = verdict.refused(call.exact(), reply, end_ms)
        decision = replace(decision, customer=call.account.customer, plan=call.standing.plan.key)
        return replace(call.foregone or decision, allowed=True, shadow=True) if call.shadow else decision

    async def check(self, account: Account, demands: Mapping[str, Demand]) -> Decision:
        """Look only: whether a demand would be allowed now."""
        if self.is_off:
            return account.passage()
        call, reply = await self.decide(lambda mode: account.view.call_for(demands, mode=mode), mode="c")
        return self.decision(call, reply)

    async def consume(self, account: Account, demands: Mapping[str, Demand]) -> Decision:
        """Count now, or be refused; returns once it is recorded."""
        if self.is_off:
            return account.passage()
        call, reply = await self.decide(lambda mode: account.view.call_for(demands, mode=mode))
        decision = self.decision(call, reply)
        program = call.program
        if decision.allowed and program.settles:
            ending = Ending(
                account,
                held=program.held,
                flights=program.flights,
                recorded=program.settled,
                rated=_NOTHING,
                slot=reply[1] // HOLD_SLOT_MS,
            )
            await self._settle_and_wait(ending)
        return decision

    async def record(
        self, account: Account, used: Used, *, event_id: str | None, occurred_ms: int | None = None
    ) -> None:
        """Count after the fact, never denied; returns once it is recorded, or kept until it can be."""
        if self.is_off:
            return
        key = None if event_id is None else self.keys.event(account.keys.shard, account.customer, event_id)
        ending = Ending(
            account,
            held=_NOTHING,
            flights=(),
            recorded=used.recorded,
            rated=used.rated,
            slot=0,
            dimensions=used.dimensions,
            measured=used.rated,
            event_key=key,
            occurred_ms=occurred_ms,
        )
        await self._settle_and_wait(ending)

    async def _settle_and_wait(self, ending: Ending) -> None:
        lane = await self.lane()

        def settle(waiter: asyncio.Future[None]) -> None:
            ending.waiter = waiter
            lane.streams[ending.account.keys.shard].settle(ending)

        await self.acknowledged(settle)

    async def acknowledged(self, settle: Callable[[asyncio.Future[None]], None]) -> None:
        """Settle, and wait for the store's word; where that takes too long, go on without it."""
        waiter = asyncio.get_running_loop().create_future()
        settle(waiter)
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter
        except TimeoutError:
            _logger.warning("the store has not acknowledged what was recorded yet; it is kept and sent again")

    def _release(self, call: DecideCall, decided_ms: int) -> None:
        lane = self.lanes.get(asyncio.get_running_loop())
        if lane is None:
            return
        if call.reserved:
            self.capture(lane, call, decided_ms, recorded=_NOTHING, seen=_NOTHING)
        else:
            self.end(lane, call, decided_ms // HOLD_SLOT_MS, billed=False)

    def end(self, lane: Lane, call: DecideCall, slot: int, *, billed: bool) -> None:
        """Give back what an allowed decision held, and record what it came to: all of it, or nothing."""
        ending: Ending | None = call.endings.get(billed)
        if ending is None or ending.slot != slot:
            program = call.program
            ending = call.endings[billed] = Ending(
                call.account,
                held=call.held,
                flights=program.flights,
                recorded=call.consumed if billed else _NOTHING,
                rated=_NOTHING,
                slot=slot,
            )
        lane.streams[call.account.keys.shard].settle(ending)

    async def renew(
        self, lane: Lane, account: Account, before: DecideCall, slot: int, is_over: Callable[[], bool]
    ) -> tuple[DecideCall, int] | None:
        """Hold anew, in the slot of now, what another call holds in an earlier one, and give that back.

        Returns:
            The call that holds now, and its slot; None where it ``is_over`` by then, or the store could not
            be asked: it is tried again before the holds vanish.
        """
        for _ in range(_RENEWAL_TRIES):
            call = account.view.renewal(before.held, before.program.flights)
            try:
                reply: Any = await lane.ask(call)
                if isinstance(reply, ReplyError):
                    reply = await lane.again(call, reply)
            except MeterkitError:
                return None
            if reply[0] == _ALLOWED:
                now_slot = reply[1] // HOLD_SLOT_MS
                if is_over():
                    self.end(lane, call, now_slot, billed=False)
                    return None
                self.end(lane, before, slot, billed=False)
                return call, now_slot
            if reply[0] != _STALE:
                return None
            account.take(reply)
        return None

    def post(
        self,
        lane: Lane,
        account: Account,
        recorded: Mapping[str, int],
        *,
        rated: Mapping[str, int],
        dimensions: Mapping[str, str] = _NO_DIMENSIONS,
        measured: Mapping[str, int] | None = None,
    ) -> None:
        """Record, and count into rates, without waiting.

        Args:
            lane: the running event loop's.
            account: whose usage it is.
            recorded: meter to the quantity that is recorded.
            rated: meter to the quantity that its rates count.
            dimensions: of what was ``measured``.
            measured: meter to a quantity that meters derived from it count; default: what is recorded.
        """
        ending = Ending(
            account,
            held=_NOTHING,
            flights=(),
            recorded=recorded,
            rated=rated,
            slot=0,
            dimensions=dimensions,
            measured=recorded if measured is None else measured,
        )
        lane.streams[account.keys.shard].settle(ending)

    def capture(
        self,
        lane: Lane,
        call: DecideCall,
        decided_ms: int,
        *,
        recorded: Mapping[str, int],
        seen: Mapping[str, int],
        dimensions: Mapping[str, str] = _NO_DIMENSIONS,
        measured: Mapping[str, int] = _NOTHING,
        renewed: tuple[DecideCall, int] | None = None,
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        """Give back what a call held, and correct what it reserved, now that the true quantities are known.

        Args:
            lane: the running event loop's.
            call: what was decided; see :meth:`~meterkit.store.accounts.Account.call_reserving`.
            decided_ms: when, by the reply.
            recorded: meter to the quantity that is recorded.
            seen: meter to the quantity that was used, billed or not: the windows that the reservation was
                counted in are corrected by it.
            dimensions: of what was ``measured``.
            measured: meter to the part of ``seen`` that the dimensions are of.
            renewed: the call that holds by now what this one held, and its slot.
            waiter: done once the store has acknowledged.
        """
        holder, slot = renewed or (call, decided_ms // HOLD_SLOT_MS)
        ending = Ending(
            call.account,
            held=holder.held,
            flights=holder.program.flights,
            recorded=recorded,
            rated=seen,
            reserved=call.reserved,
            decided=call.program.rates,
            counted_ms=decided_ms,
            slot=slot,
            dimensions=dimensions,
            measured=measured,
            waiter=waiter,
        )
        lane.streams[call.account.keys.shard].settle(ending)

    def _lowered(self, customer: str, credit: str) -> None:
        self.on_low(customer, credit)

    def _script(self, name: str) -> Script:
        return scripts.load(
            name,
            clock="server" if self.clock is time else "caller",
            dialect="fake" if self.address.kind == "memory" else "server",
        )
