"""Reads what the findings are decided from: of the store's server, of what is kept there, and of Stripe."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from meterkit.catalog.route_notes import CHECK as LIMITS
from meterkit.catalog.route_notes import unasked_limits_of
from meterkit.customers.links import owner_of
from meterkit.decisions.keys import WITHOUT_TTL
from meterkit.errors import MeterkitError, StoreError
from meterkit.health import findings, store_servers
from meterkit.health.allotments import CHECK as ALLOTMENTS
from meterkit.health.allotments import allotments_of, units_of
from meterkit.health.audit_log import (
    look_at_audit_database,
    look_at_audit_log,
    look_at_revenue,
    look_at_roots,
)
from meterkit.health.backlogs import (
    look_at_closes,
    look_at_invoice_items,
    look_at_messages,
    look_at_stored_objects,
)
from meterkit.health.findings import Finding
from meterkit.health.health import Health, UnseenError
from meterkit.health.spools import look_at_spool_directory
from meterkit.health.store_servers import full, look_at_breaker, look_at_durability, unreachable
from meterkit.health.stripe_account import look_at_meters
from meterkit.health.unpriced_models import CHECK as MODELS
from meterkit.health.unpriced_models import find_unpriced_models
from meterkit.health.webhooks import look_at_subscriptions, look_at_webhooks
from meterkit.insights.store_readings import info_text, told_by
from meterkit.outbox.outbox import Outbox
from meterkit.redis import scripts
from meterkit.redis.durability import DurabilityCheck
from meterkit.redis.server import words_to_try

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.redis.admin import Admin
    from meterkit.redis.server import Durability

__all__ = ["Health", "examine"]

_SCAN_COUNT: Final = 1_000
_SCANS_MAX: Final = 200
_CLAIMS_MAX: Final = 1_000
_INTENTS_PER_SHARD: Final = 100
_Where = TypeVar("_Where")
_Looked = tuple[str, list[Finding]]
"""What a check saw, in short, and what is wrong with it."""

_OF_ONE_PROCESS: Final = "memory:// lives in one process: an app's is not seen from here"
_UNSEEN_INFO: Final = "the server's user may not ask for INFO"


async def examine(parts: Parts) -> Health:
    """Look at everything. Reads only, apart from what any start of meterkit tells a store."""
    found = Health()
    if parts.store.address.kind == "memory":
        for check in (*_OF_SERVER, *_OF_STORE, "spool"):
            found.not_looked_at[check] = _OF_ONE_PROCESS
    else:
        await _examine_store(parts, found)
        await _try("spool", look_at_spool_directory, parts, found)
        if parts.store.catalog.storage is not None:
            await _try("storage", look_at_stored_objects, parts, found)
    if parts.settings.audit_url is not None:
        await _try("database", look_at_audit_database, parts, found)
        await _try("revenue", look_at_revenue, parts, found)
        await _try("roots", look_at_roots, parts, found)
    await _try("stripe", look_at_meters, parts, found)
    if (allotted := allotments_of(parts.store.catalog)) is not None:
        units = units_of([lane.allotments for lane in parts.store.lanes.values() if lane.allotments])
        found.looked_at[ALLOTMENTS] = allotted + units
    if parts.store.cache.sells_models:
        if parts.store.address.kind != "memory" or parts.store.unpriced.has_noted:
            await _try(MODELS, find_unpriced_models, parts, found)
        else:
            found.not_looked_at[MODELS] = _OF_ONE_PROCESS
    if unasked := unasked_limits_of(parts.store.catalog):
        found.looked_at[LIMITS] = "; ".join(map(str, unasked))
    return found


async def _examine_store(parts: Parts, found: Health) -> None:
    admin = await parts.store.admin()
    servers = await _answering(admin, found)
    if not servers:
        for check in (*_OF_SERVER, *_OF_STORE):
            if check != "server":
                found.not_looked_at[check] = "the store cannot be asked"
        found.sort(_ORDER)
        return
    whole = _Seen(parts=parts, admin=admin, outbox=Outbox(parts.store, admin))
    for server in servers:
        seen = _Seen(parts=parts, admin=server, outbox=whole.outbox)
        one = Health()
        for check, look in _OF_SERVER.items():
            await _try(check, look, seen, one)
        found.add(one, of=str(server.address) if len(servers) > 1 else "")
        if seen.claims is not None:
            whole.claims = [*(whole.claims or ()), *seen.claims]
    for check, look_at_all in store_servers.CHECKS.get(parts.store.address.kind, {}).items():
        await _try(check, look_at_all, parts, found)
    for check, look in _OF_STORE.items():
        if check in _OF_CONTENT and any(one.check == "shards" for one in found.findings):
            found.not_looked_at[check] = "first the store and these settings must agree on the shards"
        else:
            await _try(check, look, whole, found)
    found.sort(_ORDER)


async def _answering(admin: Admin, found: Health) -> list[Admin]:
    """The servers that answer; what is wrong with the others is a finding."""
    answering: list[Admin] = []
    try:
        servers = await admin.servers()
    except StoreError as error:
        found.findings.append(unreachable(error, admin.address))
        return []
    for server in servers:
        try:
            await server.ask(server.client.ping())
        except StoreError as error:
            if not isinstance(error.__cause__, NoPermissionError):
                found.findings.append(unreachable(error, server.address))
                continue
        answering.append(server)
    return answering


async def _try(
    check: str, look: Callable[[_Where], Awaitable[_Looked]], where: _Where, found: Health
) -> None:
    try:
        found.looked_at[check], more = await look(where)
    except (UnseenError, MeterkitError) as error:
        found.not_looked_at[check] = str(error)
    else:
        found.findings += more


@dataclass(slots=True, kw_only=True)
class _Seen:
    """Where to look, and what is read once for several checks."""

    parts: Parts
    admin: Admin
    outbox: Outbox
    claims: list[str] | None = None
    _info: Mapping[str, str] | None = None

    @property
    def client(self) -> Any:
        return self.admin.client

    @property
    def keeping(self) -> DurabilityCheck:
        return DurabilityCheck(
            self.admin, self.admin.address, needed=False, kind=self.parts.store.address.kind
        )

    async def info(self) -> Mapping[str, str]:
        """What the server says of itself."""
        if self._info is None:
            told = await told_by(self.admin, self.client.info("everything"))
            if told is None:
                raise UnseenError(_UNSEEN_INFO)
            self._info = {name: info_text(value) for name, value in told.items()}
        return self._info


async def _server(seen: _Seen) -> _Looked:
    info = await seen.info()
    name, version, _ = findings.server_version(info)
    return f"{name} {version} at {seen.admin.address}", findings.version(info)


async def _rights(seen: _Seen) -> _Looked:
    store, user = seen.parts.store, seen.parts.store.address.username or "default"
    words = words_to_try(store.keys.shard(0, "dirty"), of_cluster=store.address.kind == "cluster")
    try:
        script = scripts.load("missing_rights").text
        refused: list[int] = await seen.admin.ask(seen.client.eval(script, 0, *words))
    except StoreError as error:
        if isinstance(error.__cause__, NoPermissionError):
            cure = f"add it: ACL SETUSER {user} +eval"
            return "", [Finding(check="rights", problem=str(error), cure=cure)]
        if isinstance(error.__cause__, ResponseError):
            raise UnseenError(f"the server does not say what its user may do: {error.__cause__}") from error
        raise
    return f"user {user}", findings.rights(refused, user=user, prefix=store.keys.prefix)


async def _persistence(seen: _Seen) -> _Looked:
    info: Mapping[str, str] = {}
    with suppress(UnseenError):
        info = await seen.info()
    appendfsync = await _appendfsync(seen)
    if appendfsync == "no" and info.get("aof_enabled") == "1":
        way: Durability = "age"  # Asked for its way, it would only say that nothing can be sent.
    else:
        way = await seen.keeping.find_method()
        if way == "age" and not info:
            raise UnseenError(_UNSEEN_INFO)
    accepted = seen.parts.settings.deliver_without_persistence
    return f"by {way}", findings.persistence(way, info, appendfsync=appendfsync, is_accepted=accepted)


async def _appendfsync(seen: _Seen) -> str | None:
    """When the server sees to its disk; None where it does not say."""
    told = await told_by(seen.admin, seen.client.config_get("appendfsync"))
    return None if told is None else told.get("appendfsync")


async def _durability(seen: _Seen) -> _Looked:
    if await _appendfsync(seen) == "no":
        raise UnseenError("the server never knows what is on its disk (appendfsync no)")
    keys, admin = seen.parts.store.keys, await seen.parts.store.admin()
    for key in (keys.shard(shard, "doctor") for shard in range(keys.shards)):
        if (await admin.at(key)).address == seen.admin.address:
            return await look_at_durability(seen.keeping, await seen.keeping.find_method(), key)
    return "has no keys", []


async def _eviction(seen: _Seen) -> _Looked:
    info = await seen.info()
    return info.get("maxmemory_policy", ""), [*findings.eviction(info), *full(info)]


async def _replication(seen: _Seen) -> _Looked:
    info = await seen.info()
    found = findings.replication(info)
    if info.get("connected_slaves") == "0" and await seen.keeping.has_successor():
        found += store_servers.no_replica()
    return f"{info.get('connected_slaves', 0)} replicas", found


async def _clock(seen: _Seen) -> _Looked:
    now_ms = seen.parts.store.now_ms
    before_ms = now_ms()
    seconds, microseconds = await seen.admin.ask(seen.client.time())
    ahead_ms = seconds * 1000 + microseconds // 1000 - (before_ms + now_ms()) // 2
    return f"the server's is {ahead_ms} ms ahead", findings.clock(ahead_ms)


async def _shards(seen: _Seen) -> _Looked:
    keys = seen.parts.store.keys
    kept: dict[bytes, bytes] = await seen.admin.ask(seen.client.hgetall(keys.meta))
    meta = {name.decode(): value.decode(errors="replace") for name, value in kept.items()}
    return meta.get("shards", "new"), findings.shards(meta, configured=keys.shards, key=keys.meta)


async def _script_cache(seen: _Seen) -> _Looked:
    script = seen.parts.store.scripts["count_due"]
    cure = "connect to the server itself, without a proxy between that keeps scripts from it"
    try:
        await seen.admin.load(script)
        await seen.admin.ask(seen.client.evalsha(script.sha, 0, "+inf", seen.admin.now_ms()))
    except StoreError as error:
        if not isinstance(error.__cause__, ResponseError) or isinstance(error.__cause__, NoPermissionError):
            raise
        why = "it forgets a script" if isinstance(error.__cause__, NoScriptError) else str(error.__cause__)
        problem = f"the server's script cache cannot be used, and every decision needs it: {why}"
        return "", [Finding(check="scripts", problem=problem, cure=cure)]
    return "kept", []


async def _keys(seen: _Seen) -> _Looked:
    prefix, allowed = seen.parts.store.keys.prefix, [re.compile(pattern) for pattern in WITHOUT_TTL]
    claim = re.compile(rf"{re.escape(prefix)}:\{{\d+\}}:l:")
    cursor, count, stray, claims = 0, 0, list[str](), list[str]()
    for _ in range(_SCANS_MAX):
        cursor, page = await seen.admin.ask(seen.client.scan(cursor, match=f"{prefix}:*", count=_SCAN_COUNT))
        count += len(page)
        names = [name.decode(errors="replace") for name in page]
        claims += filter(claim.match, names)
        pipe = seen.client.pipeline(transaction=False)
        for name in page:
            pipe.pttl(name)
        lives: list[int] = await seen.admin.ask(pipe.execute()) if page else []
        stray += [
            name
            for name, life_ms in zip(names, lives, strict=True)
            if life_ms == -1 and not any(pattern.match(name) for pattern in allowed)
        ]
        if not cursor:
            break
    seen.claims = claims
    return f"{'the first' if cursor else 'all'} {count:,} keys", findings.stray_keys(sorted(set(stray)))


async def _pending(seen: _Seen) -> _Looked:
    store = seen.parts.store
    now_ms = store.now_ms()
    due = [work for work in await seen.outbox.work(due_ms=now_ms - findings.OVERDUE_MS) if work.dirty]
    pipe = seen.client.pipeline(transaction=False)
    for work in due:
        pipe.zrange(store.keys.shard(work.shard, "dirty"), 0, 0, withscores=True)
    firsts: list[list[tuple[bytes, float]]] = await seen.admin.ask(pipe.execute()) if due else []
    oldest_ms = max((now_ms - int(first[0][1]) for first in firsts if first), default=0)
    customers = sum(work.dirty for work in due)
    return f"{customers:,} overdue", findings.overdue(customers, oldest_ms)


async def _intents(seen: _Seen) -> _Looked:
    keys, now_ms = seen.parts.store.keys, seen.parts.store.now_ms()
    waiting = [work for work in await seen.outbox.work(due_ms=None) if work.outbox]
    oldest_ms, customer = now_ms, ""
    for work in waiting:
        outbox, intents = keys.shard(work.shard, "outbox"), keys.shard(work.shard, "intents")
        names = await seen.admin.ask(seen.client.zrange(outbox, 0, _INTENTS_PER_SHARD - 1))
        for data in await seen.admin.ask(seen.client.hmget(intents, names)) if names else ():
            kept: dict[str, str] = json.loads(data) if data else {}
            if int(kept.get("at", now_ms)) < oldest_ms:
                oldest_ms, customer = int(kept["at"]), kept["customer"]
    count = sum(work.outbox for work in waiting)
    return f"{count:,} wait", findings.old_intent(customer, now_ms - oldest_ms)


async def _unlinked(seen: _Seen) -> _Looked:
    customers = await seen.outbox.unlinked()
    return f"{len(customers):,} customers", findings.unlinked(customers)


async def _undelivered(seen: _Seen) -> _Looked:
    found = await seen.outbox.undelivered()
    return f"{len(found):,} intents", findings.undelivered(found)


async def _throughput(seen: _Seen) -> _Looked:
    settings, now_ms = seen.parts.settings, seen.parts.store.now_ms()
    interval_s = settings.flush_interval
    soon = await seen.outbox.work(due_ms=now_ms + int(interval_s * 1000))
    customers, intents = sum(work.dirty for work in soon), sum(work.outbox for work in soon)
    limit = settings.meter_events_per_s
    return f"{customers / interval_s:,.1f} of {limit:,.0f} a second", findings.throughput(
        customers=customers, intents=intents, interval_s=interval_s, limit_per_s=limit
    )


async def _links(seen: _Seen) -> _Looked:
    if seen.claims is None:
        raise UnseenError("the keys could not be read")
    half: list[tuple[str, str]] = []
    for key in seen.claims[:_CLAIMS_MAX]:
        claim: bytes | None = await seen.admin.ask(seen.client.get(key))
        customer = owner_of((claim or b"").decode(errors="replace"))
        stripe_customer = key.partition(":l:")[2]
        if customer and (await seen.parts.customers.get(customer)).stripe_customer != stripe_customer:
            half.append((customer, stripe_customer))
    return f"{min(len(seen.claims), _CLAIMS_MAX):,} links", findings.half_linked(half)


_Checks: TypeAlias = "Mapping[str, Callable[[_Seen], Awaitable[_Looked]]]"

_OF_SERVER: Final[_Checks] = {
    "server": _server,
    "rights": _rights,
    "persistence": _persistence,
    "durability": _durability,
    "eviction": _eviction,
    "replication": _replication,
    "clock": _clock,
    "scripts": _script_cache,
    "keys": _keys,
}
_OF_STORE: Final[_Checks] = {
    "shards": _shards,
    "breaker": lambda seen: look_at_breaker(seen.parts, seen.admin),
    "pending": _pending,
    "intents": _intents,
    "items": lambda seen: look_at_invoice_items(seen.parts, seen.admin),
    "unlinked": _unlinked,
    "undelivered": _undelivered,
    "throughput": _throughput,
    "links": _links,
    "closes": lambda seen: look_at_closes(seen.parts, seen.admin),
    "webhooks": lambda seen: look_at_webhooks(seen.parts),
    "subscriptions": lambda seen: look_at_subscriptions(seen.parts),
    "messages": lambda seen: look_at_messages(seen.parts),
    "audit": lambda seen: look_at_audit_log(seen.parts),
}
_ORDER: Final = tuple(dict.fromkeys((*tuple(_OF_SERVER)[:7], "shards", *_OF_SERVER)))
_OF_CONTENT: Final[Sequence[str]] = tuple(check for check in _OF_STORE if check not in {"shards", "breaker"})
