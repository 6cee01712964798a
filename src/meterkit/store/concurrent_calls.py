"""Calls made concurrently, a few at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_T = TypeVar("_T")


async def run_together(calls: Iterable[Callable[[], Awaitable[_T]]], *, at_once: int) -> list[_T]:
    """Make calls concurrently, a few at once; their results are in the order of the calls.

    Raises:
        MeterkitError: the first of a call's; the others are cancelled.
    """
    room = asyncio.Semaphore(at_once)

    async def run(call: Callable[[], Awaitable[_T]]) -> _T:
        async with room:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(call)) for call in calls]
    except* MeterkitError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
