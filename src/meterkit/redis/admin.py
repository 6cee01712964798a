"""Administration client: redis-py for commands outside the request path; one client per node of a cluster."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from redis.commands import AsyncCoreCommands
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.errors import StoreError
from meterkit.redis.admin_connections import Pool, new_client
from meterkit.redis.discovery import find_slots, redirection_of, slot_of, slots_of_myself
from meterkit.redis.server import is_key_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from meterkit.redis.discovery import SlotFinder, Slots
    from meterkit.redis.scripts import Script
    from meterkit.redis.url import Address, HostPort

_TRIES: Final = 16
_TRY_AGAIN_S: Final = 0.02
_WITH_KEYS: Final = frozenset({"EVAL", "EVALSHA"})
# Text of redis-py's errors if it has sent nothing.
_NOT_CONNECTED: Final = " connecting to "
# Errors by which another node has the slots now, or soon will.
_AWAY: Final = (RedisConnectionError, RedisTimeoutError, ClusterDownError, ReadOnlyError, OSError)

# Redis-py's own client of clusters takes no TLS context, does not wait for a free connection, may send ASKING
# over one connection and the command over another, and wants the right to COMMAND.


class ClusterClient(AsyncCoreCommands):
    """redis-py interface over one client per node; a command without a reply is never sent again.

    Args:
        find: asks where the slots are; gets the nodes to ask first.
        client_of: redis-py's client of one node; the same for the same place.
    """

    _event_dispatcher: Any = None  # Redis-py's own clients have one.

    def __init__(self, find: SlotFinder, client_of: Callable[[HostPort], Any]) -> None:
        self._find = find
        self._client_of = client_of
        self._slots: Slots | None = None
        self._last: Collection[HostPort] = ()
        self._lookup_lock = asyncio.Lock()

    async def places(self, *, anew: bool = False) -> tuple[HostPort, ...]:
        """All masters, asked for anew or as last known. Raises StoreError where no node answers."""
        if anew:
            self._slots = None
        return (await self._known_slots()).places

    async def place_of(self, key: str | bytes) -> HostPort:
        """The node that has a key.

        Raises:
            StoreError: no node answers, or none has it.
        """
        slot = slot_of(key)
        place = (await self._known_slots()).of(slot)
        if place is None:
            self._slots = None
            raise StoreError(f"no node of the cluster has slot {slot}", executed=False)
        return place

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command at the node of its key, or at every master if it has none."""
        key = _key_of(args)
        if key is None:
            clients = [self._client_of(place) for place in await self.places()]
            asked = (start_task(client.execute_command(*args, **options)) for client in clients)
            return (await asyncio.gather(*asked))[0]
        return await self._run_redirected(await self.place_of(key), key, _Command(args, options), None)

    def pipeline(self, *, transaction: bool = True) -> _Pipeline:
        """Pipeline of commands; those of a transaction have keys of one shard."""
        return _Pipeline(self, is_transaction=transaction)

    async def run(self, commands: Sequence[_Command], *, raise_on_error: bool) -> list[Any]:
        """Run the commands of a pipeline, those of each node at once; their replies in order."""
        nodes: dict[HostPort, list[int]] = {}
        for number, command in enumerate(commands):
            nodes.setdefault(await self.place_of(_required_key(command)), []).append(number)
        replies: list[Any] = [None] * len(commands)

        async def run_at(place: HostPort, numbers: list[int]) -> None:
            found = await self._run_batch(place, [commands[number] for number in numbers])
            for number, reply in zip(numbers, found, strict=True):
                replies[number] = await self._retry_failed(place, commands[number], reply)

        await asyncio.gather(*(start_task(run_at(place, numbers)) for place, numbers in nodes.items()))
        for reply in replies:
            if raise_on_error and isinstance(reply, Exception):
                raise reply
        return replies

    async def run_transaction(self, commands: Sequence[_Command]) -> list[Any]:
        """Run commands on one shard as a transaction; their replies in order."""
        for _ in range(_TRIES):
            key = _required_key(commands[0])
            place = await self.place_of(key)
            pipe = self._client_of(place).pipeline(transaction=True)
            for args, options in commands:
                pipe.execute_command(*args, **options)
            try:
                replies: list[Any] = await pipe.execute()
            except (AskError, TryAgainError):
                self._slots = None
                await asyncio.sleep(_TRY_AGAIN_S)
            except (RedisError, OSError) as error:
                await self._find_other_node(place, key, error)
            else:
                return replies
        raise _slot_moving_error()

    async def aclose(self, *, close_connection_pool: bool | None = None) -> None:
        """Close nothing: the nodes' clients are closed by their owner."""
        del close_connection_pool

    async def _known_slots(self) -> Slots:
        async with self._lookup_lock:
            if self._slots is None:
                self._slots = await self._find(self._last)
                self._last = self._slots.places
            return self._slots

    async def _run_batch(self, place: HostPort, commands: Sequence[_Command]) -> list[Any]:
        """Run commands at a node; the replies, or their errors."""
        pipe = self._client_of(place).pipeline(transaction=False)
        for args, options in commands:
            pipe.execute_command(*args, **options)
        try:
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            return [error] * len(commands)
        return replies

    async def _retry_failed(self, place: HostPort, command: _Command, reply: Any) -> Any:
        if not isinstance(reply, Exception):
            return reply
        try:
            return await self._run_redirected(place, _required_key(command), command, reply)
        except (RedisError, StoreError, OSError) as failed:  # As pipelines have it.
            return failed

    async def _run_redirected(self, place: HostPort, key: Any, command: _Command, reply: Any) -> Any:
        """Run a command; run it at another node if this one certainly did not execute it."""
        for _ in range(_TRIES):
            if reply is None:
                [reply] = await self._run_batch(place, [command])
            if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                asked = redirection_of(str(reply), place)
                _, reply = await self._run_batch(asked, [_Command(("ASKING",), {}), command])
            if not isinstance(reply, Exception):
                return reply
            if isinstance(reply, MovedError):
                self._slots = None
                place = redirection_of(str(reply), place)
            elif isinstance(reply, AskError | TryAgainError):
                await asyncio.sleep(_TRY_AGAIN_S)
                place = await self.place_of(key)
            else:
                place = await self._find_other_node(place, key, reply)
            reply = None
        raise _slot_moving_error()

    async def _find_other_node(self, place: HostPort, key: Any, error: Exception) -> HostPort:
        """Find the node that has a key's slot now, after a failed connection. Raises any other error."""
        if isinstance(error, _AWAY):
            self._slots = None
        if not (isinstance(error, RedisConnectionError) and _NOT_CONNECTED in str(error)):
            raise error
        now = await self.place_of(key)
        if now == place:
            raise error
        return now


