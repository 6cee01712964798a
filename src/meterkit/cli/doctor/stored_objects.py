"""Whether events of object stores are read, and buckets listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.cli.doctor.findings import Finding
from meterkit.cli.output import span
from meterkit.store.upkeep import Upkeep

if TYPE_CHECKING:
    from meterkit import MeterKit
    from meterkit.store.upkeep import UpkeepSeen

__all__ = ["look_at_stored_objects", "neglected"]

UNREAD_MS: Final = 15 * 60_000
"""How long a queue may go unread: a worker reads it each twenty seconds."""

UNLISTED_MS: Final = 3 * 3_600_000
"""How long buckets may go without a listing: a worker lists them each hour."""


async def look_at_stored_objects(kit: MeterKit) -> tuple[str, list[Finding]]:
    """When the queue of storage events was read, and the buckets listed.

    Raises:
        StoreError: the store does not answer.
    """
    if kit.catalog.storage is None:
        return "the plans file has no storage", []
    seen, now_ms = await Upkeep(kit.store).seen(), kit.store.now_ms()
    listed = "not listed" if seen.listed_ms is None else f"listed {span(now_ms - seen.listed_ms)} ago"
    return f"the buckets were {listed}", neglected(seen, now_ms)


def neglected(seen: UpkeepSeen, now_ms: int) -> list[Finding]:
    """A queue that no process reads any more, and buckets that none lists. Pure."""
    found: list[Finding] = []
    if seen.read_ms is not None and now_ms - seen.read_ms > UNREAD_MS:
        found.append(
            Finding(
                check="storage",
                problem=f"the queue of storage events was last read {span(now_ms - seen.read_ms)} ago: the"
                " events in it do not count",
                cure="start `meterkit worker --storage-queue URL`; the log of one that runs says why it does"
                " not read (meterkit.background); a queue that is not used any more is forgotten in 7 days",
            )
        )
    if seen.listed_ms is None or now_ms - seen.listed_ms > UNLISTED_MS:
        since = "within 7 days" if seen.listed_ms is None else f"for {span(now_ms - seen.listed_ms)}"
        found.append(
            Finding(
                check="storage",
                problem=f"the buckets of storage.objects were not listed {since}: lost events stay lost",
                cure="see that `meterkit worker` runs with the extra storage and with credentials of the"
                " object store: it lists them each hour; `meterkit storage recalculate` does it now",
            )
        )
    return found
