"""What Stripe refuses of any call: two cursors, long metadata, a price twice, unknown API versions."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from drivers.emulated_shop import refusal, subscribe

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
