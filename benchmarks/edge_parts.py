"""The bytecode instructions of meterkit in a request, by part: python benchmarks/edge_parts.py"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from driver import Target, running
from machine import Cores, redis_server
from tables import show
from variants import BY_NAME

# Behind all others: the test that watches these counts reads them by the same code.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from costs.edge_instructions import PARTS, fewest, part_of

if TYPE_CHECKING:
    from tables import Table

NAMES = ("meterkit-decide", "meterkit-settle", "meterkit-hot-decide", "meterkit-hot-settle")
CUSTOMER = "cus_00000"
FIRST_DB = 56


async def counts_of(name: str, redis_url: str) -> dict[str, int]:
    """The cheapest of several requests, by part."""
    variant = BY_NAME[name]
    app = variant.build(redis_url)
    found: dict[str, int] = dict.fromkeys(PARTS, 0)
    async with running(app) as client:
        new_scope = partial(client.scope, Target(CUSTOMER))
        cheapest = await fewest(app, app._kit, new_scope, is_hot=variant.customers == 1)
        for function, instructions in cheapest.items():
            found[part_of(function)] += instructions
    return found


def measure(redis_url: str) -> dict[str, dict[str, int]]:
    """Variant to part to instructions; nothing while something else traces this process."""
    if sys.gettrace() is not None:
        return {}
    return {
        name: asyncio.run(counts_of(name, f"{redis_url}/{FIRST_DB + number}"))
        for number, name in enumerate(NAMES)
    }


def table(result: dict) -> Table:
    """The rows of the report."""
    found = result.get("edge_parts", {})
    head = ("part of a request", *(BY_NAME[name].title.split(":")[0] for name in found))
    rows = [(part, *(f"{seen[part]:,}" for seen in found.values())) for part in PARTS if found]
    if found:
        rows.append(("all", *(f"{sum(seen.values()):,}" for seen in found.values())))
    return "Bytecode instructions of meterkit in a request", head, rows


def main() -> None:
    with redis_server(Cores()) as redis_url:
        show(table({"edge_parts": measure(redis_url)}))


if __name__ == "__main__":
    main()
