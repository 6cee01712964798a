"""The parts of a kit for code without an event loop; see :class:`meterkit.sync.SyncMeterKit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.asgi.gauges import Gauges
    from meterkit.customers.customers import Customer, Customers
    from meterkit.customers.grants import Grants
    from meterkit.customers.subjects import CustomerSubject
    from meterkit.insights.revenue.revenue import Revenue
    from meterkit.loop_thread import LoopThread
    from meterkit.notify.messages import Messages
    from meterkit.outbox.late_items import QueuedItems
    from meterkit.outbox.operator_commands import Intents
    from meterkit.storage.service import ObjectStorage
    from meterkit.subscriptions.price_sync import StripeAccount
    from meterkit.subscriptions.service.credits import Credits
    from meterkit.subscriptions.service.service import Subscriptions
    from meterkit.subscriptions.webhooks.webhooks import Webhooks

__all__ = [
    "SyncCredits",
    "SyncCustomers",
    "SyncGauges",
    "SyncGrants",
    "SyncIntents",
    "SyncMessages",
    "SyncObjectStorage",
    "SyncQueuedItems",
    "SyncRevenue",
    "SyncStripeAccount",
    "SyncSubject",
    "SyncSubscriptions",
    "SyncWebhooks",
]


class SyncCustomers:
    """Reads and changes customers; see :class:`meterkit.Customers`."""

    def __init__(self, customers: Customers, loop: LoopThread) -> None:
        self._customers = customers
        self._loop = loop
        self.get = loop.blocking(customers.get)
        self.known = loop.blocking(customers.known)
        self.set_plan = loop.blocking(customers.set_plan)
        self.set_status = loop.blocking(customers.set_status)
        self.override = loop.blocking(customers.override)
        self.spend_limit = loop.blocking(customers.spend_limit)
        self.link = loop.blocking(customers.link)
        self.unlink = loop.blocking(customers.unlink)
        self.delete = loop.blocking(customers.delete)
        self.history = loop.blocking(customers.history)

    def subject(self, customer: str, **subject: str) -> SyncSubject:
        """One subject of a customer; see :meth:`meterkit.Customers.subject`."""
        return SyncSubject(self._customers.subject(customer, **subject), self._loop)

    def list(self) -> Iterator[Customer]:
        """All customers that have a record, in no order."""
        found = self._customers.list()

        async def following() -> Customer | None:
            return await anext(found, None)

        while (customer := self._loop.call(following)) is not None:
            yield customer


class SyncSubject:
    """One subject of a customer; see :class:`meterkit.CustomerSubject`."""

    def __init__(self, subject: CustomerSubject[Customer], loop: LoopThread) -> None:
        self.override = loop.blocking(subject.override)


class SyncCredits:
    """Sells balances in money; see :class:`meterkit.Credits`."""

    def __init__(self, credits_: Credits, loop: LoopThread) -> None:
        self.buy = loop.blocking(credits_.buy)
        self.set_auto = loop.blocking(credits_.set_auto)


class SyncGrants:
    """Adds, lists and voids grants; see :class:`meterkit.Grants`."""

    def __init__(self, grants: Grants, loop: LoopThread) -> None:
        self.add = loop.blocking(grants.add)
        self.list = loop.blocking(grants.list)
        self.void = loop.blocking(grants.void)
        self.ledger = loop.blocking(grants.ledger)


class SyncGauges:
    """Reads and changes the levels of gauges; see :class:`meterkit.Gauges`."""

    def __init__(self, gauges: Gauges, loop: LoopThread) -> None:
        self.get = loop.blocking(gauges.get)
        self.set = loop.blocking(gauges.set)
        self.adjust = loop.blocking(gauges.adjust)


class SyncMessages:
    """Lists, resends and previews messages, and keeps what customers want; as ``kit.notify``."""

    def __init__(self, messages: Messages, loop: LoopThread) -> None:
        self.preferences = loop.blocking(messages.preferences)
        self.list = loop.blocking(messages.list)
        self.redrive = loop.blocking(messages.redrive)
        self.preview = messages.preview


class SyncObjectStorage:
    """Counts stored objects and presigns uploads; see :class:`meterkit.ObjectStorage`."""

    def __init__(self, storage: ObjectStorage, loop: LoopThread) -> None:
        self.count = loop.blocking(storage.count)
        self.poll = loop.blocking(storage.poll)
        self.presign = loop.blocking(storage.presign)
        self.recalculate = loop.blocking(storage.recalculate)
        self.unclear = loop.blocking(storage.unclear)


class SyncIntents:
    """Looks at intents and sees to them; see :class:`meterkit.Intents`."""

    def __init__(self, intents: Intents, loop: LoopThread) -> None:
        self.list = loop.blocking(intents.list)
        self.show = loop.blocking(intents.show)
        self.redrive = loop.blocking(intents.redrive)
        self.park = loop.blocking(intents.park)
        self.drop = loop.blocking(intents.drop)
        self.items = SyncQueuedItems(intents.items, loop)


class SyncQueuedItems:
    """Lists, redrives and drops queued invoice items; see :class:`meterkit.QueuedItems`."""

    def __init__(self, items: QueuedItems, loop: LoopThread) -> None:
        self.list = loop.blocking(items.list)
        self.redrive = loop.blocking(items.redrive)
        self.drop = loop.blocking(items.drop)


class SyncRevenue:
    """Reads figures of revenue; see :class:`meterkit.Revenue`."""

    def __init__(self, revenue: Revenue, loop: LoopThread) -> None:
        self.at = loop.blocking(revenue.at)
        self.by_plan = loop.blocking(revenue.by_plan)
        self.days = loop.blocking(revenue.days)
        self.spend = loop.blocking(revenue.spend)
        self.snapshot = loop.blocking(revenue.snapshot)


class SyncStripeAccount:
    """Makes the objects of the plans file at Stripe; see :class:`meterkit.StripeAccount`."""

    def __init__(self, account: StripeAccount, loop: LoopThread) -> None:
        self.sync = loop.blocking(account.sync)


class SyncSubscriptions:
    """Begins, changes and ends subscriptions; see :class:`meterkit.Subscriptions`."""

    def __init__(self, subscriptions: Subscriptions, loop: LoopThread) -> None:
        self.get = loop.blocking(subscriptions.get)
        self.sync = loop.blocking(subscriptions.sync)
        self.create = loop.blocking(subscriptions.create)
        self.checkout = loop.blocking(subscriptions.checkout)
        self.portal = loop.blocking(subscriptions.portal)
        self.preview = loop.blocking(subscriptions.preview)
        self.change_plan = loop.blocking(subscriptions.change_plan)
        self.set_seats = loop.blocking(subscriptions.set_seats)
        self.cancel = loop.blocking(subscriptions.cancel)
        self.resume = loop.blocking(subscriptions.resume)
        self.invoices = loop.blocking(subscriptions.invoices)
        self.check = loop.blocking(subscriptions.check)
        self.repair = loop.blocking(subscriptions.repair)
        self.import_from_stripe = loop.blocking(subscriptions.import_from_stripe)
        self.retry_accepted = loop.blocking(subscriptions.retry_accepted)


class SyncWebhooks:
    """Shows what became of Stripe's events, and has them worked off again; as ``kit.webhooks``."""

    def __init__(self, webhooks: Webhooks, loop: LoopThread) -> None:
        self.backlog = loop.blocking(webhooks.backlog)
        self.dead = loop.blocking(webhooks.dead)
        self.redrive = loop.blocking(webhooks.redrive)