class _Pipeline(AsyncCoreCommands):
    """Commands that are gathered until they are run."""

    _event_dispatcher: Any = None

    def __init__(self, client: ClusterClient, *, is_transaction: bool) -> None:
        self._client = client
        self._is_transaction = is_transaction
        self._commands: list[_Command] = []

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Keep a command for later."""
        self._commands.append(_Command(args, options))
        return self

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Run all; their replies in order."""
        commands, self._commands = self._commands, []
        if not commands:
            return []
        if self._is_transaction:
            return await self._client.run_transaction(commands)
        return await self._client.run(commands, raise_on_error=raise_on_error)


class _Command(NamedTuple):
    args: tuple[Any, ...]
    options: dict[str, Any]


def _key_of(args: Sequence[Any]) -> Any:
    """First key of a command; None if it has none."""
    name = args[0]
    if name in _WITH_KEYS:
        return args[3] if int(args[2]) else None
    # Those of two words are about the server.
    return args[1] if len(args) > 1 and " " not in name else None


def _required_key(command: _Command) -> Any:
    key = _key_of(command.args)
    if key is None:
        raise TypeError(f"{command.args[0]} has no key: nothing says which node is meant")
    return key


def _slot_moving_error() -> StoreError:
    return StoreError("a slot of the cluster is being moved; it was not executed", executed=False)


