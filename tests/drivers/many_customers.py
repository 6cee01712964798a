"""Many customers, alike: one is set up by the kit, and its records are copied in the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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


@dataclass
class ScriptCounts:
    """Runs of a script, and how many of them went on at once at most."""

    runs: int = 0
    running: int = 0
    most: int = 0


@asynccontextmanager
async def counted_scripts(kit: MeterKit, name: str) -> AsyncGenerator[ScriptCounts]:
    """How often a script of the store is run over a kit's connections for administration."""
    admin, found, counted = await kit.store.admin(), ScriptCounts(), kit.store.scripts[name]
    run = admin.run

    async def counting(script: Script, keys: list[str], *arguments: str | int) -> Any:
        if script is not counted:
            return await run(script, keys, *arguments)
        found.runs += 1
        found.running += 1
        found.most = max(found.most, found.running)
        try:
            return await run(script, keys, *arguments)
        finally:
            found.running -= 1

    admin.run = counting  # type: ignore[method-assign] # no other means counts them
    try:
        yield found
    finally:
        admin.run = run  # type: ignore[method-assign]
