"""``kit.notify``: channels of this process, e-mail preferences, redrives and previews."""

from __future__ import annotations

import logging
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.notify_values import MESSAGE_EVENTS
from meterkit.errors import MeterkitError, SettingsError
from meterkit.notify.courier import MessageCourier, make_message
from meterkit.notify.events import EVENT_CLASSES
from meterkit.notify.mail import MailSender
from meterkit.notify.rendering import Renderer
from meterkit.notify.spikes import EVENT as SPIKE
from meterkit.notify.spikes import SpikeWatch
from meterkit.notify.storage_and_period_watches import StorageWatch, SummaryWatch
from meterkit.notify.webhook import WebhookSender
from meterkit.store.input_checks import check_customer, shown
from meterkit.store.message_queue import CHANNELS, MessageQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.catalog.notify_values import Notify
    from meterkit.notify.courier import MessageSender
    from meterkit.notify.events import CustomerEvent
    from meterkit.notify.mail import Recipient
    from meterkit.notify.rendering import RenderedMessage
    from meterkit.notify.spikes import UsageHistory
    from meterkit.settings import Settings
    from meterkit.store.message_queue import Channel, KeptMessage
    from meterkit.store.store import Store

REQUIRED_EVENTS: Final = frozenset({"dunning.reminder", "payment.failed", "access.changed"})
"""Events of dunning, which every customer receives."""
_AT: Final = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
_VALUES: Final[Mapping[str, Any]] = {
    "id": "sample",
    "customer": "acme",
    "at": _AT,
    "percent": 80,
    "used": 8_000,
    "included": 10_000,
    "period_start": datetime(2026, 11, 1, tzinfo=UTC),
    "period_end": datetime(2026, 12, 1, tzinfo=UTC),
    "balance": 96,
    "balance_micros": 96_250_000,
    "cause": "api",
    "status": "active",
    "status_before": None,
    "seats": 1,
    "seats_before": 0,
    "addons": {},
    "addons_before": {},
    "cancel_at": None,
    "pending_plan": None,
    "pending_seats": None,
    "pending_addons": None,
    "pending_at": None,
    "access": "restricted",
    "access_before": "grace",
    "trial_end": _AT + timedelta(days=3),
    "invoice": "in_sample",
    "amount_cents": 2_900,
    "failures": 1,
    "next_attempt": _AT + timedelta(days=3),
    "credit": "usd",
    "declined": "card_declined",
    "url": "https://invoice.stripe.com/i/acct_1/in_1",
    "refunded_cents": 1000,
    "taken_back_cents": 700,
}
"""Values of attributes in events of every kind."""
_VALUES_OF_EVENT: Final[Mapping[str, Mapping[str, Any]]] = {
    "usage.spike": {
        "span": "hour",
        "used": 12_000,
        "usual": 800,
        "four_weeks_at_this_pace": 8_064_000,
        "last_four_weeks": 537_600,
        "used_cents": 1_440,
        "usual_cents": 96,
        "four_weeks_at_this_pace_cents": 967_680,
        "last_four_weeks_cents": 64_512,
    },
    "storage.over": {
        "used": 12_000_000_000,
        "included": 10_000_000_000,
        "since": _AT - timedelta(minutes=4),
        "until": _AT + timedelta(days=7, minutes=-4),
        "types": {"backups": 9_500_000_000, "documents": 2_500_000_000},
        "remaining": 500_000_000,
    },
    "period.summary": {
        "period_start": datetime(2026, 10, 1, tzinfo=UTC),
        "period_end": datetime(2026, 11, 1, tzinfo=UTC),
        "overage_cents": 240,
    },
    "access.changed": {"cause": "clock", "status": "past_due"},
    "dunning.reminder": {
        "after": timedelta(days=6),
        "failures": 2,
        "failed_at": _AT - timedelta(days=6),
        "access": "grace",
        "until": _AT + timedelta(days=1),
    },
    "top_up.failed": {"invoice": "in_1", "amount_cents": 2000},
    "top_up.refunded": {"invoice": "in_1"},
}


async def read_unwanted(store: Store, customer: str) -> frozenset[str]:
    """Read the events that a customer does not want by e-mail.

    Raises:
        StoreError: the store does not answer.
    """
    found: set[bytes] = await store.ask("smembers", store.keys.unwanted(customer))
    return frozenset(event.decode() for event in found) - REQUIRED_EVENTS


