"""Checks of the audit log: its backlog, its database, revenue snapshots, and roots in invoices."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.value_parsers import span
from meterkit.customers.history import known_subscriptions, read_states_and_histories
from meterkit.customers.links import claim_owner
from meterkit.delivery.audit_root import is_final_renewal, read_root
from meterkit.errors import MeterkitError, StripeError
from meterkit.insights.audit.draining import (
    FOLD_BEYOND_ENTRIES,
    open_drainer,
    read_shard_backlogs,
    sum_backlogs,
)
from meterkit.insights.health_report import CheckSkippedError, Finding, join_names, one_finding
from meterkit.outbox.meters_or_lines import subscription_of
from meterkit.redis.daemon_thread import in_thread
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.stripe_objects import id_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from meterkit.assembly import Parts
    from meterkit.insights.audit.draining import Backlog, ShardBacklog

OVERDUE_MS: Final = 15 * 60_000
"""A drainer writes an entry within seconds."""

PATIENCE_S: Final = 10.0
"""Limits calls of the database: a driver may wait for minutes, or for ever."""


async def check_audit_log(parts: Parts) -> tuple[str, list[Finding]]:
    """Count waiting entries, and report those that no process drains.

    Raises:
        StoreError: the store does not answer.
    """
    waiting = await read_shard_backlogs(parts.store)
    backlog = await sum_backlogs(parts.store, waiting)
    age_ms = int(backlog.age_s(parts.store.now_ms()) * 1000)
    found = find_undrained_entries(backlog.entries, age_ms, is_kept=parts.store.is_audited)
    return f"{backlog.entries:,} entries wait", [
        *found,
        *find_added_up_shards(backlog),
        *_find_unreadable_shards(waiting),
    ]


async def check_audit_database(parts: Parts) -> tuple[str, list[Finding]]:
    """Check that the database of the audit log answers and its table is readable."""
    look = open_drainer(parts.store, parts.settings).database.can_read
    try:
        async with asyncio.timeout(PATIENCE_S):
            is_made = await in_thread(look)
    except (MeterkitError, TimeoutError) as error:
        problem = str(error) or f"the database of the audit log does not answer within {PATIENCE_S:g} s"
        cure = (
            "start the database; METERKIT_AUDIT_URL must have its address, its name and a user who may read,"
            " write and create the table meterkit_audit; until then entries wait in the store"
        )
        return "", [Finding(check="database", problem=problem, cure=cure)]
    return "its table is readable" if is_made else "its table is created when first needed", []


async def check_revenue(parts: Parts) -> tuple[str, list[Finding]]:
    """Check that each past day has a snapshot of revenue."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            last, missing = await parts.revenue.look()
    except (MeterkitError, TimeoutError):
        return "the database does not answer", []  # The check of the database reports it.
    if last is None:
        return "no snapshot yet: each past day gets one", []
    return f"the last snapshot is of {last}", find_missing_snapshots(missing)


def find_missing_snapshots(missing: Sequence[date]) -> list[Finding]:
    """Report past days without a snapshot of revenue."""
    if not missing:
        return []
    days = f"{missing[0]}" if len(missing) == 1 else f"{len(missing):,} days, the first {missing[0]}"
    return one_finding(
        check="revenue",
        problem=f"revenue has no snapshot of {days}: `meterkit revenue` lacks the changes of those days",
        cure="run `meterkit worker`, or an app that delivers, with METERKIT_AUDIT_URL: it makes them from"
        " the store; its log says why it does not (meterkit.serving)",
    )


def _find_unreadable_shards(waiting: Sequence[ShardBacklog]) -> list[Finding]:
    """Report shards whose stream cannot be read."""
    return [
        Finding(
            check="audit",
            problem=f"the audit log of shard {one.shard} cannot be read: {one.trouble}",
            cure="another program writes under meterkit's prefix: inspect the key (TYPE), and rename it",
        )
        for one in waiting
        if one.trouble
    ]


