"""Marks a plain function that returns an awaitable as a coroutine function, for adapters that ask."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Function = TypeVar("Function", bound="Callable[..., Awaitable[Any]]")


def returns_awaitable(function: Function) -> Function:
    """Mark it, as ``inspect.markcoroutinefunction`` does from Python 3.12 on, and as asyncio knew it before.

    ``WsgiToAsgi`` of asgiref warns of a ``send`` without the mark.
    """
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        mark(function)
    else:
        vars(function)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
    return function