_logger = logging.getLogger("meterkit.store")


class Admin:
    """One event loop's client for administration.

    A call waits while all connections are in use.

    Args:
        address: where Redis is.
        timeout_s: how long a command may take.
        clock: seconds since the epoch; scripts get it as their last argument.
        pool: of the client that this one delivers for; None: it has its own.

    Attributes:
        address: as given.
        client: redis-py client, or a :class:`ClusterClient`.
    """

    def __init__(
        self, address: Address, *, timeout_s: float, clock: Callable[[], float], pool: Pool | None = None
    ) -> None:
        self.address = self._address = address
        self._timeout_s = timeout_s
        self._clock = clock
        self._delivery: Admin | None = None
        self._warned: set[str] = set()
        self._nodes: dict[HostPort, Admin] = {}
        self._cluster: ClusterClient | None = None
        if address.kind == "cluster":
            self._cluster = ClusterClient(self._find, lambda place: self._node(place).client)
        self._pool = pool or Pool(timeout_s)
        # Any: redis-py's types speak of texts, bytes and both protocols at once.
        self.client: Any = self._cluster or new_client(address, timeout_s, clock, self._pool)

    @property
    def connected(self) -> int:
        """Number of connections made. A restarted server has closed all former ones."""
        return self._pool.made

    async def at(self, key: str) -> Admin:
        """Client of the server that has a key; commands of one pipeline share a connection.

        Raises:
            StoreError: the nodes of the cluster do not say which that is.
        """
        return self if self._cluster is None else self._node(await self._cluster.place_of(key))

    async def servers(self) -> Sequence[Admin]:
        """Clients of all servers that have keys now. Raises StoreError where no node of a cluster answers."""
        if self._cluster is None:
            return [self]
        # A server lists its own keys and says nothing of a node that has others now.
        return [self._node(place) for place in await self._cluster.places(anew=True)]

    async def scan(self, match: str, count: int) -> AsyncGenerator[list[bytes]]:
        """Names of keys of all servers, page by page, some of them twice.

        If slots of a cluster move meanwhile, all servers are walked once more: a key may have left one before
        its turn, for another that had had its turn.

        Args:
            match: pattern of the names.
            count: how many keys a server looks at for a page.

        Raises:
            StoreError: a server does not answer, or its user may not run SCAN.
        """
        before = await self._slots_of_nodes()
        for _ in range(2):
            for server in await self.servers():
                cursor = None
                while cursor != 0:
                    cursor, keys = await server.ask(server.client.scan(cursor or 0, match=match, count=count))
                    yield keys
            if "[" not in str(before) and before == await self._slots_of_nodes():
                return

    async def _slots_of_nodes(self) -> Mapping[str, Sequence[str]]:
        """The slots of each node of a cluster, by its own word; empty for one server."""
        found: dict[str, Sequence[str]] = {}
        for server in await self.servers() if self._cluster is not None else ():
            nodes: bytes = await server.ask(server.client.execute_command("CLUSTER", "NODES"))
            found[str(server.address)] = slots_of_myself(nodes.decode())
        return found

    def _node(self, place: HostPort) -> Admin:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = Admin(
                self._address.at(place), timeout_s=self._timeout_s, clock=self._clock
            )
        return node

    async def _find(self, known: Collection[HostPort]) -> Slots:
        timeout_s = max(self._timeout_s, 1.0)
        return await find_slots(self._address, known, timeout_s=timeout_s, clock=self._clock, is_known=True)

    def for_delivery(self) -> Admin:
        """Client with separate connections, so that delivery never waits for the app's calls."""
        if self._delivery is None:
            # It lets the server wait five seconds for its disk, and must still get that reply.
            patience_s = max(self._timeout_s, 5.0) + 2.5
            self._delivery = Admin(self._address, timeout_s=patience_s, clock=self._clock, pool=self._pool)
        return self._delivery

    def renew(self) -> None:
        """Use no present connection again: the address may lead to another server now."""
        self._pool.useless = self._pool.made

    def warn_once(self, message: str) -> None:
        """Log a warning once in the life of this client."""
        if message not in self._warned:
            self._warned.add(message)
            _logger.warning("%s", message)

    def now_ms(self) -> int:
        """The caller's clock, as scripts get it."""
        return int(self._clock() * 1000)

    async def run(self, script: Script, keys: list[str], *arguments: str | int) -> Any:
        """Run a script; the caller's clock is added as its last argument.

        Raises:
            StoreError: the store did not answer, or answered with an error.
        """
        arguments = (*arguments, self.now_ms())

        async def once() -> Any:
            try:
                return await self.client.evalsha(script.sha, len(keys), *keys, *map(str, arguments))
            except NoScriptError:
                return await self.client.eval(script.text, len(keys), *keys, *map(str, arguments))

        return await self.ask(once())

    async def run_many(
        self, script: Script, keys: Sequence[list[str]], arguments: Sequence[Sequence[str | int]] = ()
    ) -> list[Any]:
        """Run a script on keys, once for each list of them with its arguments, in one round trip.

        Raises:
            StoreError: the store did not answer, or answered with an error.
        """
        arguments = arguments or [()] * len(keys)
        if len(keys) == 1:
            return [await self.run(script, keys[0], *arguments[0])]
        await self.load(script)
        pipeline = self.client.pipeline(transaction=False)
        for names, given in zip(keys, arguments, strict=True):
            pipeline.evalsha(script.sha, len(names), *names, *map(str, given), str(self.now_ms()))
        found: list[Any] = await self.ask(pipeline.execute())
        return found

    async def load(self, script: Script) -> None:
        """Load a script, for use in a pipeline."""
        await self.ask(self.client.script_load(script.text))

    async def ask(self, answer: Awaitable[Any]) -> Any:
        """Wait for redis-py's answer.

        Raises:
            StoreError: the store did not answer, or answered with an error.
        """
        try:
            reply = await keep_cancellation(answer)
        except (RedisError, OSError) as error:
            raise StoreError(f"the store at {self._address} failed: {self._describe_error(error)}") from error
        if self._address.kind == "memory":
            # From Python 3.12 on fakeredis replies without yielding to the event loop.
            await asyncio.sleep(0)
        return reply

    async def ask_all(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Run commands in one round trip: each is the name of a method of redis-py, and its arguments.

        Raises:
            StoreError: the store did not answer, or answered one with an error.
        """
        replies: list[Any] = await self.ask(self._make_pipeline(commands).execute())
        return replies

    async def ask_each(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Run commands; one that is refused because of its key's value has the error as its reply.

        Raises:
            StoreError: the store did not answer, or refused a command for another reason.
        """
        replies: list[Any] = await self.ask(self._make_pipeline(commands).execute(raise_on_error=False))
        for reply in replies:
            if isinstance(reply, Exception) and not is_key_error(reply):
                raise StoreError(f"the store at {self._address} failed: {reply}") from reply
        return replies

    def _make_pipeline(self, commands: Iterable[tuple[Any, ...]]) -> Any:
        pipeline = self.client.pipeline(transaction=False)
        for name, *arguments in commands:
            getattr(pipeline, name)(*arguments)
        return pipeline

    def _describe_error(self, error: Exception) -> str:
        cause = error.__context__
        tls = self._address.tls
        return str(error) if tls is None or not isinstance(cause, ssl.SSLError) else tls.refusal(cause)

    async def close(self) -> None:
        """Close all connections."""
        delivery, self._delivery = self._delivery, None
        for other in filter(None, (delivery, *self._nodes.values())):
            await other.close()
        await self.client.aclose(close_connection_pool=True)
