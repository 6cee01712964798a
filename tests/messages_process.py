"""A courier in a forked process of its own that is killed before or after a named step."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from crash_process import SharedClock
from messaging import kit_of, pass_over
from meterkit.notify import courier as steps
from meterkit.notify.webhook import WebhookSender
from meterkit.store.messages import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS: Final[Mapping[str, tuple[Any, str]]] = {
    "take an event": (steps, "next_notices"),
    "queue": (MessageQueue, "add"),
    "acknowledge": (steps, "acknowledge"),
    "take a message": (MessageQueue, "take"),
    "post": (WebhookSender, "_post"),
    "finish": (MessageQueue, "done"),
}


class Life(TypedDict):
    """What the process is told: addresses, the file of the clock, and where it is killed."""

    store: str
    url: str
    clock: str
    step: str
    when: Literal["before", "after"]


def deliver(life: Life) -> None:
    """What the process does: one pass, until it is killed."""
    owner, name = STEPS[life["step"]]
    step = getattr(owner, name)

    async def killed(*args: Any, **kwargs: Any) -> Any:
        if life["when"] == "after":
            await step(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killed)
    asyncio.run(_deliver(life))


async def _deliver(life: Life) -> None:
    async with kit_of(life["store"], SharedClock(life["clock"]), url=life["url"]) as kit:
        await pass_over(kit, "webhook")
