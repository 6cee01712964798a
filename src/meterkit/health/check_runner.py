"""Check runner: runs every check of the store, of Stripe and of the plans file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from redis.exceptions import NoPermissionError

from meterkit.catalog.route_notes import CHECK as LIMITS
from meterkit.catalog.route_notes import unasked_limits_of
from meterkit.errors import MeterkitError, StoreError
from meterkit.health.audit_log import check_audit_database, check_audit_log, check_revenue, check_roots
from meterkit.health.deliveries import (
    check_closes,
    check_intents,
    check_invoice_items,
    check_links,
    check_pending,
    check_throughput,
    check_undelivered,
    check_unlinked,
)
from meterkit.health.lost_usage import check_lost_usage
from meterkit.health.plans_file import (
    ALLOTMENTS,
    MODELS,
    check_plans_of_customers,
    describe_allotments,
    describe_units,
    find_unpriced_models,
)
from meterkit.health.store_servers import (
    CheckContext,
    CheckResult,
    check_clock,
    check_durability,
    check_eviction,
    check_keys,
    check_persistence,
    check_replication,
    check_rights,
    check_script_cache,
    check_server,
    find_client_limit,
    report_unreachable_server,
)
from meterkit.health.store_topology import TOPOLOGY_CHECKS, check_breaker, check_degraded, check_shards
from meterkit.health.stripe_account import check_meters, check_subscriptions
from meterkit.health.worker_queues import (
    check_messages,
    check_spool_directory,
    check_stored_objects,
    check_webhooks,
    find_missing_secret,
)
from meterkit.insights.health_report import CheckSkippedError, Finding, Health
from meterkit.outbox.outbox import Outbox
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.redis.admin import Admin


_RESTORE: Final = (
    "restore that key from a backup of the store; another program, or a newer release, may have written it"
)
_MEMORY_STORE: Final = "memory:// lives in one process: this one cannot see the app's"


_Subject = TypeVar("_Subject")


async def examine(parts: Parts, *, scan_keys: bool = True) -> Health:
    """Run every check. Writes nothing but what each start of meterkit writes.

    Args:
        parts: of the kit.
        scan_keys: False leaves out the checks that scan all keys, or read the audit log of many customers.
    """
    found = Health()
    if parts.store.address.kind == "memory":
        for check in (*_SERVER_CHECKS, *_STORE_CHECKS, "spool"):
            found.not_looked_at[check] = _MEMORY_STORE
    else:
        await _examine_store(parts, found, frozenset() if scan_keys else _SCANNING_CHECKS)
        await _run_check("spool", check_spool_directory, parts, found)
        if parts.store.catalog.storage is not None:
            await _run_check("storage", check_stored_objects, parts, found)
    if parts.settings.audit_url is not None:
        await _run_check("database", check_audit_database, parts, found)
        await _run_check("revenue", check_revenue, parts, found)
        await _run_check("roots", check_roots, parts, found)
        if scan_keys and parts.store.address.kind != "memory":
            await _run_check("lost", check_lost_usage, parts, found)
    await _run_check("stripe", check_meters, parts, found)
    found.findings += find_missing_secret(parts)
    if (allotted := describe_allotments(parts.store.catalog)) is not None:
        units = describe_units([lane.allotments for lane in parts.store.lanes.values() if lane.allotments])
        found.looked_at[ALLOTMENTS] = allotted + units
    if parts.store.cache.sells_models:
        if parts.store.address.kind != "memory" or parts.store.unpriced.has_noted:
            await _run_check(MODELS, find_unpriced_models, parts, found)
        else:
            found.not_looked_at[MODELS] = _MEMORY_STORE
    if unasked := unasked_limits_of(parts.store.catalog):
        found.looked_at[LIMITS] = "; ".join(map(str, unasked))
    return found


async def _examine_store(parts: Parts, found: Health, left_out: Collection[str]) -> None:
    admin = await parts.store.admin()
    servers = await _list_answering_servers(admin, found)
    if not servers:
        for check in (*_SERVER_CHECKS, *_STORE_CHECKS):
            if check != "server":
                found.not_looked_at[check] = "the store does not answer"
        found.sort(_ORDER)
        return
    store_context = CheckContext(parts=parts, admin=admin, outbox=Outbox(parts.store, admin))
    for server in servers:
        context = CheckContext(parts=parts, admin=server, outbox=store_context.outbox)
        one = Health()
        for check, run in _SERVER_CHECKS.items():
            if check not in left_out:
                await _run_check(check, run, context, one)
        found.add(one, of=str(server.address) if len(servers) > 1 else "")
        if context.claims is not None:
            store_context.claims = [*(store_context.claims or ()), *context.claims]
    for check, run_on_all in TOPOLOGY_CHECKS.get(parts.store.address.kind, {}).items():
        await _run_check(check, run_on_all, parts, found)
    for check, run in _STORE_CHECKS.items():
        if check in left_out:
            continue
        if check in _CONTENT_CHECKS and any(one.check == "shards" for one in found.findings):
            found.not_looked_at[check] = "the store and these settings disagree about the shards"
        else:
            await _run_check(check, run, store_context, found)
    found.sort(_ORDER)


async def _list_answering_servers(admin: Admin, found: Health) -> list[Admin]:
    """List the servers that answer; report the others."""
    answering: list[Admin] = []
    try:
        servers = await admin.servers()
    except StoreError as error:
        found.findings.append(report_unreachable_server(error, admin.address))
        return []
    for server in servers:
        try:
            await server.ask(server.client.ping())
        except StoreError as error:
            if not isinstance(error.__cause__, NoPermissionError):
                limited = await find_client_limit(server.address)
                found.findings += limited or [report_unreachable_server(error, server.address)]
                continue
        answering.append(server)
    return answering


async def _run_check(
    check: str, run: Callable[[_Subject], Awaitable[CheckResult]], subject: _Subject, found: Health
) -> None:
    try:
        found.looked_at[check], more = await run(subject)
    except UNREADABLE as error:
        found.looked_at[check] = "stored data cannot be read"
        problem = f"stored data that is checked cannot be read: {error}"
        found.findings.append(Finding(check=check, problem=problem, cure=_RESTORE))
    except (CheckSkippedError, MeterkitError) as error:
        found.not_looked_at[check] = str(error)
    else:
        found.findings += more


_CheckTable: TypeAlias = "Mapping[str, Callable[[CheckContext], Awaitable[CheckResult]]]"


_SERVER_CHECKS: Final[_CheckTable] = {
    "server": check_server,
    "rights": check_rights,
    "persistence": check_persistence,
    "durability": check_durability,
    "eviction": check_eviction,
    "replication": check_replication,
    "clock": check_clock,
    "scripts": check_script_cache,
    "keys": check_keys,
}


_STORE_CHECKS: Final[_CheckTable] = {
    "shards": check_shards,
    "breaker": lambda context: check_breaker(context.parts, context.admin),
    "degraded": lambda context: check_degraded(context.parts),
    "pending": check_pending,
    "intents": check_intents,
    "items": lambda context: check_invoice_items(context.parts, context.admin),
    "unlinked": check_unlinked,
    "undelivered": check_undelivered,
    "throughput": check_throughput,
    "links": check_links,
    "plans": lambda context: check_plans_of_customers(context.parts),
    "closes": lambda context: check_closes(context.parts, context.admin),
    "webhooks": lambda context: check_webhooks(context.parts),
    "subscriptions": lambda context: check_subscriptions(context.parts),
    "messages": lambda context: check_messages(context.parts),
    "audit": lambda context: check_audit_log(context.parts),
}


_SCANNING_CHECKS: Final = frozenset({"keys", "links", "plans"})
_ORDER: Final = tuple(dict.fromkeys((*tuple(_SERVER_CHECKS)[:7], "shards", *_SERVER_CHECKS)))
_CONTENT_CHECKS: Final[Sequence[str]] = tuple(
    check for check in _STORE_CHECKS if check not in {"shards", "breaker"}
)
