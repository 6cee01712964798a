"""Findings about the store's servers: latency, durability, sentinels, slots without a node."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as NoAnswerError

from meterkit.decisions.keys import FORMAT
from meterkit.errors import StoreError
from meterkit.health.findings import Finding, named, single
from meterkit.redis.discovery import ask_sentinel, find_slots, slot_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.redis.admin import Admin
    from meterkit.redis.durability import DurabilityCheck
    from meterkit.redis.server import Durability
    from meterkit.redis.url import Address


async def _sentinels(parts: Parts) -> tuple[str, list[Finding]]:
    address, timeout_s, clock = parts.store.address, parts.settings.store_timeout, parts.store.clock
    said: dict[str, str] = {}
    for place in address.places:
        try:
            said[str(place)] = str(await ask_sentinel(place, address, timeout_s=timeout_s, clock=clock))
        except StoreError as error:
            said[str(place)] = f"no master: {error}"
    return ", ".join(sorted(set(said.values()))), _disagreement(said)


async def _slots(parts: Parts) -> tuple[str, list[Finding]]:
    keys, timeout_s = parts.store.keys, parts.settings.store_timeout
    slots = await find_slots(parts.store.address, (), timeout_s=timeout_s, clock=parts.store.clock)
    names = [keys.meta, keys.events, *(keys.shard(shard, "") for shard in range(keys.shards))]
    return f"{len(slots.places)} nodes", _uncovered(
        [name for name in names if slots.of(slot_of(name)) is None]
    )


def no_replica() -> list[Finding]:
    """A server that another may take the place of, which does not follow it."""
    return single(
        check="replication",
        problem="no replica follows the server, and another one may take its place that lacks what is"
        " sent: with a live Stripe key nothing is delivered from there",
        cure="start its replica again",
    )


def _disagreement(said: Mapping[str, str]) -> list[Finding]:
    """What the sentinels name, by their places."""
    masters = list(said.values())
    most = max(masters, key=masters.count)
    return [
        Finding(
            check="sentinels",
            problem=f"the sentinel at {place} names {master}"
            + ("" if master == most else f", most others {most}"),
            cure="see that it runs, and that it reaches the others",
        )
        for place, master in said.items()
        if master != most or master.startswith("no master")
    ]


def _uncovered(nobodys: Sequence[str]) -> list[Finding]:
    """Keys whose slots no node of the cluster has."""
    if not nobodys:
        return []
    return single(
        check="slots",
        problem=f"no node has the slots of {named(nobodys)}: what is asked of them is refused",
        cure="redis-cli --cluster fix, or start the node that had them",
    )


CHECKS: Final[Mapping[str, Mapping[str, Callable[[Parts], Awaitable[tuple[str, list[Finding]]]]]]] = {
    "sentinel": {"sentinels": _sentinels},
    "cluster": {"slots": _slots},
}
"""Further checks, by the kind of the store's address."""


_TRIES: Final = 5
_GONE_MS: Final = 10_000
_FULL: Final = 0.9
_CURES: Final[Mapping[str, str]] = {
    "used memory": "give it more memory (maxmemory), or find who fills it",
    "MISCONF": "its snapshot or its append-only file cannot be written: give its disk room, and look at"
    " its log",
    "read only": "name its master; behind sentinels or in a cluster it is found",
    "NOREPLICAS": "start its replicas: it takes writes with as many as min-replicas-to-write says",
}


async def look_at_breaker(parts: Parts, admin: Admin) -> tuple[str, list[Finding]]:
    """Ask what opens and closes the breaker of each process: whether a write is taken, and how soon.

    Raises:
        StoreError: the store does not answer.
    """
    key, took_s = parts.store.keys.meta, list[float]()
    is_new = await admin.ask(admin.client.hget(key, "format")) is None
    for _ in range(_TRIES):
        began = perf_counter()
        try:
            # As each connection of an app does; what is there stays as it is.
            probe = admin.client.ping() if is_new else admin.client.hsetnx(key, "format", FORMAT)
            await admin.ask(probe)
        except StoreError as error:
            if not isinstance(error.__cause__, ResponseError) or isinstance(
                error.__cause__, NoPermissionError
            ):
                raise
            return "open", [refusing(str(error))]
        took_s.append(perf_counter() - began)
    typical_s, timeout_s = median(took_s), parts.settings.store_timeout
    return f"answers within {typical_s * 1000:.1f} ms", late(typical_s, timeout_s)


