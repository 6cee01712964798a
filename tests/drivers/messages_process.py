"""A courier in a forked process of its own that is killed before or after a named step."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import aiosmtplib

from drivers.messages import kit_of, pass_over
from faults.crash_process import SharedClock
from meterkit.notify import courier as steps
from meterkit.notify.mail import MailSender
from meterkit.notify.webhook import WebhookSender
from meterkit.store.messages import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS: Final[Mapping[str, Mapping[str, tuple[Any, str]]]] = {
    "webhook": {
        "take an event": (steps, "next_notices"),
        "queue": (MessageQueue, "add"),
        "acknowledge": (steps, "acknowledge"),
        "take a message": (MessageQueue, "take"),
        "send": (WebhookSender, "_post"),
        "finish": (MessageQueue, "done"),
    },
    "email": {
        "take an event": (steps, "next_notices"),
        "queue": (MessageQueue, "add"),
        "acknowledge": (steps, "acknowledge"),
        "take a message": (MessageQueue, "take"),
        "write": (MailSender, "_mail"),
        "connect": (aiosmtplib.SMTP, "connect"),
        "name the recipient": (aiosmtplib.SMTP, "rcpt"),
        "send": (aiosmtplib.SMTP, "data"),
        "finish": (MessageQueue, "done"),
    },
}
"""By channel, what is done from an event to a message that was sent."""


class Life(TypedDict):
    """What the process is told: addresses, the file of the clock, and where it is killed."""

    store: str
    url: str
    smtp_url: str
    clock: str
    channel: str
    step: str
    when: Literal["before", "after"]


def deliver(life: Life) -> None:
    """What the process does: one pass, until it is killed."""
    owner, name = STEPS[life["channel"]][life["step"]]
    step = getattr(owner, name)

    async def killed(*args: Any, **kwargs: Any) -> Any:
        if life["when"] == "after":
            await step(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killed)
    asyncio.run(_deliver(life))


async def _deliver(life: Life) -> None:
    clock = SharedClock(life["clock"])
    async with kit_of(life["store"], clock, url=life["url"], smtp_url=life["smtp_url"]) as kit:
        await pass_over(kit, life["channel"])
