"""Checks of the store's servers: rights, persistence, eviction, replication, clock, scripts, latency."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as NoAnswerError

from meterkit.catalog.value_parsers import span
from meterkit.decisions.keys import WITHOUT_TTL
from meterkit.errors import MeterkitError, StoreError
from meterkit.insights.health_report import CheckSkippedError, Finding, join_names, one_finding
from meterkit.insights.store_readings import ask_server, info_text
from meterkit.redis import scripts
from meterkit.redis.discovery import ignore_end
from meterkit.redis.durability import DurabilityCheck
from meterkit.redis.handshake import connect
from meterkit.redis.server import (
    cluster_warning,
    eviction_warning,
    is_replica_current,
    rights_refusal,
    scan_refusal,
    words_to_try,
)
from meterkit.redis.store_clock import CLOCK_APART_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.outbox.outbox import Outbox
    from meterkit.redis.admin import Admin
    from meterkit.redis.durability import Durability
    from meterkit.redis.url import Address

_REDIS_LEAST: Final = (7, 0)
_VALKEY_LEAST: Final = (8, 0)
_SCAN_COUNT: Final = 1_000
_SCANS_MAX: Final = 200
_GONE_MS: Final = 10_000
_FULL: Final = 0.9
_CONNECT_S: Final = 2.0
_LIMIT_REACHED: Final = "max number of clients reached"
INFO_REFUSED: Final = "the server's user may not ask for INFO"


CheckResult = tuple[str, list[Finding]]
"""A short summary for ``looked_at``, and the findings."""


@dataclass(slots=True, kw_only=True)
class CheckContext:
    """The server under examination, and readings that several checks share."""

    parts: Parts
    admin: Admin
    outbox: Outbox
    claims: list[str] | None = None
    _info: Mapping[str, str] | None = None

    @property
    def client(self) -> Any:
        """The Redis client."""
        return self.admin.client

    @property
    def keeping(self) -> DurabilityCheck:
        """The durability of the server."""
        return DurabilityCheck(
            self.admin, self.admin.address, needed=False, kind=self.parts.store.address.kind
        )

    async def info(self) -> Mapping[str, str]:
        """Read ``INFO everything`` once."""
        if self._info is None:
            told = await ask_server(self.admin, self.client.info("everything"))
            if told is None:
                raise CheckSkippedError(INFO_REFUSED)
            self._info = {name: info_text(value) for name, value in told.items()}
        return self._info


def report_unreachable_server(error: StoreError, address: Address) -> Finding:
    """Report a server that does not answer or refuses the login."""
    cure = "start it, or name another server with --redis or METERKIT_REDIS_URL"
    if isinstance(error.__cause__, AuthenticationError):
        cure = "correct user and password in METERKIT_REDIS_URL; a `%`, `@` or `/` in them is percent-encoded"
    elif isinstance(error.__cause__, NoAnswerError) and address.kind == "tcp":
        wants = (
            "expects TLS, the URL begins with rediss://"
            if address.tls is None
            else "does not speak TLS, the URL begins with redis://"
        )
        cure = f"start it, and let this host through the network; if it {wants}"
    return Finding(check="server", problem=str(error), cure=cure)


async def find_client_limit(address: Address) -> list[Finding]:
    """Report a server that takes no further connection: redis-py knows only that it was closed."""
    if address.kind != "tcp":
        return []
    try:
        connection = await connect(address, (), timeout_s=_CONNECT_S, on_end=ignore_end)
    except MeterkitError as error:
        if _LIMIT_REACHED not in str(error):
            return []
        cure = "raise its maxclients, or close connections that others leave open (redis-cli CLIENT LIST)"
        return one_finding(check="server", problem=str(error), cure=cure)
    await connection.close()
    return []


async def check_server(context: CheckContext) -> CheckResult:
    """Check the server's version."""
    info = await context.info()
    name, version, _ = read_server_version(info)
    found = find_old_server(info)
    if context.parts.store.address.kind != "cluster":
        found += _report_warning("server", cluster_warning(info))
    return f"{name} {version} at {context.admin.address}", found


def _report_warning(check: str, warning: str | None) -> list[Finding]:
    """Report what is also logged at the start: the problem, and its cure behind the last semicolon."""
    if warning is None:
        return []
    problem, _, cure = warning.rpartition("; ")
    return one_finding(check=check, problem=problem, cure=cure)


