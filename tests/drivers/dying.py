"""Processes that kill themselves at a step."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import count
from typing import Any, Final

_DURING_S: Final = 0.002


def die(by: signal.Signals = signal.SIGKILL) -> None:
    """End this process."""
    os.kill(os.getpid(), by)


def die_at(
    owner: Any, name: str, when: str = "after", *, nth: int = 1, by: signal.Signals = signal.SIGKILL
) -> None:
    """Have this process die ``before``, ``during`` or ``after`` the nth call of an asynchronous function.

    During: what the step asks has left, and the answer is not looked at.
    """
    step, calls = getattr(owner, name), count(1)

    async def dying(*args: Any, **options: Any) -> Any:
        now = when if next(calls) == nth else ""
        if now == "before":
            die(by)
        work = asyncio.ensure_future(step(*args, **options))
        if now == "during":
            await asyncio.wait({work}, timeout=_DURING_S)
            die(by)
        done = await work
        if now == "after":
            die(by)
        return done

    setattr(owner, name, dying)
