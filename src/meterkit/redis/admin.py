"""Administration client: redis-py for commands outside the request path; one client per node of a cluster."""

from __future__ import annotations

import asyncio
import logging
import ssl
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands import AsyncCoreCommands
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.errors import StoreError
from meterkit.redis.discovery import find_slots, master_of, redirection_of, slot_of
from meterkit.redis.handshake import addresses_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

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
# redis-py 5 gives these their classes only in its own client of clusters.
_CLUSTER_ERRORS: Final[dict[str, type[ResponseError]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}

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

    async def places(self) -> tuple[HostPort, ...]:
        """All masters. Raises StoreError where no node answers."""
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

_CONNECTIONS_MAX: Final = 16
# For a free connection; a call that has one fails by its own timeout where the store hangs.
_WAIT_S: Final = 30.0
# For the other side to say that it has ended, too; nothing hangs on that.
_TLS_END_S: Final = 0.5

# Its stub omits the types of a tuple's parts, except one.
_pack: Callable[[tuple[Any, ...]], bytes] = import_module("hiredis").pack_command


class Admin:
    """One event loop's client for administration.

    A call waits while all connections are in use.

    Args:
        address: where Redis is.
        timeout_s: how long a command may take.
        clock: seconds since the epoch; scripts get it as their last argument.

    Attributes:
        address: as given.
        client: redis-py client, or a :class:`ClusterClient`.
        connected: number of connections made. A restarted server has closed all former ones.
    """

    def __init__(self, address: Address, *, timeout_s: float, clock: Callable[[], float]) -> None:
        self.address = self._address = address
        self._timeout_s = timeout_s
        self._clock = clock
        self._delivery: Admin | None = None
        self._warned: set[str] = set()
        self._nodes: dict[HostPort, Admin] = {}
        self._cluster: ClusterClient | None = None
        if address.kind == "cluster":
            self._cluster = ClusterClient(self._find, lambda place: self._node(place).client)
        self.connected = 0
        # Any: redis-py's types speak of texts, bytes and both protocols at once.
        self.client: Any = self._cluster or _new_client(address, timeout_s, clock, self._count_connection)

    def _count_connection(self, _connection: Any) -> None:
        self.connected += 1

    async def at(self, key: str) -> Admin:
        """Client of the server that has a key; commands of one pipeline share a connection.

        Raises:
            StoreError: the nodes of the cluster do not say which that is.
        """
        return self if self._cluster is None else self._node(await self._cluster.place_of(key))

    async def servers(self) -> Sequence[Admin]:
        """Clients of all servers that have keys. Raises StoreError where no node of a cluster answers."""
        return [self] if self._cluster is None else [self._node(at) for at in await self._cluster.places()]

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
            self._delivery = Admin(self._address, timeout_s=patience_s, clock=self._clock)
        return self._delivery

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

    async def run_many(self, script: Script, keys: Sequence[list[str]]) -> list[Any]:
        """Run a script that takes no arguments on keys, once for each list of them, in one round trip.

        Raises:
            StoreError: the store did not answer, or answered with an error.
        """
        if len(keys) == 1:
            return [await self.run(script, keys[0])]
        await self.load(script)
        pipeline = self.client.pipeline(transaction=False)
        for names in keys:
            pipeline.evalsha(script.sha, len(names), *names, str(self.now_ms()))
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


class _PackedConnection:
    """redis-py connection that packs requests by hiredis: in Python a key takes half a microsecond.

    Before reuse, redis-py checks whether the connection was closed, but not whether it was reset: its next
    request failed, on Python 3.12 by asyncio's own error (https://github.com/python/cpython/issues/136234).
    """

    def __init__(self, *, made: Callable[[Any], None], **settings: Any) -> None:
        inherited: Any = super()
        inherited.__init__(**settings)
        inherited.register_connect_callback(made)

    async def can_read(self) -> bool:
        """Whether the connection must not be reused."""
        reader: asyncio.StreamReader | None = getattr(self, "_reader", None)
        inherited: Any = super()
        is_reset = reader is not None and reader.exception() is not None
        return is_reset or await inherited.can_read()

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. Raises a cluster's errors by their classes in each version of redis-py."""
        inherited: Any = super()
        try:
            return await inherited.read_response(*args, **options)
        except ResponseError as error:
            code, _, message = str(error).partition(" ")
            if type(error) is ResponseError and code in _CLUSTER_ERRORS:
                raise _CLUSTER_ERRORS[code](message) from None
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack a request; the command may have two words."""
        name, *rest = args
        return [_pack((*name.split(), *rest))]


class _NamedConnection(_PackedConnection):
    """Connection to a host by name, resolved in daemon threads before asyncio resolves it."""

    async def _connect(self) -> None:
        own: Any = self
        inherited: Any = super()
        async with asyncio.timeout(own.socket_connect_timeout):
            await addresses_of(own.host)
        await inherited._connect()  # noqa: SLF001 - what redis-py has its own connections override


class _TcpConnection(_NamedConnection, Connection):
    pass


class _UnixConnection(_PackedConnection, UnixDomainSocketConnection):
    pass


class _TlsConnection(_NamedConnection, SSLConnection):
    """TLS connection with a shared context: redis-py's own reads files for each connection."""

    def __init__(self, *, context: ssl.SSLContext, **settings: Any) -> None:
        inherited: Any = super()  # Half of its types are not known.
        inherited.__init__(**settings)
        self.ssl_context.context = context

    def _connection_arguments(self) -> Mapping[str, Any]:
        inherited: Any = super()
        arguments = inherited._connection_arguments()  # noqa: SLF001 - no setting of redis-py's is for this
        return {**arguments, "ssl_shutdown_timeout": _TLS_END_S}


class _MasterLookupMixin:
    """Connection to the current master; sentinels close those to a former one."""

    def __init__(self, *, find_master: Callable[[], Awaitable[Address]], **settings: Any) -> None:
        inherited: Any = super()
        inherited.__init__(**settings)
        self._find_master = find_master

    async def connect(self) -> None:
        inherited: Any = super()
        if not inherited.is_connected:
            master = await self._find_master()
            vars(self).update(host=master.host, port=master.port)  # Where it will connect to.
        await inherited.connect()


class _MasterConnection(_MasterLookupMixin, _TcpConnection):
    pass


class _TlsMasterConnection(_MasterLookupMixin, _TlsConnection):
    pass


def _new_client(
    address: Address, timeout_s: float, clock: Callable[[], float], made: Callable[[Any], None]
) -> Redis:
    if address.kind == "memory":
        client: Redis = import_module("meterkit.redis.memory").admin_client(clock)
        return client
    common: dict[str, Any] = {
        "connection_class": _TcpConnection,
        "made": made,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        # With RESP2, redis-py checks for connections that the server has closed.
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": max(timeout_s, 5.0),
        "socket_connect_timeout": max(timeout_s, 1.0),
        "max_connections": _CONNECTIONS_MAX,
        "timeout": _WAIT_S,
    }
    if address.tls is not None:
        common |= {"connection_class": _TlsConnection, "context": address.tls.context}
    if address.kind == "sentinel":

        async def find_master() -> Address:
            return await master_of(address, timeout_s=max(timeout_s, 1.0), clock=clock)

        common["connection_class"] = _MasterConnection if address.tls is None else _TlsMasterConnection
        return Redis(connection_pool=BlockingConnectionPool(find_master=find_master, **common))
    if address.kind == "tcp":
        return Redis(connection_pool=BlockingConnectionPool(host=address.host, port=address.port, **common))
    common["connection_class"] = _UnixConnection
    return Redis(connection_pool=BlockingConnectionPool(path=address.path, **common))