async def write_unwanted(store: Store, customer: str, wanted: Mapping[str, bool]) -> None:
    """Change e-mail preferences of a customer; events that are left out stay unchanged.

    Raises:
        StoreError: the store does not answer.
    """
    admin, key = await store.admin(), store.keys.unwanted(customer)
    await admin.ask_all(("srem" if is_wanted else "sadd", key, event) for event, is_wanted in wanted.items())


_logger = logging.getLogger("meterkit.notify")
_REQUIRED_PACKAGES: Final[Mapping[Channel, Sequence[str]]] = {
    "webhook": ("httpx", "standardwebhooks"),
    "email": ("aiosmtplib", "jinja2"),
}


class Messages:
    """Sends events by webhook and by e-mail, as configured under ``notify:`` in the plans file.

    Args:
        store: has the events and the queues.
        settings: secrets, the SMTP server, templates.
        contact: returns a customer's contact; None: no e-mail is sent.
        history: usage by the hour; None: there is no audit log.
        handled: the events that the app has handlers for.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        contact: Callable[[str], Awaitable[Recipient | None]] | None = None,
        history: UsageHistory | None = None,
        handled: Collection[str] = (),
    ) -> None:
        self._store = store
        self._settings = settings
        self._contact = contact
        self._history = history
        self._handled = handled
        self._renderer = Renderer(lambda: store.catalog, settings.notify_templates)
        self._sends = settings.flush is not False

    def tasks(self, *, is_worker: bool = False) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
        """Background tasks of an event loop, by name: couriers and watches.

        Args:
            is_worker: run them even if the setting ``flush`` is off.

        Raises:
            MeterkitError: a package of the extra ``notify`` is missing.
            SettingsError: the plans file asks for spikes, and there is no audit log.
        """
        self._sends |= is_worker
        if not self._sends:
            return {}
        self.check(self._store.catalog)
        found: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        for channel, sender in self.senders().items():
            _require_packages(channel)
            found[f"notify {channel}"] = MessageCourier(self._store, sender).run
        if self._history is not None:
            found["notify spikes"] = SpikeWatch(self._store, self._history, self.wants).run
        found["notify storage"] = StorageWatch(self._store, self.wants).run
        found["notify summaries"] = SummaryWatch(self._store, self.wants).run
        return found

    def wants(self, event: str) -> bool:
        """Whether a channel of the plans file or a handler wants an event."""
        return event in self._store.catalog.notify.events or event in self._handled

    def check(self, catalog: Catalog) -> None:
        """Log each channel of a plans file that this process lacks the settings for.

        Raises:
            SettingsError: the plans file asks for spikes, and there is no audit log.
        """
        if not self._sends:
            return
        notify = catalog.notify
        if self._history is None and SPIKE in notify.events:
            raise SettingsError(
                "audit_url",
                f"{catalog.source} lists {SPIKE} under notify, which needs the audit log: set"
                " METERKIT_AUDIT_URL (pip install 'meterkit[audit]'), or remove the event",
            )
        for channel, missing in self._missing(notify).items():
            _logger.warning("this process sends no messages by %s: %s", channel, missing)

    @property
    def events(self) -> frozenset[str]:
        """Events that this process sends messages for."""
        if self._settings.flush is False:
            return frozenset()
        return frozenset(event for sender in self.senders().values() for event in sender.events)

    def senders(self) -> Mapping[Channel, MessageSender]:
        """Channels that this process can send by."""
        found: dict[Channel, MessageSender] = {}
        if self._settings.notify_secret:
            found["webhook"] = WebhookSender(self._store, self._settings.notify_secret)
        if self._settings.smtp_url is not None and self._contact is not None:

            async def unwanted(customer: str) -> frozenset[str]:
                return await read_unwanted(self._store, customer)

            found["email"] = MailSender(
                self._store,
                self._settings.smtp_url,
                renderer=self._renderer,
                contact=self._contact,
                unwanted=unwanted,
            )
        return found

    async def preferences(
        self, customer: str, wanted: Mapping[str, bool] | None = None
    ) -> Mapping[str, bool]:
        """Read, and with ``wanted`` change, the events that a customer wants by e-mail; by default all.

        Args:
            customer: the customer's id.
            wanted: event to whether it is wanted; events that are left out stay unchanged.

        Raises:
            CustomerError: the id is not allowed.
            MeterkitError: there is no such event, or it belongs to dunning and cannot be switched off; or a
                value is no bool.
            StoreError: the store does not answer.
        """
        customer = check_customer(customer)
        for event, is_wanted in (wanted or {}).items():
            if event not in MESSAGE_EVENTS:
                raise MeterkitError(f"event: found {event!r:.80}; allowed are {', '.join(MESSAGE_EVENTS)}")
            if type(is_wanted) is not bool:
                raise MeterkitError(f"{event}: found {shown(is_wanted)}; allowed is True or False")
            if event in REQUIRED_EVENTS and not is_wanted:
                raise MeterkitError(f"{event} cannot be switched off: an unpaid invoice restricts access")
        if wanted:
            await write_unwanted(self._store, customer, wanted)
        unwanted = await read_unwanted(self._store, customer)
        return {event: event not in unwanted for event in MESSAGE_EVENTS}

    async def list(self) -> Mapping[Channel, Sequence[KeptMessage]]:
        """List waiting messages, then dead ones, by channel.

        Raises:
            StoreError: the store does not answer.
        """
        return {channel: await MessageQueue(self._store, channel).list_messages() for channel in CHANNELS}

    async def redrive(self, *message_ids: str) -> int:
        """Queue dead messages again, for three days; returns their number.

        Args:
            message_ids: default: all dead messages.

        Raises:
            StoreError: the store does not answer.
        """
        count = 0
        for channel in CHANNELS:
            queue = MessageQueue(self._store, channel)
            dead = [one.id for one in await queue.list_messages() if one.state == "dead"]
            chosen = [one for one in dead if not message_ids or one in message_ids]
            await queue.redrive(chosen)
            count += len(chosen)
        return count

    def preview(self, event: str, *, locale: str | None = None) -> tuple[str, RenderedMessage]:
        """Return the webhook body and the e-mail of an event, with sample figures.

        Raises:
            MeterkitError: there is no such event, or jinja2 is not installed.
        """
        if event not in MESSAGE_EVENTS:
            raise MeterkitError(f"event: found {event!r:.80}; allowed are {', '.join(MESSAGE_EVENTS)}")
        message = make_message("email", event, make_sample(event, self._store.catalog))
        return message.body(), self._renderer.render(message, locale=locale, name="Ada Lovelace")

    def _missing(self, notify: Notify) -> Mapping[Channel, str]:
        """Return why this process cannot send by a channel of the plans file."""
        found: dict[Channel, str] = {}
        if notify.webhook is not None and not self._settings.notify_secret:
            found["webhook"] = "METERKIT_NOTIFY_SECRET is not set"
        if notify.email is not None and self._settings.smtp_url is None:
            found["email"] = "METERKIT_SMTP_URL is not set"
        elif notify.email is not None and self._contact is None:
            found["email"] = "the kit was made without `contact`"
        return found


def _require_packages(channel: Channel) -> None:
    for package in _REQUIRED_PACKAGES[channel]:
        if find_spec(package) is None:
            raise MeterkitError(
                f"{package} is required for messages by {channel}."
                " Install with: pip install 'meterkit[notify]'"
            )


def make_sample(event: str, catalog: Catalog) -> CustomerEvent:
    """Make a sample of an event, with names of the plans file. Pure."""
    meters = catalog.meters.values()
    counter = next((meter.name for meter in meters if meter.kind != "gauge"), "requests")
    plan = list(catalog.plans.values())[-1]
    values: dict[str, Any] = {
        **_VALUES,
        "meter": next(iter(catalog.meters)),
        "meters": {counter: {"used": 12_000, "overage": 2_000, "before": 9_500}},
        "plan": plan.key,
        "addons": dict.fromkeys(plan.addons[:1], 1),
        "plan_before": catalog.default_plan,
        "currency": catalog.currency,
        **_VALUES_OF_EVENT.get(event, {}),
    }
    if event == "storage.over":
        values["meter"] = next((one.name for one in meters if one.unit in {"byte", "bytes"}), "storage")
    elif event == "credits.low":
        values["credit"] = next(iter(catalog.credits), "ai")
    event_class = EVENT_CLASSES[event]
    return event_class(**{field.name: values[field.name] for field in fields(event_class)})
