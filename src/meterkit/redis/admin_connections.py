"""Connections of the administration client: redis-py's, with requests packed by hiredis and shared TLS."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from meterkit.redis.daemon_thread import import_alone
from meterkit.redis.discovery import master_of
from meterkit.redis.handshake import addresses_to_try, skip_silent

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.redis.url import Address

# redis-py 5 gives these their classes only in its own client of clusters.
_CLUSTER_ERRORS: Final[dict[str, type[ResponseError]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}

_CONNECTIONS_MAX: Final = 16
# For a free connection; a call that has one fails by its own timeout where the store hangs.
_WAIT_S: Final = 30.0
_HEARD_S: Final = 1.0
# For the other side to say that it has ended, too; nothing hangs on that.
_TLS_END_S: Final = 0.5

# Its stub omits the types of a tuple's parts, except one.
_pack: Callable[[tuple[Any, ...]], bytes] = import_module("hiredis").pack_command


@dataclass(slots=True)
class Pool:
    """Facts about the connections of a pool, for all of them.

    Attributes:
        timeout_s: how long a server may take to answer whether an idle connection still leads to it.
        made: number of connections made.
        useless: those made up to this number may lead to a server that has become a replica.
    """

    timeout_s: float
    made: int = 0
    useless: int = 0


class _PackedConnection:
    """redis-py connection that packs requests by hiredis: in Python a key takes half a microsecond.

    Before reuse, redis-py checks whether the connection was closed, but not whether it was reset: its next
    request failed, on Python 3.12 by asyncio's own error (https://github.com/python/cpython/issues/136234).
    Nor does it leave a server that has become a replica and keeps its connections: the address may lead to
    another one now. Networks drop idle connections without a word: after a second, the server is asked first.
    """

    def __init__(self, *, pool: Pool, **settings: Any) -> None:
        inherited: Any = super()
        inherited.__init__(**settings)
        self._pool, self._number, self._heard_s = pool, 0, 0.0
        inherited.register_connect_callback(self._count)

    def _count(self, _: object) -> None:
        self._pool.made += 1
        self._number = self._pool.made

    async def find_place(self) -> None:
        """Find where it will connect to, if that may have changed."""

    async def connect(self) -> None:
        """Connect, unless it is connected to a server that may take writes."""
        inherited: Any = super()
        if inherited.is_connected and (self._number <= self._pool.useless or not await self._answers()):
            await inherited.disconnect()
        if not inherited.is_connected:
            await self.find_place()
        await inherited.connect()

    async def _answers(self) -> bool:
        """Whether the server still answers, if it was not heard of for a second."""
        if asyncio.get_running_loop().time() < self._heard_s + _HEARD_S:
            return True
        inherited: Any = super()
        try:
            async with asyncio.timeout(self._pool.timeout_s):
                await inherited.send_command("PING", check_health=False)
                await inherited.read_response()
        except ResponseError:  # It may not run PING.
            return True
        except (RedisError, OSError):  # TimeoutError is one.
            return False
        return True

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
            reply = await inherited.read_response(*args, **options)
        except ReadOnlyError:
            self._pool.useless = self._pool.made
            raise
        except ResponseError as error:
            code, _, message = str(error).partition(" ")
            if type(error) is ResponseError and code in _CLUSTER_ERRORS:
                raise _CLUSTER_ERRORS[code](message) from None
            raise
        self._heard_s = asyncio.get_running_loop().time()
        return reply

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack a request; the command may have two words."""
        name, *rest = args
        return [_pack((*name.split(), *rest))]


class _NamedConnection(_PackedConnection):
    """Connection to a host by name, resolved in daemon threads; its addresses are tried in turn."""

    _place = ""

    async def _connect(self) -> None:
        own: Any = self
        inherited: Any = super()
        async with asyncio.timeout(own.socket_connect_timeout):
            *others, last = await addresses_to_try(own.host)
        for place, self._place in (*others, last):
            try:
                await inherited._connect()  # noqa: SLF001 - what redis-py has its own connections override
            except TimeoutError:
                skip_silent(own.host, place)
                raise
            except OSError:
                if place == last[0]:
                    raise
            else:
                return

    def _connection_arguments(self) -> Mapping[str, Any]:
        inherited: Any = super()
        arguments = inherited._connection_arguments()  # noqa: SLF001 - as above
        return {**arguments, "host": self._place}


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
        own: Any = self
        return {**arguments, "server_hostname": own.host, "ssl_shutdown_timeout": _TLS_END_S}


class _MasterLookupMixin:
    """Connection to the current master; sentinels close those to a former one."""

    def __init__(self, *, find_master: Callable[[], Awaitable[Address]], **settings: Any) -> None:
        inherited: Any = super()
        inherited.__init__(**settings)
        self._find_master = find_master

    async def find_place(self) -> None:
        master = await self._find_master()
        vars(self).update(host=master.host, port=master.port)


class _MasterConnection(_MasterLookupMixin, _TcpConnection):
    pass


class _TlsMasterConnection(_MasterLookupMixin, _TlsConnection):
    pass


def new_client(address: Address, timeout_s: float, clock: Callable[[], float], pool: Pool) -> Redis:
    """Make redis-py's client of one server; a call waits while all connections of its pool are in use."""
    if address.kind == "memory":
        client: Redis = import_alone("meterkit.redis.memory").admin_client(clock)
        return client
    common: dict[str, Any] = {
        "connection_class": _TcpConnection,
        "pool": pool,
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
