"""The lane: how one event loop decides and settles, over one connection that is made anew when it ends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from meterkit.errors import SettingsError, StoreError
from meterkit.store.connection import Connection, ReplyError, give_up
from meterkit.store.writers import Settlement, Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from meterkit.store.connection import Call
    from meterkit.store.keys import Keys
    from meterkit.store.scripts import Script

__all__ = ["Connector", "Lane", "Link"]

_log = logging.getLogger("meterkit.store")

_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0
_TRIES = 2
_DRAIN_PAUSE_S = 0.005
_COMPLAIN_EVERY_S = 10.0
_RENEW_EVERY_S = 86_400.0
_HOLD_EVERY_S = 30.0


class Link(Protocol):
    """A connection, or what stands in for one in the same process."""

    open: bool

    @property
    def gone(self) -> bool:
        """Whether no late reply can come any more."""
        ...

    def call(self, call: Call) -> asyncio.Future[Any]:
        """Send a request followed by the clock; the future's result is the reply."""
        ...

    def post(self, packed: Sequence[bytes], receiver: Any) -> None:
        """Send a request followed by the clock; the receiver takes the reply."""

    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]:
        """Send a plain command; the future's result is the reply."""
        ...

    async def close(self) -> None:
        """Close at once."""


class Holder(Protocol):
    """A request that is being served, and holds something meanwhile."""

    def outlives_hold(self) -> bool:
        """Whether its holds are in a slot that is over."""
        ...

    async def renew(self) -> None:
        """Move its holds to the slot of now."""

    def let_go(self) -> None:
        """Give its holds back: the lane is about to stop."""


class Connector(Protocol):
    """Opens a link; raises :class:`StoreError` where it cannot."""

    def __call__(self, on_end: Callable[[Any], None]) -> Awaitable[Link]:
        """Open a link; ``on_end`` is called once it takes no more requests."""
        ...


