"""Marks of what a worker does from time to time: it lists buckets, and reads a queue of storage events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.store.tasks import Upkeep

if TYPE_CHECKING:
    from meterkit import MeterKit


async def note_upkeep(kit: MeterKit) -> None:
    """Mark that buckets were listed and a queue was read."""
    await Upkeep(kit.store).listed({})
    await Upkeep(kit.store).read("https://sqs.example/queue")


async def is_upkeep_seen(kit: MeterKit) -> bool:
    """Whether buckets were listed and a queue was read."""
    found = await Upkeep(kit.store).seen()
    return None not in (found.read_ms, found.listed_ms)
