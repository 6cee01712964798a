"""Messages that are dead, and messages that no process sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.cli.doctor.findings import Finding, named
from meterkit.cli.output import span
from meterkit.store.messages import CHANNELS, MessageQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit import MeterKit
    from meterkit.store.messages import Channel, KeptMessage

__all__ = ["OVERDUE_MS", "dead_messages", "look_at_messages", "overdue_messages"]

OVERDUE_MS: Final = 5 * 60_000
"""How long a message may be due: a process that sends messages asks every second."""


async def look_at_messages(kit: MeterKit) -> tuple[str, list[Finding]]:
    """How many messages wait and are dead, and what is wrong with them.

    Raises:
        StoreError: the store does not answer.
    """
    waiting = 0
    found: list[Finding] = []
    dead: list[KeptMessage] = []
    for channel in CHANNELS:
        queue = MessageQueue(kit.store, channel)
        counted, late_ms = await queue.waiting(), await queue.overdue_ms()
        waiting += counted["due"] + counted["later"]
        found += overdue_messages(channel, counted["due"], late_ms)
        if counted["dead"]:
            dead += [one for one in await queue.kept() if one.state == "dead"]
    return f"{waiting:,} wait, {len(dead):,} dead", [*found, *dead_messages(dead)]


def overdue_messages(channel: Channel, count: int, late_ms: int) -> list[Finding]:
    """Messages of a channel that no process sends: how many are due, and for how long the oldest."""
    if not count or late_ms <= OVERDUE_MS:
        return []
    whose = "1 message" if count == 1 else f"{count:,} messages"
    needs = "METERKIT_NOTIFY_SECRET" if channel == "webhook" else "METERKIT_SMTP_URL and `contact`"
    return [
        Finding(
            check="messages",
            problem=f"{whose} by {channel} should have been sent up to {span(late_ms)} ago",
            cure=f"run a process of the app with {needs}; its log says why it does not send",
        )
    ]


def dead_messages(dead: Sequence[KeptMessage]) -> list[Finding]:
    """Messages that are not sent any more."""
    if not dead:
        return []
    count = "1 message is" if len(dead) == 1 else f"{len(dead):,} messages are"
    return [
        Finding(
            check="messages",
            problem=f"{count} dead, {named([one.id for one in dead])}: {dead[0].why}",
            cure="`meterkit notify list` has each reason; remove it, then `meterkit notify redrive`",
        )
    ]
