"""Checks of queues that workers drain: webhooks, messages to customers, storage events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.notes import has_webhook_route
from meterkit.catalog.value_parsers import span
from meterkit.insights.health_report import join_names, one_finding
from meterkit.insights.store_readings import read_webhooks
from meterkit.store.message_queue import CHANNELS, MessageQueue
from meterkit.store.sharded_queue import read_waiting_syncs
from meterkit.store.task_lease import StorageUpkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.assembly import Parts
    from meterkit.insights.health_report import Finding
    from meterkit.store.message_queue import Channel, KeptMessage
    from meterkit.store.task_lease import UpkeepState


SYNC_OVERDUE_MS: Final = 5 * 60_000
"""Workers poll for due syncs every second."""
FAILING_MS: Final = 60 * 60_000
"""By then a sync has failed ten times, and is retried once an hour."""
_ENTRIES_MAX: Final = 1_000


class FailedSync(NamedTuple):
    """A Stripe customer whose sync fails.

    Attributes:
        why: the last error.
        since_ms: when the sync was requested.
    """

    stripe_customer: str
    why: str
    since_ms: int


async def check_webhooks(parts: Parts) -> tuple[str, list[Finding]]:
    """Count waiting and dead syncs, and report overdue and failing ones.

    Raises:
        StoreError: the store does not answer.
    """
    now_ms, waiting = parts.store.now_ms(), await read_webhooks(parts.store)
    entries = await read_waiting_syncs(parts.store, _ENTRIES_MAX)
    failed = [FailedSync(name, entry["why"], int(entry["since"])) for name, entry in entries if entry["why"]]
    dead = [
        FailedSync(entry.stripe_customer, entry.why, entry.at_ms) for entry in await parts.webhooks.dead()
    ]
    due = waiting["due"]
    summary = f"{due.items + waiting['later'].items:,} wait, {len(dead):,} dead"
    return summary, [
        *find_overdue_syncs(due.items, int(due.age_s * 1000)),
        *find_failing_syncs(failed, now_ms),
        *find_dead_syncs(dead),
    ]


def find_missing_secret(parts: Parts) -> list[Finding]:
    """Report an endpoint for Stripe's events that refuses them, as no signing secret is set."""
    has_endpoint = parts.webhooks.has_endpoint or has_webhook_route(parts.store.catalog.routes)
    if not (has_endpoint and parts.webhooks.lacks_secret):
        return []
    return one_finding(
        check="webhooks",
        problem="plans or top-ups are sold, and no signing secret is set here: an app with these settings"
        " refuses all events of Stripe, so payments and changes are noticed late",
        cure="set METERKIT_STRIPE_WEBHOOK_SECRET to the signing secret of the webhook destination at Stripe"
        " (whsec_…), where the app and `meterkit doctor` run",
    )


def find_overdue_syncs(count: int, oldest_ms: int) -> list[Finding]:
    """Report due syncs that no worker makes."""
    if not count or oldest_ms <= SYNC_OVERDUE_MS:
        return []
    what = "1 sync with Stripe has" if count == 1 else f"{count:,} syncs with Stripe have"
    return one_finding(
        check="webhooks",
        problem=f"{what} waited for up to {span(oldest_ms)}: Stripe's events have no effect yet",
        cure="run `meterkit worker`, or set the Stripe key where the app runs; the log of a"
        " running process says why it does not sync",
    )


def find_failing_syncs(failed: Sequence[FailedSync], now_ms: int) -> list[Finding]:
    """Report syncs that have failed for an hour and are retried."""
    found = [one for one in failed if now_ms - one.since_ms > FAILING_MS]
    if not found:
        return []
    oldest_ms = now_ms - min(one.since_ms for one in found)
    return one_finding(
        check="webhooks",
        problem=f"syncs of {join_names([one.stripe_customer for one in found])} have failed for up to"
        f" {span(oldest_ms)}: {found[0].why}",
        cure="remove the cause; each is retried within the hour, and dead after twelve refusals",
    )


def find_dead_syncs(dead: Sequence[FailedSync]) -> list[Finding]:
    """Report dead syncs: of Stripe customers, and of payments of top-ups."""
    names = [one.stripe_customer for one in dead]
    return _find_dead("webhooks", "webhooks", ("sync with Stripe", "syncs with Stripe"), names, dead)


