"""Tax of the emulated account: a flat rate on top, seen through the official SDK."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from drivers.emulated_account import account
from drivers.emulated_shop import invoice_of, refusal, shop, subscribe

if TYPE_CHECKING:
    import stripe

    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

TAXED: Any = {"automatic_tax": {"enabled": True}}


def taxed_shop(**options: Any) -> tuple[StripeEmulator, Clock]:
    return shop(tax_percent=Decimal("8.25"), **options)


async def settle_down(client: stripe.StripeClient) -> None:
    await client.v1.customers.update_async("cus_1", {"address": {"country": "US", "state": "TX"}})


async def test_tax_can_be_turned_on_and_off() -> None:
    emulator, clock = taxed_shop()
    async with account(emulator) as client:
        made = await subscribe(client)
        assert (invoice_of(made).total, invoice_of(made).total_taxes) == (1000, [])
        error = await refusal(client, made.id, **TAXED)
        assert (error.code, error.http_status) == ("customer_tax_location_invalid", 400)
        await settle_down(client)
        on = await client.v1.subscriptions.update_async(made.id, TAXED)
        assert on.automatic_tax.enabled is True
        assert (await client.v1.invoices.create_preview_async({"subscription": made.id})).total == 1083
        clock.advance(timedelta(days=30, hours=2))
        assert (await client.v1.invoices.list_async({"limit": 1})).data[0].total == 1083
        off: Any = {"automatic_tax": {"enabled": False}}
        await client.v1.subscriptions.update_async(made.id, off)
        assert (await client.v1.invoices.create_preview_async({"subscription": made.id})).total == 1000
