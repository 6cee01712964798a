"""The store: decisions and settlements, from any event loop, over one lane each."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from importlib import import_module
from time import time
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.errors import SettingsError, StoreError
from meterkit.store import connection, scripts, verdict
from meterkit.store.accounts import HOLD_SLOT_MS, Accounts
from meterkit.store.admin import Admin
from meterkit.store.connection import ReplyError
from meterkit.store.embedded import EmbeddedServer
from meterkit.store.endings import Ending
from meterkit.store.keys import Keys
from meterkit.store.lane import Lane
from meterkit.store.meta import agree
from meterkit.store.url import Address

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from meterkit.catalog import Catalog
    from meterkit.store.accounts import Account, DecideCall
    from meterkit.store.decision import Decision
    from meterkit.store.lane import Link
    from meterkit.store.program import Demand, Program
    from meterkit.store.scripts import Script

__all__ = ["Store"]

_logger = logging.getLogger("meterkit.store")

_ALLOWED: Final = 0
_REFUSED: Final = 1
_STALE: Final = 2
_CLOCK: Final = 3
_DRAIN_S: Final = 5.0
_RENEWAL_TRIES: Final = 2
_NOTHING: Final[dict[str, int]] = {}


class Store:
    """Where decisions are made and usage is counted.

    Args:
        address: where Redis is; ``memory`` for the store within this process.
        catalog: what is sold.
        prefix: the first part of every key.
        shards: how many shards there are; fixed once a store is in use.
        timeout_s: how long a request may wait for the store.
        seal_delay_ms: how long pending usage waits before it is sealed.
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
        seal_delay_ms: int = 300_000,
        clock: Callable[[], float] = time,
    ) -> None:
        self.address = address
        self.keys = Keys(prefix, shards)
        self.clock = clock
        self._timeout_s = timeout_s
        self._seal_delay_ms = seal_delay_ms
        self.scripts = {name: self._script(name) for name in scripts.NAMES}
        self._server = EmbeddedServer(address.path) if address.kind == "embedded" else None
        self.lanes: dict[asyncio.AbstractEventLoop, Lane] = {}
        self._admins: dict[asyncio.AbstractEventLoop, Admin] = {}
        self._guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}
        self._forked: list[object] = []
        self.use(catalog)
        _stores.add(self)

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
        )

    @property
    def catalog(self) -> Catalog:
        """What is sold."""
        return self.accounts.catalog

    # Life.

    async def start(self) -> Lane:
        """Connect for the running event loop; once, however often it is called.

        Raises:
            SettingsError: the store belongs to another number of shards or to a newer release, or the
                embedded server cannot be run.
        """
        loop = asyncio.get_running_loop()
        lane = self.lanes.get(loop)
        if lane is None:
            lane = self.lanes[loop] = Lane(
                self._connect,
                keys=self.keys,
                scripts=tuple(self.scripts.values()),
                retire=self.scripts["retire"],
            )
            await self._keep(loop)
            try:
                await lane.start()
            except SettingsError:
                await self.stop()
                raise
        return lane

    async def stop(self) -> None:
        """Settle what is left and close what belongs to the running event loop."""
        guard = self._guards.pop(asyncio.get_running_loop(), None)
        if guard is not None:
            await guard.aclose()

    async def admin(self) -> Admin:
        """The running event loop's client for administration."""
        loop = asyncio.get_running_loop()
        admin = self._admins.get(loop)
        if admin is None:
            await self._keep(loop)
            address = await self._reachable()
            admin = self._admins[loop] = Admin(address, timeout_s=self._timeout_s, clock=self.clock)
        return admin

    def now_ms(self) -> int:
        """This process's clock."""
        return int(self.clock() * 1000)

    # Decisions and settlements.

    async def decide(
        self, make: Callable[[str], DecideCall], *, mode: Literal["d", "c"] = "d"
    ) -> tuple[DecideCall, Any]:
        """Ask for a decision; see :meth:`conclude`."""
        lane = await self.start()
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
            return verdict.allowed(call.program, reply, end_ms)
        return verdict.refused(call.program, reply, end_ms)

    async def check(self, account: Account, demands: Mapping[str, Demand]) -> Decision:
        """Look only: whether a demand would be allowed now."""
        call, reply = await self.decide(lambda mode: account.call_for(demands, mode=mode), mode="c")
        return self.decision(call, reply)

    async def consume(self, account: Account, demands: Mapping[str, Demand]) -> Decision:
        """Count now, or be refused; returns once it is recorded."""
        call, reply = await self.decide(lambda mode: account.call_for(demands, mode=mode))
        decision = self.decision(call, reply)
        program = call.program
        if decision.allowed and program.settles:
            await self._settle_and_wait(
                account,
                held=program.held,
                flights=program.flights,
                recorded=program.settled,
                slot=reply[1] // HOLD_SLOT_MS,
            )
        return decision

    async def record(self, account: Account, quantities: Mapping[str, int], *, event_id: str | None) -> None:
        """Count after the fact, never denied; returns once it is recorded, or kept until it can be."""
        key = None if event_id is None else self.keys.event(account.keys.shard, account.customer, event_id)
        await self._settle_and_wait(account, recorded=quantities, rated=quantities, event_key=key)

    async def _settle_and_wait(
        self,
        account: Account,
        *,
        recorded: Mapping[str, int],
        held: Mapping[str, int] | None = None,
        flights: tuple[str, ...] = (),
        rated: Mapping[str, int] | None = None,
        slot: int = 0,
        event_key: str | None = None,
    ) -> None:
        lane = await self.start()
        waiter = asyncio.get_running_loop().create_future()
        ending = Ending(
            account,
            held=held or {},
            flights=flights,
            recorded=recorded,
            rated=rated or {},
            slot=slot,
            event_key=event_key,
            waiter=waiter,
        )
        lane.settle(ending, account.keys.shard)
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter
        except TimeoutError:
            _logger.warning("the store has not acknowledged what was recorded yet; it is kept and sent again")

    def _release(self, call: DecideCall, slot: int) -> None:
        lane = self.lanes.get(asyncio.get_running_loop())
        if lane is not None:
            self.end(lane, call, slot, billed=False)

    def end(self, lane: Lane, call: DecideCall, slot: int, *, billed: bool) -> None:
        """Give back what an allowed decision held, and record what it came to: all of it, or nothing."""
        ending: Ending | None = call.endings.get(billed)
        if ending is None or ending.slot != slot:
            program = call.program
            ending = call.endings[billed] = Ending(
                call.account,
                held=program.held,
                flights=program.flights,
                recorded=program.settled if billed else _NOTHING,
                rated=_NOTHING,
                slot=slot,
                key=(program, billed),
            )
        lane.settle(ending, call.account.keys.shard)

    async def hold_on(self, lane: Lane, account: Account, program: Program) -> tuple[DecideCall, int] | None:
        """Hold again, in the slot of now, what a program holds in an earlier one.

        Returns:
            The call that holds it now, and its slot; None where the store could not be asked.
        """
        for _ in range(_RENEWAL_TRIES):
            call = account.renewal(program)
            try:
                reply: Any = await lane.ask(call)
            except StoreError:
                return None
            if isinstance(reply, ReplyError):
                return None
            if reply[0] == _ALLOWED:
                return call, reply[1] // HOLD_SLOT_MS
            if reply[0] != _STALE:
                return None
            account.take(reply)
        return None

    def end_renewed(
        self, lane: Lane, call: DecideCall, renewed: DecideCall, slot: int, *, billed: bool
    ) -> None:
        """As :meth:`end`, where what was held at first is held by another call by now."""
        ending = Ending(
            call.account,
            held=renewed.program.held,
            flights=renewed.program.flights,
            recorded=call.program.settled if billed else _NOTHING,
            rated=_NOTHING,
            slot=slot,
        )
        lane.settle(ending, call.account.keys.shard)

    def post(
        self, lane: Lane, account: Account, recorded: Mapping[str, int], *, rated: Mapping[str, int]
    ) -> None:
        """Record, and count into rates, without waiting."""
        ending = Ending(account, held=_NOTHING, flights=(), recorded=recorded, rated=rated, slot=0)
        lane.settle(ending, account.keys.shard)

    # Connections.

    def _script(self, name: str) -> Script:
        return scripts.load(
            name,
            clock="server" if self.clock is time else "caller",
            dialect="fake" if self.address.kind == "memory" else "server",
        )

    async def _connect(self, on_end: Callable[[Any], None]) -> Link:
        loaded = tuple(self.scripts.values())
        link: Link
        if self.address.kind == "memory":
            # fakeredis is imported only by those who use it.
            link = await import_module("meterkit.store.memory").connect(loaded, clock=self.clock)
        else:
            link = await connection.connect(
                await self._reachable(), loaded, timeout_s=self._timeout_s, on_end=on_end, clock=self.clock
            )
        try:
            await agree(link, self.keys, self.address)
        except BaseException:
            await link.close()
            raise
        return link

    async def _reachable(self) -> Address:
        if self._server is None:
            return self.address
        return Address(kind="unix", path=await asyncio.to_thread(self._server.start))

    async def _keep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have what belongs to a loop closed with it, where nobody stops the kit."""
        if loop not in self._guards:
            guard = self._guards[loop] = self._guard(loop)
            await anext(guard)

    async def _guard(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        # A loop that asyncio.run() closes first closes its asynchronous generators: this is one.
        try:
            yield
        finally:
            self._guards.pop(loop, None)
            lane, admin = self.lanes.get(loop), self._admins.pop(loop, None)
            if lane is not None:
                # Found by late replies until it is closed: what they hold is given back.
                await lane.stop(drain_s=_DRAIN_S)
                del self.lanes[loop]
            if admin is not None:
                await admin.close()
            if self._server is not None and not self._guards:
                await asyncio.to_thread(self._server.stop)

    def after_fork(self) -> None:
        """In a child process: leave the parent's connections to the parent."""
        self._forked += [self.lanes, self._admins, self._guards]
        self.lanes, self._admins, self._guards = {}, {}, {}
        if self._server is not None:
            self._server = EmbeddedServer(self.address.path)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in _stores:
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
