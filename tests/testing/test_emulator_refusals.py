"""What Stripe refuses of any call: two cursors, long metadata, a price twice, unknown API versions."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from drivers.emulated_shop import MAY, SECOND, refusal, subscribe

pytestmark = pytest.mark.anyio


async def test_two_cursors_are_refused(client: stripe.StripeClient) -> None:
    """https://github.com/stripe/stripe-python/issues/585."""
    both: Any = {"starting_after": "cus_1", "ending_before": "cus_1"}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.customers.list_async(both)
    assert caught.value.user_message == (
        "Received both starting_after and ending_before parameters. Please pass in only one."
    )
    assert (await client.v1.customers.list_async({"starting_after": "cus_1"})).data == []


@pytest.mark.parametrize(
    ("metadata", "said", "param"),
    [
        ({"k" * 41: "v"}, "Metadata keys can have up to 40 characters, but you passed in a key", "metadata"),
        ({"k": "v" * 501}, "Metadata values can have up to 500 characters, but you", "metadata[k]"),
        (
            {f"k{number}": "v" for number in range(51)},
            "Metadata can have up to 50 keys, but you've set 51",
            "metadata",
        ),
    ],
)
async def test_metadata_has_limits(
    client: stripe.StripeClient, metadata: dict[str, str], said: str, param: str
) -> None:
    """https://docs.stripe.com/metadata."""
    made = await subscribe(client)
    error = await refusal(client, made.id, metadata=metadata)
    assert error.user_message is not None
    assert error.user_message.startswith(said)
    assert (error.http_status, getattr(error, "param", None)) == (400, param)
    update: Any = {"name": "Other", "metadata": metadata}
    with pytest.raises(stripe.InvalidRequestError, match="Metadata"):
        await client.v1.customers.update_async("cus_1", update)
    assert (await client.v1.customers.retrieve_async("cus_1")).name == "Acme"


async def test_metadata_of_a_future_subscription_is_refused(client: stripe.StripeClient) -> None:
    wanted: Any = {
        "mode": "subscription",
        "success_url": "https://app.example/",
        "line_items": [{"price": "price_10", "quantity": 1}],
        "subscription_data": {"metadata": {"k": "v" * 501}},
    }
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.checkout.sessions.create_async(wanted)
    assert getattr(caught.value, "param", None) == "subscription_data[metadata][k]"


async def test_a_price_cannot_be_twice_in_a_subscription_or_a_phase(client: stripe.StripeClient) -> None:
    """https://github.com/stripe-archive/submigrate/issues/1."""
    twice = [{"price": "price_10", "quantity": 1}, {"price": "price_10", "quantity": 2}]
    said = "Cannot add multiple subscription items with the same plan: price_10"
    made = await subscribe(client)
    with pytest.raises(stripe.InvalidRequestError, match=said):
        await subscribe(client, "price_10", "price_10")
    error = await refusal(client, made.id, items=[{"price": "price_10"}])
    assert error.user_message == said
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    phases: Any = [{"start_date": SECOND, "end_date": MAY, "items": [twice[0]]}, {"items": twice}]
    with pytest.raises(stripe.InvalidRequestError, match=said) as caught:
        await client.v1.subscription_schedules.update_async(schedule.id, {"phases": phases})
    assert getattr(caught.value, "param", None) == "phases[1][items]"


@pytest.mark.parametrize("version", ["2025-09-30.acacia", "2026-10-28", ""])
async def test_versions_that_stripe_does_not_have_are_refused(
    client: stripe.StripeClient, version: str
) -> None:
    """https://github.com/beam-community/stripity-stripe/issues/606."""
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.customers.list_async({}, {"headers": {"Stripe-Version": version}})
    assert caught.value.user_message == f"Invalid Stripe API version: {version}"


@pytest.mark.parametrize("version", ["2020-08-27", "2025-02-24.acacia"])
async def test_versions_with_other_shapes_are_not_emulated(client: stripe.StripeClient, version: str) -> None:
    with pytest.raises(stripe.InvalidRequestError, match=r"older than 2025-03-31\.basil and not emulated"):
        await client.v1.customers.list_async({}, {"stripe_version": version})
