"""A customer who is deleted is not charged on, and no event brings the customer back."""
# Internals: a deletion in the middle of a read from Stripe.

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.customers.customers import Customers
from meterkit.errors import CustomerError, StripeUnavailableError
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.top_up_payments import TopUpPayments
from meterkit.subscriptions.webhooks.customer_sync import Looker
from meterkit.subscriptions.webhooks.hint_scripts import Entry
from meterkit.subscriptions.webhooks.queue import HookQueue
from subscriptions.looks import linked_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drivers.shop import Shop
    from meterkit.store.store import Store

pytestmark = pytest.mark.anyio

URLS: Any = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}


class DeletesMeanwhile(HookQueue):
    """The customer is deleted after its subscription was fetched, and before that is stored."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._customers = Customers(store)

    async def keep(self, entry: Entry) -> bool:
        await self._customers.delete("acme")
        return await super().keep(entry)


async def refused(event_id: str) -> None:
    raise AssertionError(event_id)


async def events_arrive(at: Shop, linked: str) -> None:
    """Have the Stripe customer looked at, as each of its events asks for."""
    await at.kit.webhooks.look_later(linked)
    await at.kit.webhooks.work_off()


async def test_a_customer_with_a_subscription_is_not_deleted(at: Shop) -> None:
    """F-112: Stripe charged on without a word."""
    begun = await at.subscribed()
    with pytest.raises(CustomerError, match=f"{begun.id}, which is active.*cancel=True"):
        await at.kit.customers.delete("acme")
    assert (await at.kit.customers.get("acme")).plan == "team"
    await events_arrive(at, await linked_of(at))
    assert (await at.kit.customers.get("acme")).plan == "team"


async def test_a_subscription_unknown_to_the_store_is_looked_up(at: Shop) -> None:
    made = await at.kit.subscriptions.create("acme", "pro")
    await at.kit.subscriptions.cancel("acme")
    await at.stripe_change(
        "/v1/subscriptions",
        customer=await linked_of(at),
        default_payment_method=at.emulator.add_payment_method(await linked_of(at)),
        **{"items[0][price]": "price_team"},
    )
    assert made.subscription.status == "incomplete"
    with pytest.raises(CustomerError, match="which is active"):
        await at.kit.customers.delete("acme")


async def test_no_event_brings_a_deleted_customer_back(at: Shop) -> None:
    """F-112: the next webhook brought customer, link and plan back."""
    begun = await at.subscribed()
    linked = await linked_of(at)
    await at.kit.record("acme", "tokens", 1_100)
    at.clock.advance(timedelta(minutes=5, seconds=30))
    deleted = await at.kit.customers.delete("acme", cancel=True)
    assert (deleted.state, deleted.link) == (1, 1)
    assert (await at.stripe_subscription(begun.id))["status"] == "canceled"
    assert at.emulator.accepted(linked, "ai_tokens") == 1_000
    # An operator makes another subscription in the Dashboard.
    at.emulator.add_payment_method(linked)
    await at.stripe_change("/v1/subscriptions", customer=linked, **{"items[0][price]": "price_pro"})
    await events_arrive(at, linked)
    assert not await at.kit.customers.known("acme")
    assert [one async for one in at.kit.customers.list()] == []


async def ends_nothing(_customer: str, _ended: Mapping[int, int]) -> None:
    """No period has ended."""


async def test_a_look_that_began_before_the_deletion_stores_nothing(at: Shop) -> None:
    await at.subscribed()
    linked = await linked_of(at)
    api, queue = StripeApi(at.kit.settings), DeletesMeanwhile(at.kit.store)
    await queue.look(linked, "evt_1")
    entry = await queue.take_one(linked)
    assert isinstance(entry, Entry)
    top_ups = TopUpPayments(at.kit.store, lambda: api)
    await Looker(at.kit.store, lambda: api, queue, refused, top_ups, refused, ends_nothing).look(entry)
    await api.close()
    assert not await at.kit.customers.known("acme")


async def test_nothing_is_deleted_while_stripe_is_away(at: Shop) -> None:
    await at.subscribed()
    at.emulator.fail_next("error", status=503, path="*", times=None)
    with pytest.raises(StripeUnavailableError):
        await at.kit.customers.delete("acme", cancel=True)
    assert await at.kit.customers.known("acme")


async def test_the_pages_of_a_deleted_customer_are_closed(at: Shop) -> None:
    page = await at.kit.subscriptions.checkout("acme", "pro", **URLS)
    await at.kit.customers.delete("acme")
    with pytest.raises(ValueError, match="open"):
        at.emulator.complete_checkout(page.id)


async def test_a_customer_deleted_at_stripe_gets_a_new_one(at: Shop) -> None:
    """F-113: 502 until an operator unlinked."""
    await at.subscribed()
    first = await linked_of(at)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.customers.set_plan("acme", "pro")
    await at.kit.record("acme", "tokens", 1_300)
    await at.stripe_delete(f"/v1/customers/{first}")
    again = await at.subscribed(plan="pro")
    assert again.status == "active"
    second = await linked_of(at)
    assert second != first
    at.clock.advance(timedelta(minutes=10))
    await at.kit.flush(everything=True)
    assert at.emulator.accepted(second, "ai_tokens") == 300
    await events_arrive(at, first)
    assert await linked_of(at) == second