def find_old_server(server: Mapping[str, str]) -> list[Finding]:
    """Report a server that is too old, by ``INFO server``."""
    name, found, least = read_server_version(server)
    if found is None or _version_numbers(found) >= least:
        return []
    return one_finding(
        check="server",
        problem=f"the server is {name} {found}, which is too old for meterkit",
        cure=f"upgrade it to {name} {'.'.join(map(str, least))} or later",
    )


def read_server_version(server: Mapping[str, str]) -> tuple[str, str | None, tuple[int, ...]]:
    """Read the name, version and oldest supported version of a server."""
    # Valkey also says which Redis it is compatible with.
    if "valkey_version" in server:
        return "Valkey", server["valkey_version"], _VALKEY_LEAST
    return "Redis", server.get("redis_version"), _REDIS_LEAST


def _version_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


async def check_rights(context: CheckContext) -> CheckResult:
    """Check which commands the server's user may run."""
    store, user = context.parts.store, context.parts.store.address.username or "default"
    words = words_to_try(store.keys.shard(0, "dirty"), of_cluster=store.address.kind == "cluster")
    try:
        refused: list[int] = await context.admin.ask(
            context.client.eval(scripts.load("missing_rights").text, 0, *words)
        )
    except StoreError as error:
        if isinstance(error.__cause__, NoPermissionError):
            cure = f"add it: ACL SETUSER {user} +eval"
            return "", [Finding(check="rights", problem=str(error), cure=cure)]
        if isinstance(error.__cause__, ResponseError):
            raise CheckSkippedError(
                f"the server does not say what its user may do: {error.__cause__}"
            ) from error
        raise
    return f"user {user}", find_missing_rights(refused, user=user, prefix=store.keys.prefix)


def find_missing_rights(refused: Sequence[int], *, user: str, prefix: str) -> list[Finding]:
    """Report commands that the server's user may not run; ``refused`` as of :func:`rights_refusal`."""
    refusals = (rights_refusal(refused, user=user, prefix=prefix), scan_refusal(refused, user=user))
    parts = (refusal.partition(" Add it: ") for refusal in refusals if refusal is not None)
    return [
        Finding(check="rights", problem=problem.rstrip("."), cure=f"add it: {cure}")
        for problem, _, cure in parts
    ]


async def check_persistence(context: CheckContext) -> CheckResult:
    """Check that the server persists writes."""
    info: Mapping[str, str] = {}
    with suppress(CheckSkippedError):
        info = await context.info()
    appendfsync = await _appendfsync(context)
    if appendfsync == "no" and info.get("aof_enabled") == "1":
        way: Durability = "age"  # `keeping.way` would raise: nothing can be sent.
    else:
        way = await context.keeping.find_method()
        if way == "age" and not info:
            raise CheckSkippedError(INFO_REFUSED)
    accepted = context.parts.settings.deliver_without_persistence
    return f"by {way}", find_persistence_faults(way, info, appendfsync=appendfsync, is_accepted=accepted)


async def _appendfsync(context: CheckContext) -> str | None:
    """Read the option ``appendfsync``; None if the user may not read options."""
    told = await ask_server(context.admin, context.client.config_get("appendfsync"))
    return None if told is None else told.get("appendfsync")


