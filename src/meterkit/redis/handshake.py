"""Handshake: resolve the host, log in, load scripts; check the server, its user's rights, the store format.

Names are resolved in daemon threads. asyncio would use the few threads of ``asyncio.to_thread``: a resolver
that does not answer keeps each for half a minute, until none is left for the app.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
from asyncio import wrap_future
from collections.abc import Sized
from functools import partial
from ipaddress import ip_address
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.keys import FORMAT
from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.redis import scripts as script_files
from meterkit.redis.connection import Connection, ReplyError, SetClockConnection
from meterkit.redis.daemon_thread import in_daemon_thread
from meterkit.redis.server import (
    NODE_OF_CLUSTER,
    cluster_warning,
    eviction_warning,
    rights_refusal,
    scan_refusal,
    words_to_try,
)
from meterkit.redis.url import unusable_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.decisions.keys import Keys
    from meterkit.redis.connection import OnEnd
    from meterkit.redis.reconnector import AnyConnection
    from meterkit.redis.scripts import Script
    from meterkit.redis.url import Address, Tls

_FRESH_S: Final = 2.0


class _Lookup:
    """Lookup of a name, running or just finished."""

    def __init__(self, host: str) -> None:
        self._ended_s = inf
        self.found = in_daemon_thread(partial(_resolve, host), name="meterkit-names")
        self.found.add_done_callback(self._note_end)

    def _note_end(self, _: object) -> None:
        self._ended_s = monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the lookup still runs, or its result is at most two seconds old."""
        return monotonic() < self._ended_s + _FRESH_S


def _resolve(host: str) -> Sequence[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


_lookups: Final[dict[str, _Lookup]] = {}
os.register_at_fork(after_in_child=_lookups.clear)  # Their threads are the parent's.


async def addresses_of(host: str) -> Sequence[str]:
    """Addresses of a host, at least one; an address is returned as it is.

    A name is looked up once at a time, for all callers. A result that comes after all callers gave up serves
    the next one: otherwise a resolver slower than their timeout would never be heard.

    Raises:
        OSError: the resolver knows none.
        UnicodeError: no host can have that name.
    """
    if _is_address(host):
        return [host]
    lookup = _lookups.get(host)
    if lookup is None or not lookup.is_fresh:
        lookup = _lookups[host] = _Lookup(host)
    try:
        return await wrap_future(lookup.found)
    finally:
        if lookup.found.done() and _lookups.get(host) is lookup:
            del _lookups[host]


_turns: Final[dict[str, int]] = {}
"""Number of addresses of a name that did not answer in time: an attempt begins with the next one."""


async def addresses_to_try(host: str) -> Sequence[tuple[int, str]]:
    """Addresses of a host to try in this order, each with its place for :func:`skip_silent`.

    Raises:
        OSError, UnicodeError: as for :func:`addresses_of`.
    """
    found, turn = await addresses_of(host), _turns.get(host, 0)
    return [(place, found[place % len(found)]) for place in range(turn, turn + len(found))]


def skip_silent(host: str, place: int) -> None:
    """Begin the next attempt behind an address: it did not answer, and took all the time of this one."""
    _turns[host] = place + 1


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_logger: Final = logging.getLogger("meterkit.store")
_CREDENTIALS: Final = "; user and password are those of METERKIT_REDIS_URL"
_HINTS: Final = {
    "NOAUTH": _CREDENTIALS,
    "WRONGPASS": _CREDENTIALS,
    "MOVED": f"; {NODE_OF_CLUSTER}",
}
_NO_RIGHT: Final = "NOPERM"
_COMMAND: Final = re.compile("'([a-z|]+)' command")
_NOT_KNOWN: Final = (
    "its user may not ask for INFO, so whether it evicts keys is not known; it must not (maxmemory-policy"
    " noeviction). Nor is it known when a backup was put back: run `meterkit recover --since` after that"
)


async def connect(
    address: Address,
    scripts: Sequence[Script],
    *,
    timeout_s: float,
    on_end: OnEnd,
    clock: Callable[[], float] = time,
    is_known: bool = False,
) -> Connection:
    """Open a connection: authenticated, on its database, all scripts loaded.

    Args:
        address: where the store is.
        scripts: scripts to load.
        timeout_s: timeout of each step, and later of each request.
        on_end: called once, when no further request can be taken.
        clock: seconds since the epoch.
        is_known: whether the URL has reached the store before: then its silence is not the URL's fault.

    Raises:
        StoreError: the store cannot be reached, refuses the credentials or does not answer in time.
    """
    loop = asyncio.get_running_loop()

    def protocol() -> Connection:
        kind = Connection if clock is time else SetClockConnection
        return kind(timeout_s=timeout_s, on_end=on_end, clock=clock)

    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout_s):
            if address.kind == "tcp":
                connection = await _connect_to_host(protocol, address)
            else:
                _, connection = await loop.create_unix_connection(protocol, address.path)
        await _log_in(connection, address, scripts, is_known=is_known)
    except BaseException as error:
        if connection is not None:
            await connection.close()
        if not isinstance(error, OSError | TimeoutError):
            raise
        why = _describe_error(error, address.tls) or _describe_silence(
            error, None if is_known else address.tls, timeout_s
        )
        raise StoreError(f"the store at {address} cannot be reached: {why}", executed=False) from None
    return connection


