"""Many customers, alike: one is set up by the kit, and its records are copied in the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from meterkit import MeterKit
from meterkit.redis.scripts import Script

_AT_ONCE = 1_000


async def copy_customer(kit: MeterKit, customer: str, number: int) -> Sequence[str]:
    """Copy what the store has of a customer to so many others; their ids."""
    admin, keys = await kit.store.admin(), kit.store.keys
    names, of = [f"copy-{nth:06}" for nth in range(number)], keys.customer(customer)
    kinds = ("state", "counters", "totals", "levels")
    kept = [await admin.client.hgetall(getattr(of, kind)) for kind in kinds]
    for first in range(0, number, _AT_ONCE):
        pipe: Any = admin.client.pipeline(transaction=False)
        for name in names[first : first + _AT_ONCE]:
            to = keys.customer(name)
            if kept[0]:
                pipe.sadd(keys.shard(to.shard, "customers"), name)
            for kind, fields in zip(kinds, kept, strict=True):
                if fields:
                    pipe.hset(getattr(to, kind), mapping=fields)
                    if kind in {"counters", "totals"}:
                        pipe.pexpire(getattr(to, kind), 40 * 86_400_000)
        await admin.ask(pipe.execute())
    return names


@asynccontextmanager
async def counted_scripts(kit: MeterKit) -> AsyncGenerator[dict[str, int]]:
    """How often each script of the store is run over a kit's connections for administration."""
    admin, found = await kit.store.admin(), dict[str, int]()
    names, run = {id(script): name for name, script in kit.store.scripts.items()}, admin.run

    async def counting(script: Script, keys: list[str], *arguments: str | int) -> Any:
        found[names[id(script)]] = found.get(names[id(script)], 0) + 1
        return await run(script, keys, *arguments)

    admin.run = counting  # type: ignore[method-assign] # no other means counts them
    try:
        yield found
    finally:
        admin.run = run  # type: ignore[method-assign]
