"""Schedules with phases of their own: a subscription that begins with the first of them, now or later."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
import stripe

from drivers.emulated_shop import DAY, MAY, SECOND, amounts, invoice_of, items_of

if TYPE_CHECKING:
    from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

LATEST: Final = ["latest_invoice"]
MONTH: Final = timedelta(days=30)  # April.


def phase(price: str, **more: Any) -> dict[str, Any]:
    return {"items": [{"price": price}], **more}


async def schedule(client: stripe.StripeClient, *phases: Any, **params: Any) -> stripe.SubscriptionSchedule:
    wanted: Any = {"customer": "cus_1", "phases": list(phases), **params}
    return await client.v1.subscription_schedules.create_async(wanted)


async def latest(client: stripe.StripeClient, made: stripe.SubscriptionSchedule) -> stripe.Subscription:
    assert isinstance(made.subscription, str)
    return await client.v1.subscriptions.retrieve_async(made.subscription, {"expand": LATEST})


async def test_its_phases_follow_each_other(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/subscription-schedules."""
    first = phase("price_10", duration={"interval": "month", "interval_count": 1})
    made = await schedule(client, first, phase("price_20"), end_behavior="cancel")
    assert (made.phases[0].start_date, made.phases[0].end_date) == (SECOND, MAY)
    assert invoice_of(await latest(client, made)).status == "draft"
    clock.advance(timedelta(hours=1))
    assert invoice_of(await latest(client, made)).status == "paid"
    clock.advance(MONTH)
    found = await latest(client, made)
    assert [item.price.id for item in items_of(found)] == ["price_20"]
    assert amounts(invoice_of(found)) == [2000]
    clock.advance(timedelta(days=31))
    assert (await latest(client, made)).status == "canceled"
    ended = await client.v1.subscription_schedules.retrieve_async(made.id)
    assert ended.status == "completed"


async def test_one_that_starts_later_has_no_subscription_until_then(
    client: stripe.StripeClient, clock: Clock
) -> None:
    """https://docs.stripe.com/api/subscription_schedules/object#subscription_schedule_object-status."""
    made = await schedule(client, phase("price_10"), start_date=SECOND + 3 * DAY)
    assert (made.status, made.subscription, made.current_phase) == ("not_started", None, None)
    assert (await client.v1.subscriptions.list_async()).data == []
    clock.advance(timedelta(days=2))
    assert (await client.v1.subscription_schedules.retrieve_async(made.id)).status == "not_started"
    clock.advance(timedelta(days=5))
    begun = await client.v1.subscription_schedules.retrieve_async(made.id)
    found = await latest(client, begun)
    assert (begun.status, found.created, found.billing_cycle_anchor) == (
        "active",
        SECOND + 3 * DAY,
        SECOND + 3 * DAY,
    )
    assert invoice_of(found).status == "paid"


async def test_a_first_phase_may_be_a_trial(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create#create_subscription_schedule-phases-trial_end."""
    made = await schedule(client, phase("price_10", trial_end=SECOND + 7 * DAY))
    found = await latest(client, made)
    assert (found.status, found.trial_end) == ("trialing", SECOND + 7 * DAY)
    assert amounts(invoice_of(found)) == [0]


async def test_one_that_has_not_begun_can_be_canceled(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscription_schedules/cancel."""
    made = await schedule(client, phase("price_10"), start_date=MAY)
    canceled = await client.v1.subscription_schedules.cancel_async(made.id)
    assert (canceled.status, canceled.canceled_at) == ("canceled", SECOND)
    clock.advance(MONTH)
    assert (await client.v1.subscriptions.list_async({"status": "all"})).data == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"customer": "cus_none"}, "No such customer: 'cus_none'"),
        ({"phases": []}, "Missing required param: phases"),
        ({"start_date": SECOND - DAY}, "in the past, which backdates a subscription, is not emulated"),
        ({"phases": [phase("price_none")]}, "No such price: 'price_none'"),
        ({"phases": [phase("price_10", end_date=SECOND - 1)]}, "must be in the future and after its start"),
        ({"default_settings": {"automatic_tax": {"enabled": True}}}, "Stripe Tax has not been activated"),
    ],
)
async def test_what_a_schedule_cannot_be(client: stripe.StripeClient, params: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create; nothing is made of what is refused."""
    wanted: Any = {"customer": "cus_1", "phases": [phase("price_10")], **params}
    with pytest.raises(stripe.InvalidRequestError, match=message):
        await client.v1.subscription_schedules.create_async(wanted)
    assert (await client.v1.subscription_schedules.list_async()).data == []
