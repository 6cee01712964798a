"""Every customer that has used something, page by page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

__all__ = ["customers_with_counts", "usage_of_all"]

_KEYS_AT_ONCE: Final = 1_000
_CUSTOMERS_AT_ONCE: Final = 100


async def customers_with_counts(store: Store, kinds: str = "ctv") -> Sequence[str]:
    """The ids of all customers that anything was counted of, or with levels of gauges, sorted.

    Nothing lists them: each server walks over all its keys, a thousand at once, while others are served.

    Args:
        store: where they are.
        kinds: of keys that count: ``c`` and ``t`` counters and totals, ``v`` levels of gauges.

    Raises:
        StoreError: the store does not answer, or its user may not run SCAN.
    """
    prefix = store.keys.prefix
    named = re.compile(rf"{re.escape(prefix)}:\{{\d+\}}:[{kinds}]:(.*)", re.DOTALL)
    admin = await store.admin()
    found: set[str] = set()
    for server in await admin.servers():
        cursor = None
        while cursor != 0:
            scan = server.client.scan(cursor or 0, match=f"{prefix}:{{*}}:[{kinds}]:*", count=_KEYS_AT_ONCE)
            cursor, keys = await server.ask(scan)
            names = (named.fullmatch(key.decode("utf-8", "surrogateescape")) for key in keys)
            found.update(name[1] for name in names if name is not None)
    return sorted(found)


async def usage_of_all(store: Store, *, at_ms: int | None = None) -> AsyncGenerator[Sequence[CustomerUsage]]:
    """Pages of all customers that have used something in this period, or in that of another instant.

    Sorted by their ids; as of the moment when each page was read.

    Raises:
        StoreError: the store does not answer.
    """
    customers = await customers_with_counts(store)
    for first in range(0, len(customers), _CUSTOMERS_AT_ONCE):
        page = await store.usage_of_many(customers[first : first + _CUSTOMERS_AT_ONCE], at_ms=at_ms)
        yield [found for found in page if _has_usage(found)]


def _has_usage(found: CustomerUsage) -> bool:
    return any(meter["used"] or meter["late"] for meter in found["meters"].values())