def find_undrained_entries(entries: int, oldest_ms: int, *, is_kept: bool) -> list[Finding]:
    """Report entries that wait too long; ``is_kept``: this process has the database's address."""
    if oldest_ms <= OVERDUE_MS:
        return []
    what = "1 entry of the audit log has" if entries == 1 else f"{entries:,} entries of the audit log have"
    cure = (
        "run `meterkit worker`, or an app that delivers, with METERKIT_AUDIT_URL; its log has the database's"
        " error (meterkit.audit)"
    )
    return one_finding(
        check="audit",
        problem=f"{what} waited for up to {span(oldest_ms)} for the database: events are missing there, and"
        f" beyond {FOLD_BEYOND_ENTRIES:,} in a shard they are merged",
        cure=cure if is_kept else f"METERKIT_AUDIT_URL is not set here; {cure}",
    )


def find_added_up_shards(backlog: Backlog) -> list[Finding]:
    """Report shards with so many waiting entries that new ones are merged."""
    if not backlog.full_shards:
        return []
    where = "1 shard has" if backlog.full_shards == 1 else f"{backlog.full_shards:,} shards have"
    return one_finding(
        check="audit",
        problem=f"{where} so many entries of the audit log waiting that the newest are merged: no"
        " unit is lost, but single events can no longer be distinguished",
        cure="restart the database of METERKIT_AUDIT_URL; waiting entries are drained within minutes",
    )


_DAYS: Final = 7
_MOST: Final = 100


async def check_roots(parts: Parts) -> tuple[str, list[Finding]]:
    """Check that the last hundred renewals of the week have a root if the log had rows before.

    Raises:
        CheckSkippedError: Stripe or the database does not answer.
        StoreError: the store does not answer.
    """
    final = [one for one in await _invoices(parts) if is_final_renewal(one)]
    before_ms, names = dict[str, int](), dict[str, str]()
    for customer, invoice in await _invoices_by_customer(
        parts, [one for one in final if read_root(one) is None]
    ):
        before_ms[customer], names[customer] = int(invoice["created"]) * 1000, str(invoice["id"])
    begun_before: Any = import_module("meterkit.insights.audit.chain_verifier").chains_begun_before
    database = open_drainer(parts.store, parts.settings).database
    try:
        async with asyncio.timeout(PATIENCE_S):
            lacking: list[str] = await in_thread(begun_before, database, before_ms)
    except (MeterkitError, TimeoutError):
        raise CheckSkippedError(
            "the database does not answer"
        ) from None  # The check of the database reports it.
    seen = f"renewals in {_DAYS} days: {len(final):,}"
    return seen, find_missing_roots([names[customer] for customer in lacking])


async def _invoices_by_customer(
    parts: Parts, invoices: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """List invoices of linked customers with the customer's id, without those of other products.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await parts.store.admin(), parts.store.keys
    claims = await admin.ask_all(("get", keys.link(id_in(invoice, "customer"))) for invoice in invoices)
    owners = [claim_owner((claim or b"").decode()) for claim in claims]
    owned = [(owner, invoice) for owner, invoice in zip(owners, invoices, strict=True) if owner]
    known = await read_states_and_histories(parts.store, {customer for customer, _ in owned}, skipped={})
    own = {customer: {"", *(known_subscriptions(*of) or ())} for customer, of in known.items()}
    return [one for one in owned if one[0] not in own or subscription_of(one[1]) in own[one[0]]]


async def _invoices(parts: Parts) -> Sequence[Mapping[str, Any]]:
    if parts.settings.stripe_api_key is None:
        raise CheckSkippedError("no Stripe key is set (METERKIT_STRIPE_API_KEY)")
    api, now_s = StripeApi(parts.settings), parts.store.now_ms() // 1000
    # Those of a test clock or an emulator may be of the future: their usage is not in this log yet.
    created = {"gte": now_s - _DAYS * 86_400, "lte": now_s}
    try:
        page = await api.get("/v1/invoices", {"created": created, "limit": _MOST})
    except StripeError as error:
        raise CheckSkippedError(f"invoices cannot be read: {error}") from None
    finally:
        await api.close()
    found: Sequence[Mapping[str, Any]] = page["data"]
    return found


def find_missing_roots(invoices: Sequence[str]) -> list[Finding]:
    """Report final invoices without a root of the audit log."""
    if not invoices:
        return []
    return one_finding(
        check="roots",
        problem=f"these invoices have no root of the audit log: {join_names(invoices)}",
        cure="let the process that delivers reach the database, with METERKIT_AUDIT_URL; its log has"
        " the reason (meterkit.audit). The root of each customer's next invoice covers the same rows",
    )
