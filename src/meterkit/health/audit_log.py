"""Findings about the draining of the audit log: entries that no process drains into its database."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.amount_texts import span
from meterkit.customers.links import owner_of
from meterkit.delivery.audit_root import is_final_renewal, root_in
from meterkit.errors import MeterkitError, StripeError
from meterkit.health.findings import Finding, named, single
from meterkit.health.health import UnseenError
from meterkit.insights.audit.draining import MOST, backlog_of, drainer_of, waiting_shards
from meterkit.redis.daemon_thread import in_thread
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.stripe_objects import id_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from meterkit.assembly import Parts
    from meterkit.insights.audit.draining import Backlog, Waiting

OVERDUE_MS: Final = 15 * 60_000
"""How long an entry may wait: a drainer takes it within seconds."""

PATIENCE_S: Final = 10.0
"""How long the database may take: a driver may wait for minutes, or for ever."""


async def look_at_audit_log(parts: Parts) -> tuple[str, list[Finding]]:
    """How many entries wait, and what is wrong with that.

    Raises:
        StoreError: the store does not answer.
    """
    waiting = await waiting_shards(parts.store)
    backlog = await backlog_of(parts.store, waiting)
    age_ms = int(backlog.age_s(parts.store.now_ms()) * 1000)
    found = undrained(backlog.entries, age_ms, is_kept=parts.store.is_audited)
    return f"{backlog.entries:,} entries wait", [*found, *added_up(backlog), *_no_streams(waiting)]


async def look_at_audit_database(parts: Parts) -> tuple[str, list[Finding]]:
    """Whether the database of the audit log can be connected to, and its table be read."""
    look = drainer_of(parts.store, parts.settings).database.look
    try:
        async with asyncio.timeout(PATIENCE_S):
            is_made = await in_thread(look)
    except (MeterkitError, TimeoutError) as error:
        problem = str(error) or f"the database of the audit log does not answer within {PATIENCE_S:g} s"
        cure = (
            "see that the database runs, and that METERKIT_AUDIT_URL has its address, its name and a user who"
            " may read, write and make the table meterkit_audit; what is recorded waits in the store"
        )
        return "", [Finding(check="database", problem=problem, cure=cure)]
    return "its table is read" if is_made else "its table is made when first needed", []


async def look_at_revenue(parts: Parts) -> tuple[str, list[Finding]]:
    """Whether there is a snapshot of each day that is over."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            last, missing = await parts.revenue.look()
    except (MeterkitError, TimeoutError):
        return "the database does not answer", []  # Said of the database itself.
    if last is None:
        return "no snapshot yet: each day that is over gets one", []
    return f"the last snapshot is of {last}", without_snapshot(missing)


def without_snapshot(missing: Sequence[date]) -> list[Finding]:
    """Days that are over and have no snapshot of revenue."""
    if not missing:
        return []
    days = f"{missing[0]}" if len(missing) == 1 else f"{len(missing):,} days, the first {missing[0]}"
    return single(
        check="revenue",
        problem=f"revenue has no snapshot of {days}: `meterkit revenue` lacks what changed then",
        cure="see that an app that delivers or `meterkit worker` runs with METERKIT_AUDIT_URL: it makes"
        " them by itself, from what the store has; its log says why it does not (meterkit.serving)",
    )


def _no_streams(waiting: Sequence[Waiting]) -> list[Finding]:
    """Shards without a stream to drain."""
    return [
        Finding(
            check="audit",
            problem=f"the audit log of shard {one.shard} cannot be read: {one.trouble}",
            cure="something else writes under meterkit's prefix: see what the key is (TYPE), and rename it",
        )
        for one in waiting
        if one.trouble
    ]


def undrained(entries: int, oldest_ms: int, *, is_kept: bool) -> list[Finding]:
    """Entries that wait too long; ``is_kept``: whether the settings here name the database."""
    if oldest_ms <= OVERDUE_MS:
        return []
    what = "1 entry of the audit log has" if entries == 1 else f"{entries:,} entries of the audit log have"
    cure = (
        "see that an app that delivers or `meterkit worker` runs with METERKIT_AUDIT_URL; the log of one that"
        " does has the database's own words (meterkit.audit)"
    )
    return single(
        check="audit",
        problem=f"{what} waited for up to {span(oldest_ms)} for the database: events are not in it, and"
        f" beyond {MOST:,} in a shard they are added up",
        cure=cure if is_kept else f"METERKIT_AUDIT_URL is not set here; {cure}",
    )


def added_up(backlog: Backlog) -> list[Finding]:
    """Shards with more waiting entries than are listed."""
    if not backlog.full_shards:
        return []
    where = "1 shard has" if backlog.full_shards == 1 else f"{backlog.full_shards:,} shards have"
    return single(
        check="audit",
        problem=f"{where} so many entries of the audit log waiting that the youngest are added up: no"
        " unit is lost, and single events are not told apart",
        cure="bring the database of METERKIT_AUDIT_URL back; what waits is drained within minutes",
    )


_DAYS: Final = 7
_MOST: Final = 100


async def look_at_roots(parts: Parts) -> tuple[str, list[Finding]]:
    """Whether the renewals of the last week, a hundred at most, have a root where the log had rows before.

    Raises:
        UnseenError: Stripe or the database cannot be asked.
        StoreError: the store does not answer.
    """
    final = [one for one in await _invoices(parts) if is_final_renewal(one)]
    bare = {id_in(one, "customer"): one for one in final if root_in(one) is None}
    admin, before_ms = await parts.store.admin(), dict[str, int]()
    names = dict[str, str]()
    for linked, invoice in bare.items():
        claim: bytes | None = await admin.ask(admin.client.get(parts.store.keys.link(linked)))
        if customer := owner_of((claim or b"").decode()):
            before_ms[customer], names[customer] = int(invoice["created"]) * 1000, str(invoice["id"])
    begun_before: Any = import_module("meterkit.insights.audit.verifying").begun_before
    database = drainer_of(parts.store, parts.settings).database
    try:
        async with asyncio.timeout(PATIENCE_S):
            lacking: list[str] = await in_thread(begun_before, database, before_ms)
    except (MeterkitError, TimeoutError):
        raise UnseenError("the database does not answer") from None  # Said of the database itself.
    seen = f"renewals in {_DAYS} days: {len(final):,}"
    return seen, without_root([names[customer] for customer in lacking])


async def _invoices(parts: Parts) -> Sequence[Mapping[str, Any]]:
    if parts.settings.stripe_api_key is None:
        raise UnseenError("no Stripe key is set (METERKIT_STRIPE_API_KEY)")
    api, since_s = StripeApi(parts.settings), parts.store.now_ms() // 1000 - _DAYS * 86_400
    try:
        page = await api.get("/v1/invoices", {"created": {"gte": since_s}, "limit": _MOST})
    except StripeError as error:
        raise UnseenError(f"invoices cannot be read: {error}") from None
    finally:
        await api.close()
    found: Sequence[Mapping[str, Any]] = page["data"]
    return found


def without_root(invoices: Sequence[str]) -> list[Finding]:
    """Final invoices that pin down nothing of the audit log."""
    if not invoices:
        return []
    return single(
        check="roots",
        problem=f"these invoices went out without the root of the audit log: {named(invoices)}",
        cure="see that a process that delivers runs with METERKIT_AUDIT_URL and reaches its database; its log"
        " says why (meterkit.audit). The root of each customer's next invoice covers the same rows",
    )
