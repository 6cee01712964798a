"""A courier in a forked process of its own that is killed before or after a named step."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import aiosmtplib

from drivers.dying import die_at
from drivers.messages import kit_of, pass_over
from faults.crash_process import SharedClock
from meterkit.notify import courier as steps
from meterkit.notify.mail import MailSender
from meterkit.notify.webhook import WebhookSender
from meterkit.store.messages import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

_TAKEN: Final[Mapping[str, tuple[Any, str]]] = {
    "take an event": (steps, "next_notices"),
    "queue": (MessageQueue, "add"),
    "acknowledge": (steps, "acknowledge"),
    "take a message": (MessageQueue, "take"),
}
STEPS: Final[Mapping[str, Mapping[str, tuple[Any, str]]]] = {
    "webhook": {**_TAKEN, "send": (WebhookSender, "_post"), "finish": (MessageQueue, "done")},
    "email": {
        **_TAKEN,
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
    die_at(*STEPS[life["channel"]][life["step"]], life["when"])
    asyncio.run(_deliver(life))


async def _deliver(life: Life) -> None:
    clock = SharedClock(life["clock"])
    async with kit_of(life["store"], clock, url=life["url"], smtp_url=life["smtp_url"]) as kit:
        await pass_over(kit, life["channel"])
