"""A link reads the Stripe customer's subscription before it returns."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from meterkit.errors import CustomerError, StripeUnavailableError

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio


async def subscribed_at_stripe(at: Shop, plan: str = "pro") -> str:
    linked = at.emulator.add_customer(name="Acme")
    at.emulator.add_payment_method(linked)
    await at.stripe_change("/v1/subscriptions", customer=linked, **{"items[0][price]": f"price_{plan}"})
    return linked


async def test_a_paying_customer_is_on_its_plan_when_the_link_returns(at: Shop) -> None:
    """F-111: the customer was ``free`` for up to a day."""
    found = await at.kit.customers.link("acme", await subscribed_at_stripe(at))
    assert (found.plan, found.status, found.access) == ("pro", "active", "full")
    assert await at.kit.allows("acme", "full")


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_stripe_customer_that_does_not_exist_is_not_linked(at: Shop, deleted: bool) -> None:
    """F-206."""
    if deleted:
        at.emulator.add_customer("cus_typo")
        await at.stripe_delete("/v1/customers/cus_typo")
    why = "has deleted this customer" if deleted else "has no such customer"
    with pytest.raises(CustomerError, match=f"'carol' is not linked .*cus_typo.*{why}.*--force"):
        await at.kit.customers.link("carol", "cus_typo")
    assert (await at.kit.customers.get("carol")).stripe_customer is None
    at.emulator.add_customer("cus_carol")
    assert (await at.kit.customers.link("carol", "cus_carol")).stripe_customer == "cus_carol"


async def test_in_an_outage_a_forced_link_queues_its_look(at: Shop) -> None:
    linked = await subscribed_at_stripe(at)
    at.emulator.fail_next("error", status=503, path="*", times=None)
    with pytest.raises(StripeUnavailableError, match=r"'acme' is not linked: .* try again, or .*--force"):
        await at.kit.customers.link("acme", linked)
    assert (await at.kit.customers.get("acme")).stripe_customer is None
    with pytest.raises(StripeUnavailableError, match="tried again in the background"):
        await at.kit.customers.link("acme", linked, force=True)
    assert (await at.kit.customers.get("acme")).stripe_customer == linked
    assert (await at.kit.webhooks.backlog()).entries == 1
    at.emulator.clear_faults()
    at.clock.advance(timedelta(minutes=10))
    await at.kit.webhooks.work_off()
    assert (await at.kit.customers.get("acme")).plan == "pro"
