"""The lane: how one event loop decides and settles, over one connection that is made anew when it ends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from meterkit.errors import SettingsError, StoreError
from meterkit.store.connection import Connection, ReplyError
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


class Link(Protocol):
    """A connection, or what stands in for one in the same process."""

    open: bool

    def call(self, call: Call) -> asyncio.Future[Any]: ...
    def post(self, packed: Sequence[bytes], receiver: Any) -> None: ...
    def ask(self, *parts: str | int | bytes) -> asyncio.Future[Any]: ...
    async def close(self) -> None: ...


class Connector(Protocol):
    """Opens a link; raises :class:`StoreError` where it cannot."""

    def __call__(self, on_end: Callable[[Any], None]) -> Awaitable[Link]: ...


class Lane:
    """The store, as one event loop reaches it.

    Args:
        connector: opens a connection with all scripts loaded.
        keys: names of keys.
        scripts: what to load again where the server has lost its scripts.
        retire: the script that closes a writer.
    """

    def __init__(
        self, connector: Connector, *, keys: Keys, scripts: Sequence[Script], retire: Script
    ) -> None:
        self._connector = connector
        self._scripts = tuple(scripts)
        self._retire = retire
        self._link: Link | None = None
        self._ended: list[Link] = []
        self._connected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._streams = [Stream(self, keys, shard) for shard in range(keys.shards)]

    async def start(self) -> None:
        """Connect; where that fails, say so once and go on trying in the background."""
        try:
            self._use(await self._connector(self._on_end))
        except StoreError as error:
            _log.error("%s; trying again until it can", error)
            self.spawn(self._reconnect())

    async def stop(self, *, drain_s: float) -> None:
        """Wait until all settlements are acknowledged, then close."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.unsettled:
                    await asyncio.sleep(0.005)
        self._stopping = True
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
    def connected(self) -> bool:
        """Whether a request can be sent now."""
        return self._link is not None

    def call(self, call: Call) -> asyncio.Future[Any]:
        """Send a request; its reply, or the server's error, is the future's result.

        Raises:
            StoreError: there is no connection; nothing was sent.
        """
        if self._link is None:
            raise StoreError("the store is not connected", executed=False)
        return self._link.call(call)

    async def again(self, call: Call, reply: ReplyError) -> Any:
        """Answer an error reply to a call: where the scripts were lost, load them and send it again.

        Raises:
            StoreError: the store cannot serve; the call was not executed.
        """
        for _ in range(_TRIES):
            if reply.code != "NOSCRIPT":
                break
            await self._load()
            reply = await self.call(call)
            if not isinstance(reply, ReplyError):
                return reply
        raise StoreError(f"the store refuses: {reply}", executed=False)

    def settle(self, settlement: Settlement, shard: int) -> None:
        """Send a settlement, numbered; keep it until it is acknowledged."""
        self._streams[shard].settle(settlement)

    # What a stream needs.

    def post(self, packed: tuple[bytes, ...], receiver: Any) -> bool:
        if self._link is None:
            return False
        self._link.post(packed, receiver)
        return True

    async def retire(self, key: str) -> int:
        while True:
            await self._connected.wait()
            link = self._link
            if link is None:
                continue
            with suppress(StoreError):
                reply = await link.ask("EVALSHA", self._retire.sha, 1, key)
                if isinstance(reply, int):
                    return reply
                _log.warning("the store does not take settlements: %s", reply)
                if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
                    await self._load()
                else:
                    await asyncio.sleep(_PAUSE_FIRST_S)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._stopping:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Keeping the connection.

    def _use(self, link: Link) -> None:
        if not link.open:
            self.spawn(self._reconnect())
            return
        self._link = link
        self._connected.set()

    def _on_end(self, link: Link) -> None:
        if link is not self._link:
            return
        self._link = None
        self._connected.clear()
        self._ended = [link]
        for stream in self._streams:
            stream.disconnected()
        if not self._stopping:
            _log.warning("the store's connection ended; connecting again")
            self.spawn(self._reconnect())

    async def _reconnect(self) -> None:
        pause = _PAUSE_FIRST_S
        while True:
            try:
                link = await self._connector(self._on_end)
            except SettingsError as error:
                _log.critical("%s", error)
                return
            except StoreError as error:
                _log.debug("%s", error)
                await asyncio.sleep(pause)
                pause = min(_PAUSE_MAX_S, 2 * pause)
                continue
            _log.warning("the store is connected again")
            self._use(link)
            return

    async def _load(self) -> None:
        link = self._link
        if link is None:
            raise StoreError("the store is not connected", executed=False)
        for reply in await asyncio.gather(
            *(link.ask("SCRIPT", "LOAD", script.text) for script in self._scripts)
        ):
            if isinstance(reply, ReplyError):
                raise StoreError(f"the store refuses its scripts: {reply}", executed=False)


_: type[Link] = Connection
