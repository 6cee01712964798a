"""Frozen values of the block ``notify:``: events that go out, and their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MESSAGE_EVENTS: Final = (
    "usage.threshold",
    "usage.spike",
    "storage.over",
    "period.summary",
    "credits.low",
    "subscription.changed",
    "access.changed",
    "dunning.reminder",
    "trial.ending",
    "payment.failed",
    "payment.succeeded",
    "top_up.failed",
    "top_up.refunded",
)
"""The events that a message can be sent for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookChannel:
    """Events that are posted to an address of the operator's.

    Attributes:
        url: where they are posted.
        events: which.
    """

    url: str
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailChannel:
    """Events that customers are sent by e-mail.

    Attributes:
        sender: the address that the e-mails are from.
        events: which.
    """

    sender: str
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """The channels of messages; None: there is no such channel."""

    webhook: WebhookChannel | None = None
    email: EmailChannel | None = None

    @property
    def events(self) -> frozenset[str]:
        """The events of all channels."""
        channels = (self.webhook, self.email)
        return frozenset(event for channel in channels if channel is not None for event in channel.events)
