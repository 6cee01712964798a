"""A kit's messages: events, channels and the app's contact, put together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from meterkit.insights.audit.hourly_usage import HourlyUsage
from meterkit.notify.messages import Messages
from meterkit.subscriptions.service.stripe_customers import contact_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.settings import Settings
    from meterkit.store.store import Store
    from meterkit.subscriptions.service.stripe_customers import ContactSource

__all__ = ["messages_of"]


def messages_of(
    store: Store, settings: Settings, contact: ContactSource | None, handled: Collection[str]
) -> Messages:
    """The messages of a kit.

    Args:
        store: where its events are kept.
        settings: of the kit.
        contact: gives where a customer is reached by e-mail.
        handled: the events that the app has handlers for.
    """
    history = None if settings.audit_url is None else HourlyUsage(settings.audit_url.get_secret_value())
    reach = None if contact is None else partial(contact_of, contact)
    return Messages(store, settings, reach, history, handled)
