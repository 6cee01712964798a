"""The queue of customers to be read from Stripe, and the differences that the nightly sync has found."""

from __future__ import annotations

from meterkit import Drift, MeterKit
from meterkit.customers.drift_records import DriftRecords
from meterkit.subscriptions.service.change_lease import due_prices
from meterkit.subscriptions.webhooks.customer_sync import NIGHTLY
from meterkit.subscriptions.webhooks.sync_queue import LEASE_MS, SyncQueue
from stripe_emulator.webhook_deliveries import FORGERIES, sign_payload

__all__ = ["FORGERIES", "LEASE_MS", "NIGHTLY", "drifts_of", "forget_due_price", "queue_sync", "sign_payload"]


async def queue_sync(kit: MeterKit, customer: str = "acme", *, cause: str = NIGHTLY) -> None:
    """Have a customer read from Stripe and compared, as the night or an event does."""
    linked = (await kit.customers.get(customer)).stripe_customer
    assert linked is not None
    await SyncQueue(kit.store).request(linked, cause)
    await kit.webhooks.work_off()


async def drifts_of(kit: MeterKit) -> dict[str, tuple[Drift, ...]]:
    return dict(await DriftRecords(kit.store).all())


async def due_price_ms(kit: MeterKit, customer: str = "acme") -> int | None:
    """When a price of an override of a customer starts or ends at Stripe."""
    admin = await kit.store.admin()
    due = await admin.ask(admin.client.zscore(kit.store.keys.hooks("prices"), customer))
    return None if due is None else int(due)


async def forget_due_price(kit: MeterKit, customer: str = "acme") -> None:
    await due_prices(kit.store).remove(customer)
