"""Setup intents of the emulator, asked for with the official SDK."""

from __future__ import annotations

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import item_of, refusal, shop, subscribe

pytestmark = pytest.mark.anyio

CARD = "pm_card_authenticationRequiredOnSetup"


async def test_a_card_set_up_once_pays_off_session() -> None:
    """https://docs.stripe.com/testing#regulatory-cards."""
    emulator, _ = shop()
    async with account(emulator) as client:
        begun = await subscribe(client)
        card = emulator.add_payment_method("cus_1", CARD)
        change = {
            "items": [{"id": item_of(begun).id, "price": "price_20"}],
            "payment_behavior": "error_if_incomplete",
            "proration_behavior": "always_invoice",
            "off_session": True,
        }
        error = await refusal(client, begun.id, **change)
        assert error.code == "subscription_payment_intent_requires_action"
        intent = await client.v1.setup_intents.create_async(
            {"customer": "cus_1", "payment_method": card, "usage": "off_session"}
        )
        assert (intent.status, intent.payment_method) == ("requires_confirmation", card)
        assert intent.client_secret is not None
        emulator.confirm_setup(intent.client_secret)
        assert (await client.v1.setup_intents.retrieve_async(intent.id)).status == "succeeded"
        on_session = await refusal(client, begun.id, **{**change, "off_session": False})
        assert on_session.code == "subscription_payment_intent_requires_action"
        changed = await client.v1.subscriptions.update_async(begun.id, change)  # type: ignore[arg-type]
        assert item_of(changed).price.id == "price_20"


async def test_a_setup_intent_that_has_ended_is_not_confirmed_again() -> None:
    emulator, _ = shop()
    async with account(emulator) as client:
        intent = await client.v1.setup_intents.create_async({"customer": "cus_1"})
        assert intent.status == "requires_payment_method"
        assert intent.client_secret is not None
        with pytest.raises(ValueError, match="no payment method"):
            emulator.confirm_setup(intent.client_secret)
        emulator.confirm_setup(intent.client_secret, card=CARD)
        with pytest.raises(ValueError, match="is succeeded"):
            emulator.confirm_setup(intent.client_secret, card=CARD)
        with pytest.raises(stripe.InvalidRequestError, match="No such"):
            await client.v1.setup_intents.retrieve_async("seti_other")
