"""The flusher as a task in the background: begun anew where it ends by an error, and ended for good once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.flusher import Flusher

__all__ = ["end", "flush_forever"]

_logger = logging.getLogger("meterkit.delivery")
_CANCEL_AGAIN_S: Final = 0.2


async def flush_forever(
    flusher: Callable[[], AbstractAsyncContextManager[Flusher]], *, every_s: float
) -> None:
    """Flush until cancelled, with a new flusher where one ends by an error."""
    while True:
        try:
            async with flusher() as at_work:
                await at_work.run(every_s=every_s)
        except Exception:
            _logger.exception("the flusher ended by an error; it begins anew")
            await asyncio.sleep(every_s)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: a client that connects may take a cancellation for a failure to."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
