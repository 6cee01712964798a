"""Customers who use an app while its servers change: what each was told is compared with what is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from faults.refusals import eventually, loop_clock, settled
from meterkit import MeterKit, StoreError

CUSTOMERS = tuple(f"c{number}" for number in range(24))


class Load:
    """What became of it, by customer.

    ``allowed`` requests were counted by the store's own word, ``unknown`` ones were sent and not answered,
    ``refused`` ones nobody executed.
    """

    def __init__(self) -> None:
        self.allowed = Counter[str]()
        self.unknown = Counter[str]()
        self.refused = Counter[str]()
        self.slowest_s = 0.0

    async def more(self, count: int) -> None:
        """Wait until so many requests more are allowed, of any customers."""
        enough = self.allowed.total() + count
        await eventually(lambda: self.allowed.total() >= enough)

    async def of_each(self, customers: tuple[str, ...] = CUSTOMERS, count: int = 3) -> None:
        enough = {customer: self.allowed[customer] + count for customer in customers}
        await eventually(lambda: all(self.allowed[customer] >= most for customer, most in enough.items()))


@asynccontextmanager
async def under_load(kit: MeterKit, meter: str = "requests") -> AsyncGenerator[Load]:
    """Have all customers use the app until the block ends, and all of it settled."""
    load, stop = Load(), asyncio.Event()

    async def use(customer: str) -> None:
        while not stop.is_set():
            begun = clock()
            try:
                decision = await kit.consume(customer, meter, 1)
            except StoreError as error:
                (load.unknown if error.executed is None else load.refused)[customer] += 1
            else:
                assert decision.allowed
                load.allowed[customer] += 1
            load.slowest_s = max(load.slowest_s, clock() - begun)
            await asyncio.sleep(0.002)

    async with loop_clock() as clock:
        using = [asyncio.create_task(use(customer)) for customer in CUSTOMERS]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*using)
    await settled(kit)


async def recorded(kit: MeterKit, meter: str = "requests") -> dict[str, int]:
    """What the store has counted of each customer; nothing is held any more."""
    found: dict[str, int] = {}
    for customer in CUSTOMERS:
        counts = (await kit.usage(customer))["meters"][meter]
        found[customer] = counts["recorded"]
    return found
