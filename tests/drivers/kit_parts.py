"""The parts of a kit, and marks of what a worker does from time to time."""

from __future__ import annotations

from typing import Any

from meterkit import MeterKit
from meterkit.assembly import Parts
from meterkit.serving import BackgroundTasks
from meterkit.store.excess_units import ExcessUnits
from meterkit.store.task_lease import StorageUpkeep

__all__ = ["BackgroundTasks", "finish", "tasks_of"]


def tasks_of(kit: MeterKit) -> dict[str, Any]:
    """The background tasks of the kit's parts, by name."""
    tasks: dict[str, Any] = vars(Parts)["_list_tasks"](kit)
    return tasks


async def finish(kit: MeterKit) -> None:
    """Wait for handlers, as the end of an event loop does."""
    await vars(Parts)["_finish"](kit)


async def count_excess(kit: MeterKit) -> None:
    """Count units that this process has admitted beyond limits, as its background task does."""
    excess = ExcessUnits(kit.store)
    await excess.collect()
    await excess.send()


async def excess_units(kit: MeterKit, meter: str) -> int:
    """Units beyond limits that all processes have counted today."""
    return (await ExcessUnits(kit.store).read(1))[meter]


async def note_upkeep(kit: MeterKit) -> None:
    """Mark that buckets were listed and a queue was read."""
    await StorageUpkeep(kit.store).record_listing({})
    await StorageUpkeep(kit.store).record_queue_read("https://sqs.example/queue")


async def is_upkeep_seen(kit: MeterKit) -> bool:
    found = await StorageUpkeep(kit.store).read_state()
    return None not in (found.read_ms, found.listed_ms)
