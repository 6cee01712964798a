"""Looks at the plans file for changes, so that it can be read again."""

from __future__ import annotations

import logging
import os
from asyncio import gather, sleep, to_thread
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["watch"]

_logger = logging.getLogger("meterkit.plans")

_Seen: TypeAlias = tuple[int, int, int, int] | None


async def watch(
    path: str | os.PathLike[str], reload: Callable[[], Awaitable[object]], *, every_s: float
) -> None:
    """Have a plans file read again after each change, until cancelled; where that is refused, it is logged.

    A change counts once the file has been the same for two looks, so that none is read that is half written.
    A link is followed: what it leads to may be swapped, as Kubernetes does with its ConfigMaps.

    Args:
        path: the file; while it is missing, nothing is called.
        reload: reads it again.
        every_s: how often it is looked at, in seconds.
    """
    known = before = await to_thread(_look, path)
    while True:
        await sleep(every_s)
        now = await to_thread(_look, path)
        if now is not None and now == before != known:
            known = now
            for error in await gather(reload(), return_exceptions=True):
                if isinstance(error, Exception):
                    _logger.error("%s has changed and is refused; the one before holds: %s", path, error)
        before = now


def _look(path: str | os.PathLike[str]) -> _Seen:
    """What differs after a change; None where there is no such file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a text will do
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