def find_persistence_faults(
    way: Durability, info: Mapping[str, str], *, appendfsync: str | None, is_accepted: bool
) -> list[Finding]:
    """Report missing persistence, by ``INFO persistence``.

    Args:
        way: the proof of durability that the server offers.
        info: ``INFO``; empty if the user may not read it.
        appendfsync: the option; None if the user may not read it.
        is_accepted: the setting ``deliver_without_persistence``.
    """
    found: list[Finding] = []
    if way == "none" and not is_accepted:
        found += one_finding(
            check="persistence",
            problem="the server has neither an append-only file nor a replica: a restart loses customers,"
            " usage and deliveries; with a live Stripe key, usage is not delivered from this server",
            cure="set appendonly yes, or, if data is persisted in another way,"
            " METERKIT_DELIVER_WITHOUT_PERSISTENCE=on",
        )
    if appendfsync == "no" and info.get("aof_enabled") == "1":
        found += one_finding(
            check="persistence",
            problem="the server has appendfsync no: it cannot confirm what is on its disk; nothing is sent",
            cure="set appendfsync everysec",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        found += one_finding(
            check="persistence",
            problem="the server could not write its append-only file, and refuses writes until it can",
            cure="free disk space on the server, and read its log",
        )
    return found


async def check_durability(context: CheckContext) -> CheckResult:
    """Check how soon a write is durable, with a key that this server holds."""
    if await _appendfsync(context) == "no":
        raise CheckSkippedError("the server cannot confirm what is on its disk (appendfsync no)")
    keys, admin = context.parts.store.keys, await context.parts.store.admin()
    for key in (keys.shard(shard, "doctor") for shard in range(keys.shards)):
        if (await admin.at(key)).address == context.admin.address:
            return await measure_durability(context.keeping, await context.keeping.find_method(), key)
    return "has no keys", []


async def measure_durability(
    keeping: DurabilityCheck, way: Durability, key: str
) -> tuple[str, list[Finding]]:
    """Make one write durable, as before each delivery, and measure how long it takes.

    Args:
        keeping: the durability of a server.
        way: the proof of durability that it offers.
        key: a key of the server; it is written, and expires after ten seconds.

    Raises:
        StoreError: the store does not answer.
    """
    commands = keeping.commands(way)
    if not commands:
        text = "no promise" if way == "none" else "by age: a write that is two seconds old counts as durable"
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
        return way, [report_unpersisted_write(str(error))]
    promise = {"WAITAOF": "its disk", "WAIT": "a replica"}.get(way, "its disk and a replica")
    return f"{way}: on {promise} within {(perf_counter() - began) * 1000:.0f} ms", []


def report_unpersisted_write(why: str) -> Finding:
    """Report a write that was not durable in time."""
    return Finding(
        check="durability",
        problem=f"{why.partition(';')[0]}: nothing is delivered to Stripe until it does",
        cure="check the server's disk (INFO persistence, LATENCY DOCTOR) and its replicas (INFO replication)",
    )


async def check_eviction(context: CheckContext) -> CheckResult:
    """Check the eviction policy and the free memory."""
    info = await context.info()
    found = _report_warning("eviction", eviction_warning(info))
    return info.get("maxmemory_policy", ""), [*found, *find_full_memory(info)]


def find_full_memory(memory: Mapping[str, str]) -> list[Finding]:
    """Report a server without free memory, by ``INFO memory``."""
    most, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
    if not most or used < _FULL * most:
        return []
    if used <= most:
        state = f"uses {used / most:.0%} of its maxmemory of {most:,} bytes: full, it refuses"
    else:
        state = f"uses {used:,} bytes, more than its maxmemory of {most:,}: it refuses"
    return one_finding(
        check="memory",
        problem=f"the server {state} writes, and requests are decided without it",
        cure="raise maxmemory; each customer takes one to six kilobytes, and none of it may be evicted",
    )


async def check_replication(context: CheckContext) -> CheckResult:
    """Check the server's role, its replicas, and how much a failover may lose."""
    info = await context.info()
    found = find_replication_faults(info)
    if await context.keeping.has_successor():
        if info.get("connected_slaves") == "0":
            found += report_missing_replica()
        if not context.parts.settings.deliver_without_persistence:
            found += find_unbounded_loss(info)
    return f"{info.get('connected_slaves', 0)} replicas", found


def find_unbounded_loss(info: Mapping[str, str]) -> list[Finding]:
    """Report a master that accepts writes without a replica that follows, by ``INFO replication``.

    A server tells the number of good replicas only if min-replicas-to-write and min-replicas-max-lag are set.
    """
    if info.get("role") == "slave" or "min_slaves_good_slaves" in info:
        return []
    return one_finding(
        check="replication",
        problem="the server accepts writes while no replica follows (min-replicas-to-write 0): a failover"
        " loses all requests that it acknowledges until it learns of the new master",
        cure="set min-replicas-to-write 1 and min-replicas-max-lag 10 on each server (CONFIG SET, and in its"
        " file)",
    )


def find_replication_faults(info: Mapping[str, str]) -> list[Finding]:
    """Report a server that is a replica, and replicas that lag, by ``INFO replication``."""
    if info.get("role") == "slave":
        return one_finding(
            check="replication",
            problem="the server is a replica: nothing is decided or counted there",
            cure=f"name its master, {info.get('master_host')}:{info.get('master_port')}",
        )
    return [
        Finding(
            check="replication",
            problem=f"{name} ({text}) does not follow: its missing writes are lost if it takes over",
            cure="check the replica's log and the network between the two servers",
        )
        for name, text in info.items()
        if name.removeprefix("slave").isdecimal() and not is_replica_current(text)
    ]


def report_missing_replica() -> list[Finding]:
    """Report a server without a replica where a failover could lose writes."""
    return one_finding(
        check="replication",
        problem="no replica follows the server, so a failover could forget what was sent to Stripe: with"
        " a live Stripe key, usage is not delivered from this server",
        cure="start its replica again",
    )


async def check_clock(context: CheckContext) -> CheckResult:
    """Compare the server's clock with this host's."""
    clock = context.parts.store.host_clock
    before_s = clock()
    seconds, microseconds = await context.admin.ask(context.client.time())
    ahead_ms = int(seconds * 1000 + microseconds / 1000 - (before_s + clock()) * 500)
    return f"the server's is {ahead_ms} ms ahead", find_clock_drift(ahead_ms)


def find_clock_drift(ahead_ms: int) -> list[Finding]:
    """Report a server's clock that is too far ahead or behind."""
    apart_ms = abs(ahead_ms)
    if apart_ms <= CLOCK_APART_S * 1000:
        return []
    where = "ahead of" if ahead_ms > 0 else "behind"
    return one_finding(
        check="clock",
        problem=f"the server's clock is {span(apart_ms)} {where} this host's; limits, periods and usage go by"
        " the server's",
        cure="synchronize both hosts with NTP (chrony, systemd-timesyncd); if the server's clock is set back,"
        " windows of rates restart",
    )


async def check_script_cache(context: CheckContext) -> CheckResult:
    """Check that the server runs a script by its SHA."""
    script = context.parts.store.scripts["count_due"]
    cure = "connect to the server directly, not through a proxy that blocks scripts"
    try:
        await context.admin.load(script)
        await context.admin.ask(context.client.evalsha(script.sha, 0, "+inf", context.admin.now_ms()))
    except StoreError as error:
        if not isinstance(error.__cause__, ResponseError) or isinstance(error.__cause__, NoPermissionError):
            raise
        why = "it forgets a script" if isinstance(error.__cause__, NoScriptError) else str(error.__cause__)
        problem = f"the server's script cache cannot be used, and every decision needs it: {why}"
        return "", [Finding(check="scripts", problem=problem, cure=cure)]
    return "kept", []


async def check_keys(context: CheckContext) -> CheckResult:
    """Scan the keys for missing TTLs, and remember the claims of Stripe customers."""
    prefix, allowed = context.parts.store.keys.prefix, [re.compile(pattern) for pattern in WITHOUT_TTL]
    claim = re.compile(rf"{re.escape(prefix)}:\{{\d+\}}:l:")
    cursor, count, without_ttl, claims = 0, 0, list[str](), list[str]()
    for _ in range(_SCANS_MAX):
        cursor, page = await context.admin.ask(
            context.client.scan(cursor, match=f"{prefix}:*", count=_SCAN_COUNT)
        )
        count += len(page)
        names = [name.decode(errors="replace") for name in page]
        claims += filter(claim.match, names)
        lives: list[int] = await context.admin.ask_all(("pttl", name) for name in page)
        without_ttl += [
            name
            for name, life_ms in zip(names, lives, strict=True)
            if life_ms == -1 and not any(pattern.match(name) for pattern in allowed)
        ]
        if not cursor:
            break
    context.claims = claims
    return f"{'the first' if cursor else 'all'} {count:,} keys", find_keys_without_ttl(
        sorted(set(without_ttl))
    )


def find_keys_without_ttl(keys: Sequence[str]) -> list[Finding]:
    """Report keys that lack a TTL."""
    if not keys:
        return []
    what = "1 key has" if len(keys) == 1 else f"{len(keys):,} keys have"
    return one_finding(
        check="keys",
        problem=f"{what} no TTL and should have one: {join_names(keys)}",
        cure="find the program that writes under this prefix (METERKIT_KEY_PREFIX); delete unneeded keys",
    )