async def _connect_to_host(protocol: Callable[[], Connection], address: Address) -> Connection:
    """Connect to the first address of a name that accepts the connection.

    One that does not answer takes the time of the whole attempt: the next attempt begins with another one.
    """
    create = asyncio.get_running_loop().create_connection
    tls: dict[str, Any] = {}
    if address.tls is not None:
        tls = {"ssl": address.tls.context, "server_hostname": address.host}
    refusal = OSError("the name has no address")
    for place, host in await addresses_to_try(address.host):
        try:
            _, connection = await create(protocol, host, address.port, **tls)
        except OSError as error:
            refusal = error
        except asyncio.CancelledError:
            skip_silent(address.host, place)
            raise
        else:
            return connection
    raise refusal


def _describe_error(error: OSError, tls: Tls | None) -> str:
    """Text of a system error, without the address that asyncio adds."""
    if tls is not None and isinstance(error, ssl.SSLError):
        return tls.refusal(error)
    # Errors of names have numbers of their own.
    is_of_system = type(error).__module__ == "builtins"
    return os.strerror(error.errno) if is_of_system and error.errno else error.strerror or str(error)


def _describe_silence(error: OSError, tls: Tls | None, timeout_s: float) -> str:
    was_closed = isinstance(error, ConnectionError)
    found = "it closed the connection" if was_closed else f"no answer within {timeout_s:g} s"
    return found if tls is None else f"{found}; where it does not speak TLS, the URL begins with redis://"


async def _log_in(
    connection: Connection, address: Address, scripts: Sequence[Script], *, is_known: bool
) -> None:
    answered = partial(_await_replies, address, is_known)
    # Step by step: a server that refuses the login closes the connection at the first large request, and its
    # error may be lost with it.
    if address.username is not None or address.password is not None:
        user = () if address.username is None else (address.username,)
        # A user may need no password (`nopass`): the server then takes any.
        await answered(connection.ask("AUTH", *user, address.password or ""))
    if address.db:
        await answered(connection.ask("SELECT", address.db))
    # The name is for operators of the server: none is needed where a user may not set it, or a hosted server
    # has no such command.
    named = connection.ask("CLIENT", "SETNAME", "meterkit")
    found = connection.ask("SCRIPT", "EXISTS", *(script.sha for script in scripts)) if scripts else named
    await asyncio.wait([named, found])
    reply: Any = named.exception() or named.result()
    if not (isinstance(reply, ReplyError) and (reply.code == _NO_RIGHT or "command" in str(reply))):
        await answered(named)
    # All scripts are half a megabyte: far from the store they would take several round trips.
    reply = found.exception() or found.result()
    # Otherwise its user may not ask, or it answers what is none.
    is_answer = isinstance(reply, Sized) and len(reply) == len(scripts)
    there: Any = reply if is_answer else [0] * len(scripts)
    missing = [script for script, is_there in zip(scripts, there, strict=True) if is_there != 1]
    await answered(*(connection.ask("SCRIPT", "LOAD", script.text) for script in missing))


async def _await_replies(address: Address, is_known: bool, *asked: asyncio.Future[Any]) -> None:
    """Wait for replies; none of them may be an error. ``is_known``: see :func:`connect`."""
    try:
        replies = await asyncio.gather(*asked)
    except StoreError as error:
        why = str(error) if is_known else f"{error}{_tls_hint(address)}"
        raise StoreError(f"the store at {address} cannot be reached: {why}", executed=False) from None
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise refusal_error(address, reply, is_known=is_known)


def _tls_hint(address: Address) -> str:
    """Cure for a server that does not answer: TLS, or a client certificate."""
    if address.kind == "tcp" and address.tls is None:
        return "; where it expects TLS, the URL begins with rediss://"
    if address.tls is not None and address.tls.certfile is None:
        return "; where it asks for a certificate, the URL names one by ssl_certfile and ssl_keyfile"
    return ""