MESSAGE_OVERDUE_MS: Final = 5 * 60_000
"""A process that sends messages polls every second."""


async def check_messages(parts: Parts) -> tuple[str, list[Finding]]:
    """Count waiting and dead messages, and report overdue ones.

    Raises:
        StoreError: the store does not answer.
    """
    waiting = 0
    found: list[Finding] = []
    dead: list[KeptMessage] = []
    for channel in CHANNELS:
        queue = MessageQueue(parts.store, channel)
        counted, now_ms = await queue.count(), parts.store.now_ms()
        waiting += counted.due + counted.later
        oldest_ms = now_ms if counted.oldest_ms is None else counted.oldest_ms
        found += find_overdue_messages(channel, counted.due, now_ms - oldest_ms)
        if counted.dead:
            dead += [one for one in await queue.list_messages() if one.state == "dead"]
    return f"{waiting:,} wait, {len(dead):,} dead", [*found, *find_dead_messages(dead)]


def find_overdue_messages(channel: Channel, count: int, late_ms: int) -> list[Finding]:
    """Report due messages of a channel that no process sends."""
    if not count or late_ms <= MESSAGE_OVERDUE_MS:
        return []
    whose = "1 message" if count == 1 else f"{count:,} messages"
    needs = "METERKIT_NOTIFY_SECRET" if channel == "webhook" else "METERKIT_SMTP_URL and `contact`"
    return one_finding(
        check="messages",
        problem=f"{whose} by {channel} should have been sent up to {span(late_ms)} ago",
        cure=f"run a process of the app with {needs}; its log says why it does not send",
    )


def find_dead_messages(dead: Sequence[KeptMessage]) -> list[Finding]:
    """Report dead messages."""
    return _find_dead("messages", "notify", ("message", "messages"), [one.id for one in dead], dead)


def _find_dead(
    check: str,
    command: str,
    nouns: tuple[str, str],
    names: Sequence[str],
    dead: Sequence[FailedSync | KeptMessage],
) -> list[Finding]:
    """Report what is dead in a queue, with the reason of the first, and the command that redrives it."""
    if not dead:
        return []
    one, many = nouns
    what = f"1 {one} is" if len(dead) == 1 else f"{len(dead):,} {many} are"
    return one_finding(
        check=check,
        problem=f"{what} dead, {join_names(names)}: {dead[0].why}",
        cure=f"`meterkit {command} list` shows each reason; remove it, then `meterkit {command} redrive`",
    )


UNREAD_MS: Final = 15 * 60_000
"""A worker reads the queue every twenty seconds."""
UNLISTED_MS: Final = 3 * 3_600_000
"""A worker lists the buckets every hour."""


async def check_stored_objects(parts: Parts) -> tuple[str, list[Finding]]:
    """Check that the queue of storage events is read, and buckets are listed.

    Raises:
        StoreError: the store does not answer.
    """
    if parts.store.catalog.storage is None:
        return "the plans file has no storage", []
    seen, now_ms = await StorageUpkeep(parts.store).read_state(), parts.store.now_ms()
    listed = "not listed" if seen.listed_ms is None else f"listed {span(now_ms - seen.listed_ms)} ago"
    return f"the buckets were {listed}", find_neglected_storage(seen, now_ms)


def find_neglected_storage(seen: UpkeepState, now_ms: int) -> list[Finding]:
    """Report a queue that is not read any more, and buckets that are not listed. Pure."""
    found: list[Finding] = []
    if seen.read_ms is not None and now_ms - seen.read_ms > UNREAD_MS:
        found += one_finding(
            check="storage",
            problem=f"the queue of storage events was last read {span(now_ms - seen.read_ms)} ago: the"
            " events in it do not count",
            cure="start `meterkit worker --storage-queue URL`; the log of a running one says why it does"
            " not read (meterkit.serving); an unused queue is forgotten after 7 days",
        )
    if seen.listed_ms is None or now_ms - seen.listed_ms > UNLISTED_MS:
        since = "within 7 days" if seen.listed_ms is None else f"for {span(now_ms - seen.listed_ms)}"
        found += one_finding(
            check="storage",
            problem=f"the buckets of storage.objects were not listed {since}: lost events stay lost",
            cure="run `meterkit worker` with the extra storage and credentials of the object store: it"
            " lists them every hour; `meterkit storage recalculate` does it now",
        )
    return found
