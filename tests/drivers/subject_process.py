"""A kit in a process of its own that holds and consumes for users; commands and answers are JSON lines.

Its argument is a JSON object: ``store`` is a URL, ``plans`` the text of a plans file, ``now`` an instant.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from drivers.workers import obey
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from meterkit.store.holds import Reservation


class Commands:
    """What the process can do; each method takes the arguments of its command."""

    def __init__(self, kit: MeterKit) -> None:
        self.kit = kit
        self.held: list[Reservation] = []

    async def nothing(self) -> str:
        return "ready"

    async def consume(self, calls: list[tuple[str, int]], meter: str) -> list[int]:
        """Consume at once for users of acme; what was admitted of each call."""
        decisions = await asyncio.gather(
            *(self.kit.consume("acme", meter, units, subjects={"user": user}) for user, units in calls)
        )
        return [
            units if decision.allowed else 0 for (_, units), decision in zip(calls, decisions, strict=True)
        ]

    async def hold(self, user: str, meter: str, quantity: int) -> bool:
        """Reserve, and keep that; whether it was allowed."""
        reservation = self.kit.reserve("acme", {meter: quantity}, subjects={"user": user})
        await reservation.__aenter__()
        self.held.append(reservation)
        return reservation.decision.allowed

    async def release(self) -> str:
        """Release all that is held."""
        while self.held:
            await self.held.pop().release()
        return "released"


async def main(options: dict[str, Any]) -> None:
    clock = Clock(datetime.fromisoformat(options["now"]))
    async with MeterKit(
        loads(options["plans"]),
        redis_url=options["store"],
        clock=clock,
        flush=False,
        shards=4,
        store_timeout=60.0,
    ) as kit:
        commands = Commands(kit)
        await obey(commands)
        await commands.release()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
