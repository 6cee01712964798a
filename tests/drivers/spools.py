"""Spools as processes leave them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from drivers.forked_command import die
from drivers.worker_process import Commands
from faults.refusals import Client, kit_at, metered
from meterkit import MeterKit
from meterkit.redis import settlement_queue
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import UsedQuantities
from meterkit.store.spool_file import SpoolFile, SpoolHeader, frame
from meterkit.store.spool_replay import SpoolReplay, write_record


def spool_with(kit: MeterKit, directory: Path, meter: str, quantity: int, *, days: float = 0) -> SpoolFile:
    """A spool with what acme has used, begun so many days ago; it is held until it is closed."""
    store = kit.store
    made_ms = store.now_ms() - int(days * 86_400_000)
    header = replace(
        SpoolHeader.of(store.keys, str(store.address)), producer=f"of{days:g}days", made_ms=made_ms
    )
    file = SpoolFile.create(directory, header)
    settlement = Settlement(store.cache.get("acme"), used=UsedQuantities(recorded={meter: quantity}))
    file.append(frame(write_record(settlement, 1, made_ms, None)))
    return file


def crash_at(point: str) -> None:
    """Have the process die at a point between two steps of a spool."""
    append, send = SpoolFile.append, SpoolReplay.send

    def appending(self: SpoolFile, data: bytes) -> None:
        is_header = not self.begins
        if point == "half a record written" and not is_header:
            lock: Any = vars(self)["_lock"]
            os.pwrite(lock.fileno(), data[: len(data) // 2], self.end)
            die()
        append(self, data)
        if is_header == (point == "header written"):
            die()

    async def sending(self: SpoolReplay, records: Any) -> None:
        await send(self, records[: len(records) // 2])
        die()

    def removing(_: SpoolFile) -> None:
        die()

    name, replaced = {
        "half of it sent": ("send", sending),
        "sent, and not removed": ("remove", removing),
    }.get(point, ("append", appending))
    if point:
        setattr(SpoolReplay if name == "send" else SpoolFile, name, replaced)


class Spooling(Commands):
    """A kit that spools in the directory ``spools``; the process dies at ``crash``, if that is not empty."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        setattr(settlement_queue, "_SPILL_AFTER_S", 0.1)  # noqa: B010 - a hiccup is shorter here
        crash_at(options["crash"])
        spools = Path(options["spools"])
        self.kit = kit_at(options["store"], spool_dir=spools, store_timeout=0.2, start_timeout=0.5)
        self.app = metered(self.kit)

    async def serve(self, customer: str, times: int) -> list[int]:
        return [await Client(self.app).get(customer) for _ in range(times)]

    async def record(self, customer: str, quantity: int) -> None:
        await self.kit.record(customer, "tokens", quantity)

    async def state(self) -> dict[str, Any]:
        lane: Any = self.kit.store.lanes[asyncio.get_running_loop()]
        unwritten = cast("list[object]", vars(lane.spool)["_unwritten"])
        unspooled = sum(queue.unsettled for queue in lane.queues) + len(unwritten)
        return {"away": lane.is_down, "unsettled": lane.unsettled, "unspooled": unspooled, "lost": lane.lost}
