"""Blocking calls to the database, each in a thread of its own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from meterkit.redis.daemon_thread import in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_thread"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function that blocks, without blocking the event loop."""
    thread = in_daemon_thread(partial(call, *args, **kwargs), name="meterkit-overview")
    return await asyncio.wrap_future(thread)