def unreachable(error: StoreError, address: Address) -> Finding:
    """The server does not answer, or does not let us in."""
    cure = "see that it runs; --redis or METERKIT_REDIS_URL names another"
    if isinstance(error.__cause__, AuthenticationError):
        cure = "correct user and password in METERKIT_REDIS_URL; a `%`, `@` or `/` in them is percent-encoded"
    elif isinstance(error.__cause__, NoAnswerError) and address.kind == "tcp":
        wants = (
            "expects TLS, the URL begins with rediss://"
            if address.tls is None
            else "does not speak TLS, the URL begins with redis://"
        )
        cure = f"see that it runs, and that the network lets this host there; where it {wants}"
    return Finding(check="server", problem=str(error), cure=cure)


def refusing(words: str) -> Finding:
    """The store takes no writes; in its own words."""
    cure = next((cure for word, cure in _CURES.items() if word in words), "look at the server's log")
    return Finding(
        check="breaker",
        problem=f"{words}: it takes no writes, so each process decides without it (on_store_failure), and"
        " usage waits in spools",
        cure=cure,
    )


def late(typical_s: float, timeout_s: float) -> list[Finding]:
    """Whether the store answers well within the store timeout."""
    if typical_s <= timeout_s / 2:
        return []
    return single(
        check="breaker",
        problem=f"an answer takes {typical_s:.2g} s, and a request waits {timeout_s:g} s for it"
        " (METERKIT_STORE_TIMEOUT): now and then, or always, requests are decided without the store",
        cure="keep the store in the zone of the app, see what it is busy with (SLOWLOG GET), or set a"
        " longer METERKIT_STORE_TIMEOUT",
    )


async def look_at_durability(
    keeping: DurabilityCheck, way: Durability, key: str
) -> tuple[str, list[Finding]]:
    """Have a write kept, as before each delivery; how that is done, and how soon.

    Args:
        keeping: of a server.
        way: how it is made sure there.
        key: which the server has; it is written, and gone after ten seconds.

    Raises:
        StoreError: the store does not answer.
    """
    commands = keeping.commands(way)
    if not commands:
        text = "no promise" if way == "none" else "by age: what is two seconds old counts as kept"
        return text, []
    began = perf_counter()
    pipe: Any = keeping.admin.for_delivery().client.pipeline(transaction=False)
    pipe.set(key, 1, px=_GONE_MS)
    for command in commands:
        pipe.execute_command(*command)
    replies: Sequence[Any] = await keeping.admin.ask(pipe.execute(raise_on_error=False))
    try:
        for reply in replies[1:]:
            await keeping.check(reply)
    except StoreError as error:
        return way, [unkept(str(error))]
    promise = {"WAITAOF": "its disk", "WAIT": "a replica"}.get(way, "its disk and a replica")
    return f"{way}: on {promise} within {(perf_counter() - began) * 1000:.0f} ms", []


def unkept(why: str) -> Finding:
    """The store does not keep what is to be sent, in time."""
    return Finding(
        check="durability",
        problem=f"{why.partition(';')[0]}: nothing is delivered to Stripe until it does",
        cure="see to the server's disk (INFO persistence, LATENCY DOCTOR) and to its replicas (INFO"
        " replication)",
    )


def full(memory: Mapping[str, str]) -> list[Finding]:
    """Whether the server has room; by ``INFO memory``."""
    most, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
    if not most or used < _FULL * most:
        return []
    if used <= most:
        state = f"uses {used / most:.0%} of its maxmemory of {most:,} bytes: full, it refuses"
    else:
        state = f"uses {used:,} bytes, more than its maxmemory of {most:,}: it refuses"
    return single(
        check="memory",
        problem=f"the server {state} writes, and requests are decided without it",
        cure="raise maxmemory; a customer takes one to six kilobytes, and nothing of them may be evicted",
    )
