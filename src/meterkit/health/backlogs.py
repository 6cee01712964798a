"""Findings about waiting work: periods to close, messages, events of object stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.amount_texts import span
from meterkit.health.findings import Finding, named, single
from meterkit.outbox.closes import CloseQueue
from meterkit.outbox.late_items import LateItems
from meterkit.store.message_queue import CHANNELS, MessageQueue
from meterkit.store.task_lease import StorageUpkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.assembly import Parts
    from meterkit.outbox.closes import PeriodClose
    from meterkit.outbox.late_items import LateItem
    from meterkit.redis.admin import Admin
    from meterkit.store.message_queue import Channel, KeptMessage
    from meterkit.store.task_lease import UpkeepState

_MOST: Final = 1_000


async def look_at_closes(parts: Parts, admin: Admin) -> tuple[str, list[Finding]]:
    """How many periods an alert has named, and which.

    Raises:
        StoreError: the store does not answer.
    """
    found = await CloseQueue(parts.store, admin).unconfirmed(most=_MOST)
    return f"{len(found):,} unconfirmed", unconfirmed(found)


def unconfirmed(closes: Sequence[PeriodClose]) -> list[Finding]:
    """The periods whose close was not confirmed in time, and is not yet."""
    if not closes:
        return []
    count = "1 billing period is" if len(closes) == 1 else f"{len(closes):,} billing periods are"
    whose = named([f"of customer {close.customer}, until {close.end_text}" for close in closes])
    return single(
        check="closes",
        problem=f"{count} over, and Stripe has not counted all that was used: {whose}; what it lacks when"
        " an invoice is final is on no invoice",
        cure="`meterkit reconcile CUSTOMER --period DATE` has the figures of each, and what to do",
    )


_ITEM_OVERDUE_MS: Final = 60 * 60_000
"""How long an invoice item may wait: a flush makes it within minutes."""


async def look_at_invoice_items(parts: Parts, admin: Admin) -> tuple[str, list[Finding]]:
    """Count the invoice items for late usage that wait, and report one that waits too long.

    Raises:
        StoreError: the store does not answer.
    """
    found = [item for item, _ in await LateItems(parts.store, admin).listed()]
    since_ms = parts.store.now_ms() - _ITEM_OVERDUE_MS
    return f"{len(found):,} wait", unmade_items([item for item in found if item.queued_ms < since_ms])


def unmade_items(items: Sequence[LateItem]) -> list[Finding]:
    """Invoice items that Stripe should have by now. Pure."""
    if not items:
        return []
    count = "1 invoice item for late usage waits"
    if len(items) > 1:
        count = f"{len(items):,} invoice items for late usage wait"
    whose = named([f"{item.in_words()} of customer {item.customer}" for item in items])
    return single(
        check="items",
        problem=f"{count} for more than an hour, and Stripe does not have them: {whose}",
        cure="`meterkit flush` makes them, or says what holds them up; `meterkit outbox list` has each",
    )


OVERDUE_MS: Final = 5 * 60_000
"""How long a message may be due: a process that sends messages asks every second."""


async def look_at_messages(parts: Parts) -> tuple[str, list[Finding]]:
    """How many messages wait and are dead, and what is wrong with them.

    Raises:
        StoreError: the store does not answer.
    """
    waiting = 0
    found: list[Finding] = []
    dead: list[KeptMessage] = []
    for channel in CHANNELS:
        queue = MessageQueue(parts.store, channel)
        counted, late_ms = await queue.count_messages(), await queue.overdue_ms()
        waiting += counted["due"] + counted["later"]
        found += overdue_messages(channel, counted["due"], late_ms)
        if counted["dead"]:
            dead += [one for one in await queue.list_messages() if one.state == "dead"]
    return f"{waiting:,} wait, {len(dead):,} dead", [*found, *dead_messages(dead)]


def overdue_messages(channel: Channel, count: int, late_ms: int) -> list[Finding]:
    """Messages of a channel that no process sends: how many are due, and for how long the oldest."""
    if not count or late_ms <= OVERDUE_MS:
        return []
    whose = "1 message" if count == 1 else f"{count:,} messages"
    needs = "METERKIT_NOTIFY_SECRET" if channel == "webhook" else "METERKIT_SMTP_URL and `contact`"
    return single(
        check="messages",
        problem=f"{whose} by {channel} should have been sent up to {span(late_ms)} ago",
        cure=f"run a process of the app with {needs}; its log says why it does not send",
    )


def dead_messages(dead: Sequence[KeptMessage]) -> list[Finding]:
    """Messages that are not sent any more."""
    if not dead:
        return []
    count = "1 message is" if len(dead) == 1 else f"{len(dead):,} messages are"
    return single(
        check="messages",
        problem=f"{count} dead, {named([one.id for one in dead])}: {dead[0].why}",
        cure="`meterkit notify list` has each reason; remove it, then `meterkit notify redrive`",
    )


UNREAD_MS: Final = 15 * 60_000
"""How long a queue may go unread: a worker reads it each twenty seconds."""
UNLISTED_MS: Final = 3 * 3_600_000
"""How long buckets may go without a listing: a worker lists them each hour."""


async def look_at_stored_objects(parts: Parts) -> tuple[str, list[Finding]]:
    """When the queue of storage events was read, and the buckets listed.

    Raises:
        StoreError: the store does not answer.
    """
    if parts.store.catalog.storage is None:
        return "the plans file has no storage", []
    seen, now_ms = await StorageUpkeep(parts.store).seen(), parts.store.now_ms()
    listed = "not listed" if seen.listed_ms is None else f"listed {span(now_ms - seen.listed_ms)} ago"
    return f"the buckets were {listed}", neglected(seen, now_ms)


def neglected(seen: UpkeepState, now_ms: int) -> list[Finding]:
    """A queue that no process reads any more, and buckets that none lists. Pure."""
    found: list[Finding] = []
    if seen.read_ms is not None and now_ms - seen.read_ms > UNREAD_MS:
        found += single(
            check="storage",
            problem=f"the queue of storage events was last read {span(now_ms - seen.read_ms)} ago: the"
            " events in it do not count",
            cure="start `meterkit worker --storage-queue URL`; the log of one that runs says why it does"
            " not read (meterkit.serving); a queue that is not used any more is forgotten in 7 days",
        )
    if seen.listed_ms is None or now_ms - seen.listed_ms > UNLISTED_MS:
        since = "within 7 days" if seen.listed_ms is None else f"for {span(now_ms - seen.listed_ms)}"
        found += single(
            check="storage",
            problem=f"the buckets of storage.objects were not listed {since}: lost events stay lost",
            cure="see that `meterkit worker` runs with the extra storage and with credentials of the"
            " object store: it lists them each hour; `meterkit storage recalculate` does it now",
        )
    return found
