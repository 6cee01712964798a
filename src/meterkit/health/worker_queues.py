"""Checks of waiting work: queues that workers drain (webhooks, messages, storage events), and spools."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.notes import has_webhook_route
from meterkit.catalog.value_parsers import span
from meterkit.insights.health_report import Finding, join_names, one_finding
from meterkit.insights.store_readings import read_webhooks
from meterkit.store.message_queue import CHANNELS, MessageQueue
from meterkit.store.settlement_spool import SPOOL_BYTES_MAX
from meterkit.store.sharded_queue import read_waiting_syncs
from meterkit.store.spool_file import list_spools, nearest_existing, reason_unusable
from meterkit.store.task_lease import StorageUpkeep

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meterkit.assembly import Parts
    from meterkit.store.message_queue import Channel, KeptMessage
    from meterkit.store.spool_file import SpoolInfo, SpoolState
    from meterkit.store.task_lease import UpkeepState

SYNC_OVERDUE_MS: Final = 5 * 60_000
"""Workers poll for due syncs every second."""
FAILING_MS: Final = 60 * 60_000
"""By then a sync has failed ten times, and is retried once an hour."""
_ENTRIES_MAX: Final = 1_000
HELD_MS: Final = 15 * 60_000
"""A running process sends its spool within a second of the store's return."""
ROOM_BYTES: Final = 64 << 20
"""Free disk space that must remain: as much as a process holds in memory without a disk."""

_MIB: Final = 1 << 20
_LARGE: Final = 0.8


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


async def check_spool_directory(parts: Parts) -> tuple[str, list[Finding]]:
    """Inspect the spool directory of this host."""
    return await asyncio.to_thread(_inspect_spools, parts)


def _inspect_spools(parts: Parts) -> tuple[str, list[Finding]]:
    directory, store, now_ms = parts.settings.spool_dir, parts.store, parts.store.now_ms()
    why = reason_unusable(directory)
    try:
        seen = list_spools(directory, store.keys, store=str(store.address), now_ms=now_ms)
    except OSError as error:
        return "", [report_unusable_directory(directory, why or str(error))]
    found = (
        [report_unusable_directory(directory, why)]
        if why
        else find_full_disk(directory, shutil.disk_usage(nearest_existing(directory)).free)
    )
    files = "1 file" if len(seen) == 1 else f"{len(seen):,} files"
    return f"{files} in {directory} of this host", [
        *found,
        *find_unsent_spools(seen, now_ms),
        *find_growing_spools(seen),
        *find_lasting_spools(seen, now_ms),
    ]


def report_unusable_directory(directory: Path, why: str) -> Finding:
    """Report a directory in which spools cannot be written."""
    return Finding(
        check="spool",
        problem=f"usage of an outage cannot be spooled to {directory}: {why}; it would stay in memory and be"
        " lost with the process",
        cure="set METERKIT_SPOOL_DIR to a directory of the app's user alone, on a persistent disk",
    )


def find_full_disk(directory: Path, free: int) -> list[Finding]:
    """Report a disk that is nearly full."""
    if free >= ROOM_BYTES:
        return []
    return one_finding(
        check="spool",
        problem=f"the disk of {directory} has {_mib(free)} left: usage of an outage beyond that is lost",
        cure="free space, or set METERKIT_SPOOL_DIR to another disk; each process takes up to 1 GiB",
    )


def find_unsent_spools(seen: Sequence[SpoolInfo], now_ms: int) -> list[Finding]:
    """Report spools that no process sends, by the reason."""
    found: list[Finding] = []
    left = _in_state("left", seen)
    if left:
        count = (
            "1 spool of a process that ended is"
            if len(left) == 1
            else f"{len(left):,} spools of ended processes are"
        )
        found += one_finding(
            check="spool",
            problem=f"{count} in {left[0].path.parent}, {_mib(sum(one.size for one in left))}, begun"
            f" up to {span(now_ms - left[0].begun_ms)} ago: usage in it is not recorded, and not billed,"
            " until it is sent",
            cure="run `meterkit flush --all` on this host with the settings of the app; the next start of"
            " the app sends it, too",
        )
    foreign = _in_state("foreign", seen)
    for why in dict.fromkeys(one.why for one in foreign):
        names = [one.path.name for one in foreign if one.why == why]
        found += one_finding(
            check="spool",
            problem=f"{join_names(names)} in {foreign[0].path.parent}: {why}; it is sent to no other store",
            cure="run `meterkit flush --all` with METERKIT_REDIS_URL, METERKIT_KEY_PREFIX and"
            " METERKIT_SHARDS of that store; if it has moved, let its old address lead to the new one for"
            " that command (/etc/hosts); remove the file only if that store is given up",
        )
    for one in _in_state("refused", seen):
        problem, _, cure = one.why.partition(". ")
        cure = cure or "find out which program wrote it, or upgrade this process; the file stays unchanged"
        found.append(Finding(check="spool", problem=f"{one.path} is never sent: {problem}", cure=cure))
    return found + [
        Finding(
            check="spool",
            problem=f"{one.path} has the damaged part of a spool: {_mib(one.size)} that were not sent",
            cure="check the disk; find the lost usage in backups or logs, record it by hand, and remove"
            " the file",
        )
        for one in _in_state("damaged", seen)
    ]


def find_growing_spools(seen: Sequence[SpoolInfo]) -> list[Finding]:
    """Report spools near the size at which usage is lost."""
    large = [one for one in _in_state("held", seen) if one.size > _LARGE * SPOOL_BYTES_MAX]
    if not large:
        return []
    return one_finding(
        check="spool",
        problem=f"{join_names([one.path.name for one in large])}: {_mib(large[0].size)} of"
        f" {_mib(SPOOL_BYTES_MAX)}; usage beyond that is lost, and counted as lost",
        cure="restore the store; more processes can hold more, because each has its own spool",
    )


def find_lasting_spools(seen: Sequence[SpoolInfo], now_ms: int) -> list[Finding]:
    """Report running processes that cannot send their spools."""
    old = [one for one in _in_state("held", seen) if now_ms - one.begun_ms > HELD_MS]
    if not old:
        return []
    whose = "a process has a spool" if len(old) == 1 else f"{len(old):,} processes have spools"
    return one_finding(
        check="spool",
        problem=f"{whose} of up to {span(now_ms - old[0].begun_ms)}, {_mib(sum(one.size for one in old))}"
        f" in {old[0].path.parent}: they cannot reach the store, or the store refuses the entries",
        cure="check that these hosts reach the store; the log of the process says why (meterkit.store)",
    )


def _in_state(state: SpoolState, seen: Sequence[SpoolInfo]) -> list[SpoolInfo]:
    return [one for one in seen if one.state == state]


def _mib(size: int) -> str:
    return f"{size:,} bytes" if size < _MIB else f"{size / _MIB:,.0f} MiB"
