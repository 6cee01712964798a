"""Entries that wait or were given up, and what a ledger says of their redrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from drivers.command_line import Shell
from meterkit import HistoryEntry, MeterKit
from meterkit.notify.courier import Message
from meterkit.store.message_queue import LeasedMessage, MessageQueue
from meterkit.subscriptions.webhooks.stripe_events import SyncHint
from meterkit.subscriptions.webhooks.sync_queue import SyncEntry, SyncQueue
from meterkit.testing import StripeEmulator


async def kill_message(
    kit: MeterKit, name: str, customer: str, why: str = "it answers 500", *, event: str = "usage.threshold"
) -> None:
    """Have a message that was given up."""
    queue, taken = await _taken_message(kit, name, customer, event)
    assert await queue.give_up(taken, why)


async def put_off_message(kit: MeterKit, name: str, customer: str) -> None:
    """Have a message that is tried again in an hour."""
    queue, taken = await _taken_message(kit, name, customer, "usage.threshold")
    await queue.retry(taken, "it answers 500", delay_ms=3_600_000)


async def _taken_message(
    kit: MeterKit, name: str, customer: str, event: str
) -> tuple[MessageQueue, LeasedMessage]:
    queue, at = MessageQueue(kit.store, "webhook"), "2031-06-01T00:00:00Z"
    message = Message(id=name, event=event, customer=customer, at=at, data={})
    await queue.add(customer, name, message.dump())
    (taken,) = await queue.lease(1)
    return queue, taken


async def queue_webhook(kit: MeterKit, stripe_customer: str) -> None:
    await SyncQueue(kit.store).add(SyncHint(event=f"evt_{stripe_customer}", stripe_customer=stripe_customer))


async def kill_webhook(kit: MeterKit, stripe_customer: str, why: str = "Stripe refuses") -> None:
    """Have a Stripe customer that was given up."""
    queue, taken = await _taken_webhook(kit, stripe_customer)
    assert await queue.give_up(taken, why)


async def _taken_webhook(kit: MeterKit, stripe_customer: str) -> tuple[SyncQueue, SyncEntry]:
    await queue_webhook(kit, stripe_customer)
    queue = SyncQueue(kit.store)
    taken = await queue.lease_one(stripe_customer)
    assert isinstance(taken, SyncEntry)
    return queue, taken


async def redrives(kit: MeterKit, customer: str) -> list[HistoryEntry]:
    return [one for one in await kit.customers.history(customer) if one.cause == "operator ada"]


@asynccontextmanager
async def recorded(stored: Shell) -> AsyncGenerator[tuple[MeterKit, StripeEmulator]]:
    """A kit that has 25 tokens of acme's to deliver, to a Stripe that does not know acme yet."""
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    with emulator.running() as url:
        key = "sk_test_1"
        stored.environment |= {"METERKIT_STRIPE_API_KEY": key, "METERKIT_STRIPE_API_BASE": url}
        async with stored.kit(stripe_api_key=key, stripe_api_base=url) as kit:
            await kit.customers.link("acme", "cus_acme", force=True)
            await kit.record("acme", "tokens", 25)
            yield kit, emulator
