"""One customer's usage, delivered at once: before what bills it ends."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.store.taken_back import taken_back

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.flusher import Flusher
    from meterkit.store.store import Store

__all__ = ["deliver_customer", "undelivered"]

_logger = logging.getLogger("meterkit.delivery")

_PAUSE_FIRST_S: Final = 0.2
_PAUSE_MAX_S: Final = 2.0


async def deliver_customer(
    store: Store, flusher: AbstractAsyncContextManager[Flusher], customer: str, *, timeout_s: float
) -> bool:
    """Deliver what a customer has used until now; whether nothing of it is on its way any more, else logged.

    Its usage is due at once; of others only what is due anyway is delivered besides.

    Args:
        store: where it is counted.
        flusher: what delivers.
        customer: whose usage.
        timeout_s: how long this may take, in real seconds.

    Raises:
        StoreError: the store does not answer.
    """
    deadline, pause_s = monotonic() + timeout_s, _PAUSE_FIRST_S
    dirty = store.keys.customer(customer).dirty
    async with flusher as at_work:
        left = await undelivered(store, customer)
        while left:
            admin = await store.admin()
            await admin.ask(admin.client.zadd(dirty, {customer: store.now_ms()}, xx=True))
            await at_work.flush()
            left = await undelivered(store, customer)
            if left and monotonic() >= deadline:
                _logger.error(
                    "%d units that customer %r has used are not delivered within %d s: they are not on the"
                    " invoice that ends the subscription",
                    *(left, customer, timeout_s),
                )
                return False
            if left:
                await anyio.sleep(min(pause_s, max(0.0, deadline - monotonic())))
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
    return True


async def undelivered(store: Store, customer: str) -> int:
    """How much of what a customer has used is not delivered yet, and is to be.

    Raises:
        StoreError: the store does not answer.
    """
    usage = await store.usage(customer)
    # What takes units back is subtracted there, and is on its way as well.
    back = sum(2 * (units.queued + units.leased) for units in (await taken_back(store, usage)).values())
    return back + sum(
        meter["pending"] + meter["queued"] + meter["leased"] for meter in usage["meters"].values()
    )
