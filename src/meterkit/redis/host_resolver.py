"""Host resolver: looks names up in daemon threads, so that a resolver that hangs blocks none of the app's.

asyncio looks names up in the few threads of ``asyncio.to_thread``. A resolver that does not answer keeps each
for half a minute, however soon its callers give up; each try takes another, until none is left.
"""

from __future__ import annotations

import os
import socket
from asyncio import wrap_future
from functools import partial
from ipaddress import ip_address
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from meterkit.redis.daemon_thread import in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
