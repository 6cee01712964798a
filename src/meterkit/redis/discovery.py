"""Discovery: the master by sentinels, and the nodes of a cluster by CLUSTER SLOTS."""

from __future__ import annotations

import asyncio
import re
from binascii import crc_hqx
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.cancellation import start_task
from meterkit.errors import StoreError
from meterkit.redis.connection import ReplyError
from meterkit.redis.handshake import connect, refusal_error
from meterkit.redis.url import HostPort

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from meterkit.redis.url import Address


async def master_of(
    address: Address, *, timeout_s: float, clock: Callable[[], float], is_known: bool = False
) -> Address:
    """Find the master by a majority of the sentinels, asked at once.

    If fewer answer in time, the most frequent answer counts: a single sentinel may have been cut off from the
    others, and not know of a failover.

    Args:
        address: of the kind ``sentinel``.
        timeout_s: how long a sentinel may take.
        clock: seconds since the epoch.
        is_known: whether the URL has led to the store before.

    Raises:
        StoreError: no sentinel knows the master; the message has the last error.
    """
    asked = [
        start_task(ask_sentinel(place, address, timeout_s=timeout_s, clock=clock, is_known=is_known))
        for place in address.places
    ]
    votes: Counter[HostPort] = Counter()
    trouble: StoreError | None = None
    try:
        for answer in asyncio.as_completed(asked):
            try:
                place = await answer
            except StoreError as error:
                trouble = error
                continue
            votes[place] += 1
            if 2 * votes[place] > len(asked):
                break
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if not votes:
        raise StoreError(f"no sentinel of {address} names a master: {trouble}", executed=False) from trouble
    return address.at(votes.most_common(1)[0][0])


async def ask_sentinel(
    place: HostPort, address: Address, *, timeout_s: float, clock: Callable[[], float], is_known: bool = False
) -> HostPort:
    """Ask one sentinel for the master. Raises StoreError if it does not name one."""
    command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
    [reply] = await _ask_once(
        address.sentinel_at(place), command, timeout_s=timeout_s, clock=clock, is_known=is_known
    )
    if isinstance(reply, ReplyError):
        raise StoreError(f"the sentinel at {place} answers: {reply}", executed=False)
    if reply is None:
        raise StoreError(f"the sentinel at {place} knows no master {address.service!r}", executed=False)
    host, port = reply
    return HostPort(host.decode(), int(port))


SlotFinder = Callable[["Collection[HostPort]"], Awaitable["Slots"]]
"""Fetches the slots; gets the nodes to ask first. Raises StoreError if none answers."""
_SLOTS: Final = 16_384
_TAG: Final = re.compile(rb"\{([^}]+)\}")


def slot_of(key: str | bytes) -> int:
    """The hash slot of a key: that of its hash tag, where it has one."""
    name = key.encode() if isinstance(key, str) else key
    tag = _TAG.search(name)
    return crc_hqx(tag[1] if tag else name, 0) % _SLOTS


@dataclass(frozen=True, slots=True)
class Slots:
    """Slots of a cluster, by node.

    Attributes:
        ranges: the first and the last slot of each range, and the node that is its master.
    """

    ranges: tuple[tuple[int, int, HostPort], ...]

    def of(self, slot: int) -> HostPort | None:
        """The node that has a slot; None where none has."""
        return next((place for first, last, place in self.ranges if first <= slot <= last), None)

    @property
    def places(self) -> tuple[HostPort, ...]:
        """All masters."""
        return tuple(dict.fromkeys(place for _, _, place in self.ranges))


def slots_of(reply: Any, asked: HostPort) -> Slots:
    """Read a node's reply to CLUSTER SLOTS.

    Args:
        reply: its reply.
        asked: address of the node: it leaves out a host that it does not know of itself.
    """
    ranges: list[tuple[int, int, HostPort]] = []
    for first, last, (host, port, *_), *_ in reply:
        ranges.append((first, last, HostPort(_host((host or b"").decode(), asked), port)))
    return Slots(tuple(ranges))


def redirection_of(reply: str, answered: HostPort) -> HostPort:
    """Target of MOVED or ASK: its last word, without a host if the node does not know its own.

    Args:
        reply: the words of the error.
        answered: the node that replied.
    """
    host, _, port = reply.rsplit(" ", 1)[-1].rpartition(":")
    return HostPort(_host(host, answered), int(port))


def _host(named: str, asked: HostPort) -> str:
    return asked.host if named in {"", "?"} else named


async def find_slots(
    address: Address,
    known: Iterable[HostPort],
    *,
    timeout_s: float,
    clock: Callable[[], float],
    is_known: bool = False,
) -> Slots:
    """Fetch the slots from the first node that answers: the known ones, then those of the URL.

    A node that does not reach most masters is believed last: it does not know who has taken over.
    ``is_known``: whether the URL has led to the store before.

    Raises:
        StoreError: no node answers; the message has the last error.
    """
    trouble: StoreError | None = None
    last_known: Slots | None = None
    for place in dict.fromkeys((*known, *address.places)):
        try:
            slots, is_cut_off = await _ask_node(
                address.at(place), place, timeout_s=timeout_s, clock=clock, is_known=is_known
            )
        except StoreError as error:
            trouble = error
        else:
            if not is_cut_off:
                return slots
            last_known = last_known or slots
    if last_known is not None:
        return last_known
    why = "no node is named" if trouble is None else trouble
    raise StoreError(f"the cluster {address} cannot be reached: {why}", executed=False) from trouble


async def _ask_node(
    address: Address, place: HostPort, *, timeout_s: float, clock: Callable[[], float], is_known: bool
) -> tuple[Slots, bool]:
    """Ask a node for the slots, and whether it is cut off from most masters."""
    commands = ("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")
    reply, nodes = await _ask_once(address, *commands, timeout_s=timeout_s, clock=clock, is_known=is_known)
    if isinstance(reply, ReplyError):
        raise refusal_error(address, reply, is_known=is_known)
    slots = slots_of(reply, place)
    if not slots.ranges:
        raise StoreError(f"the store at {address} knows of no slots yet", executed=False)
    return slots, isinstance(nodes, bytes) and is_cut_off(nodes.decode())


_SLOTS_AT: Final = 8


def slots_of_myself(nodes: str) -> Sequence[str]:
    """Slots of the node that is asked, by its CLUSTER NODES; in brackets those that it gives or gets."""
    return next(line for line in map(str.split, nodes.splitlines()) if "myself" in line[2])[_SLOTS_AT:]


def is_cut_off(nodes: str) -> bool:
    """Whether a node does not reach most of the masters that have slots, by its CLUSTER NODES."""
    lines = [line.split() for line in nodes.splitlines()]
    masters = [line[2].split(",") for line in lines if len(line) > _SLOTS_AT and "master" in line[2]]
    return 2 * sum("fail" in flags or "fail?" in flags for flags in masters) >= len(masters) > 0


async def _ask_once(
    address: Address,
    *commands: Sequence[str],
    timeout_s: float,
    clock: Callable[[], float],
    is_known: bool,
) -> list[Any]:
    """Send commands over a connection of their own."""
    connection = await connect(
        address, (), timeout_s=timeout_s, on_end=ignore_end, clock=clock, is_known=is_known
    )
    try:
        return await asyncio.gather(*(connection.ask(*command) for command in commands))
    finally:
        await connection.close()


def ignore_end(_connection: object, _why: str, _unsent: object) -> None:
    """Ignore the end of a connection that sends plain commands only."""
