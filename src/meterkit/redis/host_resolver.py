"""Names of hosts, looked up in threads of our own: a resolver that hangs takes none of the app's.

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
    """A name that is being looked up, or has just been."""

    def __init__(self, host: str) -> None:
        self._ended_s = inf
        self.found = in_daemon_thread(partial(_resolve, host), name="meterkit-names")
        self.found.add_done_callback(self._note_end)

    def _note_end(self, _: object) -> None:
        self._ended_s = monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether what was found, or will be, is of now."""
        return monotonic() < self._ended_s + _FRESH_S


def _resolve(host: str) -> Sequence[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


_lookups: Final[dict[str, _Lookup]] = {}
os.register_at_fork(after_in_child=_lookups.clear)  # Their threads are the parent's.


async def addresses_of(host: str) -> Sequence[str]:
    """The addresses that a name leads to, at least one; of an address itself.

    A name is looked up once at a time, for all callers. A result that comes after all gave up is for one that
    asks next: else a resolver that is slower than they are patient would never be heard.

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