async def inspect_server(
    connection: AnyConnection, keys: Keys, address: Address, *, of_cluster: bool
) -> bool:
    """Check the rights of a store's user before the store is used; warn of dangers to the data.

    One round trip; nothing is written. A server that cannot check rights is trusted.

    Returns:
        Whether the check was made; False: the server does not serve now, and the next connection repeats it.

    Raises:
        SettingsError: the user lacks a right; the message says which, and how to give it. Without it a script
            would stop half way.
        StoreError: the server does not answer.
    """
    words = words_to_try(keys.shard(0, "dirty"), of_cluster=of_cluster)
    asked = (
        connection.ask("EVAL", script_files.load("missing_rights").text, 0, *words),
        connection.ask("INFO", "memory"),
        connection.ask("INFO", "cluster"),
    )
    rights, memory, cluster = await asyncio.gather(*asked)
    if not _has_all_rights(rights, keys, address):
        return False
    part_of_cluster = None if of_cluster else cluster_warning(_info_of(cluster))
    for warning in filter(None, (_eviction_warning(memory), part_of_cluster)):
        _logger.warning("the store at %s: %s", address, warning)
    return True


def _has_all_rights(reply: Any, keys: Keys, address: Address) -> bool:
    user = address.username or "default"
    if isinstance(reply, ReplyError):
        if reply.code == _NO_RIGHT:
            raise refusal_error(address, reply, is_known=False)
        _logger.info("the store at %s does not say what its user may do: %s", address, reply)
        return reply.code == "ERR"
    refusal = rights_refusal(reply, user=user, prefix=keys.prefix)
    if refusal is not None:
        raise unusable_store(f"the store at {address}: {refusal}")
    if (lack := scan_refusal(reply, user=user)) is not None:
        _logger.warning("the store at %s: %s", address, lack)
    return True


def _eviction_warning(reply: Any) -> str | None:
    """Warning about a server's eviction of keys; None if it evicts none."""
    return _NOT_KNOWN if isinstance(reply, ReplyError) else eviction_warning(_info_of(reply))


def _info_of(reply: Any) -> dict[str, str]:
    """Fields of a reply to INFO; none where it is an error."""
    text: str = "" if isinstance(reply, ReplyError) else reply.decode(errors="replace")
    return {name: value for name, _, value in (line.partition(":") for line in text.splitlines())}


async def check_store_format(connection: AnyConnection, keys: Keys, address: Address) -> None:
    """Write format and shards into a new store; check those of a store in use.

    Raises:
        SettingsError: the store has another number of shards, or another format.
        StoreError: the store refuses to serve.
    """
    # Written each time, so that a read-only server is found before it is used.
    replies = await asyncio.gather(
        connection.ask("HSETNX", keys.meta, "format", FORMAT),
        connection.ask("HSETNX", keys.meta, "shards", keys.shards),
        connection.ask("HMGET", keys.meta, "format", "shards"),
    )
    # If only writes are refused, the stored values are still checked: a process that only reads may use them.
    refusal = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
    found = replies[-1]
    if refusal is not None and (isinstance(found, ReplyError) or None in found):
        raise _not_serving_error(address, refusal)
    try:
        written, shards = (int(value) for value in found)
    except (TypeError, ValueError):
        raise StoreError(
            f"the store at {address} holds at {keys.meta} what meterkit did not write: {found}",
            executed=False,
        ) from None
    if written > FORMAT:
        raise SettingsError(
            "redis_url",
            f"the store at {address} was written by a newer release of meterkit (format {written}; "
            f"this release reads up to {FORMAT}); upgrade this process",
        )
    if written < FORMAT:
        raise SettingsError(
            "redis_url",
            f"the store at {address} was written by an older release of meterkit (format {written}; this "
            f"release reads format {FORMAT} only); deliver what is pending with that release (`meterkit "
            "flush`), then give this one an empty database or another key prefix",
        )
    if shards != keys.shards:
        raise SettingsError(
            "shards",
            f"the store at {address} has {shards} shards and METERKIT_SHARDS is {keys.shards}; "
            f"the number is fixed once a store is in use: set it to {shards}",
        )
    if refusal is not None:
        raise _not_serving_error(address, refusal)


def refusal_error(address: Address, reply: ReplyError, *, is_known: bool) -> MeterkitError:
    """Error for a server that refuses: its own words, and a cure if one is known.

    A missing right is a fault of the settings, unless they have reached the store before.
    """
    if reply.code != _NO_RIGHT:
        return _not_serving_error(address, reply)
    command = _COMMAND.search(str(reply))
    user = address.username or "default"
    cure = "" if command is None else f". Add the right: ACL SETUSER {user} +{command[1]}"
    why = f"the store at {address} refuses to serve: {reply}{cure}"
    return StoreError(why, executed=False) if is_known else unusable_store(why)


def _not_serving_error(address: Address, reply: ReplyError) -> StoreError:
    """Error for a server that can be reached and does not serve, in its own words."""
    hint = _HINTS.get(reply.code, "")
    return StoreError(f"the store at {address} refuses to serve: {reply}{hint}", executed=False)