class Lane:
    """The store, as one event loop reaches it.

    Args:
        connector: opens a connection with all scripts loaded.
        keys: names of keys.
        scripts: what to load again where the server has lost its scripts.
        retire: the script that closes a writer.

    Attributes:
        is_served: whether the kit was started for this event loop, not only its store.
    """

    def __init__(
        self, connector: Connector, *, keys: Keys, scripts: Sequence[Script], retire: Script
    ) -> None:
        self.loop = self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._scripts = tuple(scripts)
        self._retire = retire
        self._link: Link | None = None
        self._ended: list[Link] = []
        self._connected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: asyncio.Task[None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._upkeep: asyncio.TimerHandle | None = None
        self.live: set[Holder] = set()
        self.is_served = False
        self._loading = False
        self._complained_at = -_COMPLAIN_EVERY_S
        self.stopping = False
        self._streams = [Stream(self, keys, shard) for shard in range(keys.shards)]

    async def start(self) -> None:
        """Connect; where that fails, say so once and go on trying in the background.

        Raises:
            SettingsError: the store cannot be used with these settings.
        """
        self._renewal = self._loop.call_later(_RENEW_EVERY_S, self._renew)
        self._upkeep = self._loop.call_later(_HOLD_EVERY_S, self.hold_on)
        # A task of its own: whoever starts the lane may be cancelled, and others wait for it too.
        self._first = self._loop.create_task(self._connect_first())
        self._tasks.add(self._first)
        self._first.add_done_callback(self._done)
        await asyncio.shield(self._first)

    async def stop(self, *, drain_s: float) -> None:
        """Give back what is held, wait until all settlements are acknowledged, then close."""
        for holder in tuple(self.live):
            holder.let_go()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._drain()
        self.stopping = True
        if self._renewal is not None:
            self._renewal.cancel()
        if self._upkeep is not None:
            self._upkeep.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in (*self._ended, *([self._link] if self._link else [])):
            await link.close()
        self._link = None
        left = sum(stream.abandon() for stream in self._streams)
        if left:
            _log.error("%d settlements were not acknowledged when the kit stopped", left)

    @property
    def unsettled(self) -> int:
        """Settlements that the store has not acknowledged."""
        return sum(stream.unsettled for stream in self._streams)

    @property
    def lost(self) -> int:
        """Settlements that the store acknowledged and has lost since, or that found no room to wait."""
        return sum(stream.lost for stream in self._streams)

    @property
    def connected(self) -> bool:
        """Whether a request can be sent now."""
        return self._link is not None

    def call(self, call: Call) -> asyncio.Future[Any]:
        """Send a request; its reply, or the server's error, is the future's result.

        While the lane connects for the first time, the request waits for that. Whoever is cancelled waiting
        tells so by :func:`~meterkit.store.connection.give_up`, or uses :meth:`ask`.

        Raises:
            StoreError: there is no connection; nothing was sent.
        """
        if self._link is None:
            if self._first is None or self._first.done():
                raise StoreError("the store is not connected", executed=False)
            return self._loop.create_task(self._call_once_connected(call, self._first))
        return self._link.call(call)

    async def ask(self, call: Call) -> Any:
        """Send a request and wait for its reply; where the waiting is cancelled, nothing stays held.

        Raises:
            StoreError: there is no connection, or it ended before the reply came.
        """
        reply = self.call(call)
        try:
            return await reply
        except asyncio.CancelledError:
            give_up(call, reply)
            raise

    async def again(self, call: Call, reply: ReplyError) -> Any:
        """Answer an error reply to a call: where the scripts were lost, load them and send it again.

        Raises:
            StoreError: the store cannot serve; the call was not executed.
        """
        for _ in range(_TRIES):
            if reply.code != "NOSCRIPT":
                break
            self._load()
            answer = await self.ask(call)
            if not isinstance(answer, ReplyError):
                return answer
            reply = answer
        raise StoreError(f"the store refuses: {reply}", executed=False)

    def settle(self, settlement: Settlement, shard: int) -> None:
        """Send a settlement, numbered; keep it until it is acknowledged."""
        self._streams[shard].settle(settlement)

    # What a stream needs.

    def post(self, packed: tuple[bytes, ...], receiver: Any) -> bool:
        """Send if there is a connection; say whether."""
        if self._link is None:
            return False
        self._link.post(packed, receiver)
        return True

    async def retire(self, key: str) -> int:
        """Retire a writer, waiting for a connection if there is none; the last number it applied."""
        pause = _PAUSE_FIRST_S
        while True:
            await self._connected.wait()
            with suppress(StoreError):
                reply = await self._ask_to_retire(key)
                if isinstance(reply, int):
                    return reply
                self.complain(f"the store does not take settlements; they are kept and sent again: {reply}")
            await asyncio.sleep(pause)
            pause = min(_PAUSE_MAX_S, 2 * pause)

    async def replies(self) -> None:
        """Wait for a connection if there is none, and until all that was sent on it is answered."""
        await self._connected.wait()
        with suppress(StoreError):
            await self._link_now().ask("PING")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run in the background until the lane stops; None where it has stopped."""
        if self.stopping:
            work.close()
            return None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def complain(self, message: str) -> None:
        """Say what goes wrong, but not again and again."""
        now = self._loop.time()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            _log.warning("%s", message)

    async def _ask_to_retire(self, key: str) -> Any:
        request = ("EVALSHA", self._retire.sha, 1, key)
        reply = await self._link_now().ask(*request)
        if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
            self._load()
            reply = await self._link_now().ask(*request)
        return reply

    def hold_on(self) -> None:
        """Renew the holds of requests that live longer than a slot of holds."""
        if self._upkeep is not None:
            self._upkeep.cancel()
        if self.stopping:
            return
        self._upkeep = self._loop.call_later(_HOLD_EVERY_S, self.hold_on)
        for holder in self.live:
            if holder.outlives_hold():
                self.spawn(holder.renew())

    # Keeping the connection.

    async def _connect_first(self) -> None:
        try:
            self._use(await self._connector(self._on_end))
        except StoreError as error:
            _log.error("%s; trying again until it can", error)
            self._reconnect_soon()
        except SettingsError:
            self._reconnect_soon()
            raise

    async def _call_once_connected(self, call: Call, first: asyncio.Task[None]) -> Any:
        # Waited for like this, a connection that is given up is no cancellation of the request.
        await asyncio.wait([first])
        if not first.cancelled() and isinstance(error := first.exception(), SettingsError):
            raise error
        return await self.ask(call)

    def _use(self, link: Link) -> None:
        if not link.open:
            self._ended.append(link)
            self._reconnect_soon()
            return
        self._link = link
        self._connected.set()

    def _on_end(self, link: Link) -> None:
        if link is not self._link:
            return
        self._link = None
        self._connected.clear()
        self._ended = [link, *(ended for ended in self._ended if not ended.gone)]
        for stream in self._streams:
            stream.disconnected()
        if not self.stopping:
            _log.warning("the store's connection ended; connecting again")
            self._reconnect_soon()

    def _reconnect_soon(self) -> None:
        if self._reconnecting is None or self._reconnecting.done():
            self._reconnecting = self.spawn(self._reconnect())

    async def _reconnect(self) -> None:
        pause, refused = _PAUSE_FIRST_S, ""
        while True:
            try:
                link = await self._connector(self._on_end)
            except SettingsError as error:
                if str(error) != refused:
                    refused = str(error)
                    _log.critical("%s", error)
            except StoreError as error:
                _log.debug("%s", error)
            else:
                if link.open:
                    _log.warning("the store is connected again")
                    self._use(link)
                    return
                self._ended.append(link)
            await asyncio.sleep(pause)
            pause = min(_PAUSE_MAX_S, 2 * pause)

    def _link_now(self) -> Link:
        if self._link is None:
            raise StoreError("the store is not connected", executed=False)
        return self._link

    def _load(self) -> None:
        """Load the scripts before whatever is sent next; once for all that ask for it in one tick."""
        if self._loading or self._link is None:
            return
        self._loading = True
        self._loop.call_soon(self._loaded)
        for script in self._scripts:
            self._link.ask("SCRIPT", "LOAD", script.text)

    def _loaded(self) -> None:
        self._loading = False

    # The end.

    async def _drain(self) -> None:
        while True:
            for stream in self._streams:
                stream.resume()
            if self._link is not None:
                await self.replies()
            if not self.unsettled:
                return
            if self._link is None and (self._first is None or self._first.done()):
                self._reconnect_soon()
            await asyncio.sleep(_DRAIN_PAUSE_S)

    def _renew(self) -> None:
        self._renewal = self._loop.call_later(_RENEW_EVERY_S, self._renew)
        for stream in self._streams:
            stream.renew()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, SettingsError):
            _log.error("the store's upkeep failed", exc_info=error)


_: type[Link] = Connection
