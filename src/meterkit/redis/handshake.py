"""How a connection begins: opened, let in, on its database, all scripts loaded."""

from __future__ import annotations

import asyncio
import os
from time import time
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StoreError
from meterkit.redis.connection import Connection, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.redis.connection import OnEnd
    from meterkit.redis.scripts import Script
    from meterkit.redis.url import Address

__all__ = ["connect", "refused"]

_CREDENTIALS: Final = frozenset({"NOAUTH", "WRONGPASS"})


def refused(address: Address, reply: ReplyError) -> StoreError:
    """The error for a server that can be reached and does not serve, in its own words."""
    hint = "; user and password are those of METERKIT_REDIS_URL" if reply.code in _CREDENTIALS else ""
    return StoreError(f"the store at {address} refuses to serve: {reply}{hint}", executed=False)


async def connect(
    address: Address,
    scripts: Sequence[Script],
    *,
    timeout_s: float,
    on_end: OnEnd,
    clock: Callable[[], float] = time,
) -> Connection:
    """Open a connection: authenticated, on its database, all scripts loaded.

    Args:
        address: where the store is.
        scripts: what the server is to know.
        timeout_s: how long each step may take, and afterwards each request.
        on_end: called once, when no further request can be taken.
        clock: seconds since the epoch.

    Raises:
        StoreError: the store cannot be reached, refuses the credentials or does not answer in time.
    """
    loop = asyncio.get_running_loop()

    def protocol() -> Connection:
        return Connection(timeout_s=timeout_s, on_end=on_end, clock=clock)

    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout_s):
            if address.kind == "tcp":
                _, connection = await loop.create_connection(protocol, address.host, address.port)
            else:
                _, connection = await loop.create_unix_connection(protocol, address.path)
        await _prepare(connection, address, scripts)
    except BaseException as error:
        if connection is not None:
            await connection.close()
        if not isinstance(error, OSError | TimeoutError):
            raise
        why = _words(error) or f"no answer within {timeout_s:g} s"
        raise StoreError(f"the store at {address} cannot be reached: {why}", executed=False) from None
    return connection


def _words(error: OSError) -> str:
    """What the system says of an error; asyncio adds the address, which is named anyway."""
    # Errors of names and of TLS have numbers of their own.
    is_of_system = type(error).__module__ == "builtins"
    return os.strerror(error.errno) if is_of_system and error.errno else error.strerror or str(error)


async def _prepare(connection: Connection, address: Address, scripts: Sequence[Script]) -> None:
    # Step by step: a server that does not let us in closes the connection at the first large request, and
    # its words may be lost with it.
    if address.password is not None:
        user = () if address.username is None else (address.username,)
        await _answered(address, connection.ask("AUTH", *user, address.password))
    if address.db:
        await _answered(address, connection.ask("SELECT", address.db))
    # The name is for people who look at the server; a user without the right to set it needs none.
    named = connection.ask("CLIENT", "SETNAME", "meterkit")
    await asyncio.wait([named])
    reply: Any = named.exception() or named.result()
    if not (isinstance(reply, ReplyError) and reply.code == "NOPERM"):
        await _answered(address, named)
    await _answered(address, *(connection.ask("SCRIPT", "LOAD", script.text) for script in scripts))


async def _answered(address: Address, *asked: asyncio.Future[Any]) -> None:
    """Wait for replies; none of them may be an error."""
    try:
        replies = await asyncio.gather(*asked)
    except StoreError as error:
        raise StoreError(f"the store at {address} cannot be reached: {error}", executed=False) from None
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise refused(address, reply)
