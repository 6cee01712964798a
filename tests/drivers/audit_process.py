"""Drains an audit log in a process of its own, which kills itself between the insertion and what follows.

Its argument is a JSON object: ``store`` and ``database`` are URLs, ``shards`` as of the store.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from drivers.delivery import CATALOG
from meterkit import MeterKit
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.insights.audit.entries import Row


class Dying(Database):
    """Inserts, and is gone."""

    def insert(self, rows: Sequence[Row]) -> Sequence[Row]:
        inserted = super().insert(rows)
        os.kill(os.getpid(), signal.SIGKILL)
        return inserted


async def main(store: str, database: str, shards: int) -> None:
    async with MeterKit(
        CATALOG, redis_url=store, shards=shards, flush=False, audit_url=database, store_timeout=60.0
    ) as kit:
        await Drainer(kit.store, Dying(database)).drain()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
