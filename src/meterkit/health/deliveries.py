"""Checks of deliveries to Stripe: unsealed usage, intents, invoice items, links, unconfirmed periods."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import span, units
from meterkit.customers.links import claim_owner, is_tombstone
from meterkit.insights.health_report import CheckSkippedError, Finding, join_names, one_finding
from meterkit.outbox.close_queue import CloseQueue
from meterkit.outbox.invoice_item_queue import InvoiceItemQueue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.assembly import Parts
    from meterkit.health.store_servers import CheckContext, CheckResult
    from meterkit.outbox.close_queue import PeriodClose
    from meterkit.outbox.intents import Undelivered
    from meterkit.outbox.invoice_item_queue import InvoiceItemEntry
    from meterkit.redis.admin import Admin


_CLAIMS_MAX: Final = 1_000
_INTENTS_PER_SHARD: Final = 100
OVERDUE_MS: Final = 15 * 60_000
"""Due usage is sealed within this time."""
INTENT_OLD_MS: Final = 60 * 60_000
"""Stripe has an intent within this time."""
_BACKLOG_S: Final = 600
_RECOVER: Final = "`meterkit recover --dry-run` shows what would become of each; `meterkit recover` does it"
_INSPECT: Final = (
    "`meterkit outbox list` lists them; redrive those that can be delivered now, drop the others"
)
_FLUSH: Final = "`meterkit flush` retries and prints the reason if it fails"
_MOST: Final = 1_000
_ITEM_OVERDUE_MS: Final = 60 * 60_000
"""A flush creates an invoice item within minutes."""


async def check_pending(context: CheckContext) -> CheckResult:
    """Check for due usage that no process has sealed."""
    store = context.parts.store
    now_ms = store.now_ms()
    due = [work for work in await context.outbox.work(due_ms=now_ms - OVERDUE_MS) if work.dirty]
    pipe = context.client.pipeline(transaction=False)
    for work in due:
        pipe.zrange(store.keys.shard(work.shard, "dirty"), 0, 0, withscores=True)
    firsts: list[list[tuple[bytes, float]]] = await context.admin.ask(pipe.execute()) if due else []
    oldest_ms = max((now_ms - int(first[0][1]) for first in firsts if first), default=0)
    customers = sum(work.dirty for work in due)
    return f"{customers:,} overdue", find_overdue_usage(customers, oldest_ms)


def find_overdue_usage(customers: int, oldest_ms: int) -> list[Finding]:
    """Report usage that is overdue for sealing."""
    if not customers:
        return []
    whose = "1 customer" if customers == 1 else f"{customers:,} customers"
    return one_finding(
        check="pending",
        problem=f"usage of {whose} has been due for up to {span(oldest_ms)} and is not being delivered",
        cure=f"run `meterkit worker`, or set the Stripe key where the app runs; {_FLUSH}",
    )


async def check_intents(context: CheckContext) -> CheckResult:
    """Check the age of the oldest intent."""
    keys, now_ms = context.parts.store.keys, context.parts.store.now_ms()
    waiting = [work for work in await context.outbox.work(due_ms=None) if work.outbox]
    oldest_ms, customer = now_ms, ""
    for work in waiting:
        outbox, intents = keys.shard(work.shard, "outbox"), keys.shard(work.shard, "intents")
        names = await context.admin.ask(context.client.zrange(outbox, 0, _INTENTS_PER_SHARD - 1))
        for data in await context.admin.ask(context.client.hmget(intents, names)) if names else ():
            kept: dict[str, str] = json.loads(data) if data else {}
            if int(kept.get("at", now_ms)) < oldest_ms:
                oldest_ms, customer = int(kept["at"]), kept["customer"]
    count = sum(work.outbox for work in waiting)
    return f"{count:,} wait", find_old_intent(customer, now_ms - oldest_ms)


def find_old_intent(customer: str, age_ms: int) -> list[Finding]:
    """Report the oldest intent if Stripe should have it by now."""
    if age_ms <= INTENT_OLD_MS:
        return []
    return one_finding(
        check="intents",
        problem=f"an intent of customer {customer} is {span(age_ms)} old, and Stripe does not have it",
        cure=_FLUSH,
    )


async def check_invoice_items(parts: Parts, admin: Admin) -> tuple[str, list[Finding]]:
    """Count the waiting invoice lines and items, and report those that wait too long.

    Raises:
        StoreError: the store does not answer.
    """
    found = [item for item, _ in await InvoiceItemQueue(parts.store, admin).listed()]
    since_ms = parts.store.now_ms() - _ITEM_OVERDUE_MS
    return f"{len(found):,} wait", find_missing_items([item for item in found if item.queued_ms < since_ms])


def find_missing_items(items: Sequence[InvoiceItemEntry]) -> list[Finding]:
    """Report invoice items that Stripe should have by now. Pure."""
    if not items:
        return []
    kind = "invoice item for late usage"
    if any(item.by_line for item in items):
        kind = "invoice line" if all(item.by_line for item in items) else "invoice line or item"
    count = f"1 {kind} waits"
    if len(items) > 1:
        count = f"{len(items):,} {kind.replace(' item', ' items').replace(' line', ' lines')} wait"
    whose = join_names([f"{item.in_words()} of customer {item.customer}" for item in items])
    return one_finding(
        check="items",
        problem=f"{count} for more than an hour, and Stripe does not have them: {whose}",
        cure="`meterkit flush` creates them or prints the reason; `meterkit outbox list` lists them",
    )


async def check_unlinked(context: CheckContext) -> CheckResult:
    """Check for billable usage of customers without a Stripe customer."""
    customers = await context.outbox.unlinked()
    return f"{len(customers):,} customers", find_unlinked(customers)


def find_unlinked(customers: Sequence[str]) -> list[Finding]:
    """Report customers whose usage waits for a link."""
    if not customers:
        return []
    whose = "1 customer has" if len(customers) == 1 else f"{len(customers):,} customers have"
    return one_finding(
        check="unlinked",
        problem=f"{whose} usage to bill and no Stripe customer: {join_names(customers)}; it is kept until 35"
        " days after its period",
        cure="run `meterkit customers link CUSTOMER STRIPE_CUSTOMER`",
    )


async def check_undelivered(context: CheckContext) -> CheckResult:
    """Check for parked and dead intents."""
    found = await context.outbox.undelivered()
    return f"{len(found):,} intents", find_undelivered(found)


def find_undelivered(intents: Iterable[Undelivered]) -> list[Finding]:
    """Report parked and dead intents, a finding for each state and meter."""
    groups: dict[tuple[str, str, bool], list[Undelivered]] = {}
    for one in intents:
        groups.setdefault((one.state, one.meter, one.restored), []).append(one)
    return [_describe_undelivered(state, meter, found) for (state, meter, _), found in sorted(groups.items())]


def _describe_undelivered(state: str, meter: str, found: Sequence[Undelivered]) -> Finding:
    count = "1 intent" if len(found) == 1 else f"{len(found):,} intents"
    whose = join_names(sorted({one.customer for one in found}))
    return Finding(
        check=state,
        problem=f"{units(one.quantity for one in found)} of {meter} in {count}, of {whose}: {found[0].why}",
        cure=_RECOVER if found[0].restored else _INSPECT,
    )


async def check_throughput(context: CheckContext) -> CheckResult:
    """Check that meter events are sent as fast as usage becomes due."""
    settings, now_ms = context.parts.settings, context.parts.store.now_ms()
    interval_s = settings.flush_interval
    soon = await context.outbox.work(due_ms=now_ms + int(interval_s * 1000))
    has_events = not context.parts.store.catalog.billing.is_by_lines
    customers = sum(work.dirty for work in soon) if has_events else 0  # Invoice lines are no meter events.
    intents = sum(work.outbox for work in soon)
    limit = settings.meter_events_per_s
    return f"{customers / interval_s:,.1f} of {limit:,.0f} a second", find_throughput_limits(
        customers=customers, intents=intents, interval_s=interval_s, limit_per_s=limit
    )


def find_throughput_limits(
    *, customers: int, intents: int, interval_s: float, limit_per_s: float
) -> list[Finding]:
    """Report usage that becomes due faster than it is sent, and a long backlog.

    Args:
        customers: with usage due within one interval, each at least one meter event.
        intents: the waiting ones.
        interval_s: the setting ``flush_interval``.
        limit_per_s: meter events that are sent a second at most.
    """
    found: list[Finding] = []
    if customers / interval_s > limit_per_s:
        longer = -(-customers // limit_per_s)
        found += one_finding(
            check="throughput",
            problem=f"usage of {customers:,} customers every {interval_s:g} s makes at least"
            f" {customers / interval_s:,.0f} meter events a second; at most {limit_per_s:,.0f} are sent",
            cure=f"set METERKIT_FLUSH_INTERVAL to at least {longer:,.0f}, or"
            " METERKIT_STRIPE_TRANSPORT to v2-stream",
        )
    if intents / limit_per_s > max(_BACKLOG_S, interval_s):
        found += one_finding(
            check="throughput",
            problem=f"{intents:,} intents wait; sending them takes {span(int(intents / limit_per_s * 1000))}",
            cure=f"run `meterkit worker`, and set a longer METERKIT_FLUSH_INTERVAL; {_FLUSH}",
        )
    return found


class HalfMadeLink(NamedTuple):
    """A claim of a Stripe customer without a link.

    Attributes:
        is_deletion: whether a deletion has left it, not a link or its removal.
    """

    customer: str
    stripe_customer: str
    is_deletion: bool = False


async def check_links(context: CheckContext) -> CheckResult:
    """Check for claims of Stripe customers without a link."""
    if context.claims is None:
        raise CheckSkippedError("the keys cannot be read")
    unlinked: list[HalfMadeLink] = []
    for key in context.claims[:_CLAIMS_MAX]:
        claim = (await context.admin.ask(context.client.get(key)) or b"").decode(errors="replace")
        customer, stripe_customer = claim_owner(claim), key.partition(":l:")[2]
        if customer and (await context.parts.customers.get(customer)).stripe_customer != stripe_customer:
            unlinked.append(HalfMadeLink(customer, stripe_customer, is_tombstone(claim)))
    return f"{min(len(context.claims), _CLAIMS_MAX):,} links", find_half_made_links(unlinked)


def find_half_made_links(claims: Sequence[HalfMadeLink]) -> list[Finding]:
    """Report Stripe customers that are claimed for a customer without a link."""
    found: list[Finding] = []
    for customer, stripe_customer, is_deletion in claims:
        named = quote(customer)
        delete, unlink = (f"meterkit customers {word} {named}" for word in ("delete", "unlink"))
        what = "deleting the customer" if is_deletion else "linking or unlinking"
        problem = (
            f"{stripe_customer} is claimed for customer {customer}, who is not linked to it: {what} was"
            " interrupted"
        )
        cure = f"repeat `meterkit customers link {named} {stripe_customer}`; after an unlink, `{unlink}`"
        cure = f"repeat `{delete}`" if is_deletion else cure
        found.append(Finding(check="links", problem=problem, cure=cure))
    return found


async def check_closes(parts: Parts, admin: Admin) -> tuple[str, list[Finding]]:
    """Check for periods whose close was not confirmed in time.

    Raises:
        StoreError: the store does not answer.
    """
    found = await CloseQueue(parts.store, admin).unconfirmed(most=_MOST)
    return f"{len(found):,} unconfirmed", find_unconfirmed_closes(found)


def find_unconfirmed_closes(closes: Sequence[PeriodClose]) -> list[Finding]:
    """Report periods that are over and whose usage Stripe has not counted."""
    if not closes:
        return []
    count = "1 billing period is" if len(closes) == 1 else f"{len(closes):,} billing periods are"
    whose = join_names([f"of customer {close.customer}, until {close.end_text}" for close in closes])
    return one_finding(
        check="closes",
        problem=f"{count} over, and Stripe has not counted all usage: {whose}; usage that is missing when"
        " the invoice becomes final is not billed",
        cure="`meterkit reconcile CUSTOMER --period DATE` shows the figures of each and what to do",
    )
