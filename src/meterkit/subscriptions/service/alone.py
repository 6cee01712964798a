"""One begins a subscription for a customer at a time: two at once, of different plans, would begin two."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.store.store import Store

__all__ = ["alone"]

_LEASE_MS: Final = 60_000
_PAUSE_S: Final = 0.1


@asynccontextmanager
async def alone(store: Store, customer: str) -> AsyncGenerator[None]:
    """Wait until nobody else begins a subscription for a customer, in any process, and keep others waiting.

    Who dies meanwhile, or needs longer, keeps them waiting for a minute.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    lease = partial(admin.run, store.scripts["lease"], [store.keys.beginning(customer)], token_hex(16))
    while True:
        if await lease(_LEASE_MS):
            break
        await anyio.sleep(_PAUSE_S)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), suppress(StoreError):
            await lease(0)
