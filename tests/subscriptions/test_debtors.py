"""Who does not pay gets no more than the dunning policy gives, however Stripe's invoices go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.webhooks import DAY, NOW, hooked, shop
from meterkit.testing import Clock

if TYPE_CHECKING:
    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio


async def days(at: Hooked, count: int) -> list[str]:
    """The access of each day from now on, with all webhooks worked off."""
    found: list[str] = []
    for _ in range(count):
        at.emulator.advance()
        await at.settle()
        found.append((await at.kit.customers.get("acme")).access)
        at.clock.advance(DAY)
    return found


async def test_the_invoice_of_another_period_begins_no_grace_anew(store_url: str) -> None:
    """Stripe can be set to leave a subscription past due, and then invoices it month after month."""
    clock = Clock(NOW)
    async with hooked(store_url, clock=clock, emulator=shop(clock, after_retries="past_due")) as at:
        at.customer()
        await at.subscribe()
        await at.settle()
        at.emulator.fail_payments("cus_acme")
        at.clock.advance(30 * DAY)  # 10 June to 10 July.
        found = await days(at, 100)
        first = found.index("grace")
        assert found[first:] == ["grace"] * 7 + ["restricted"] * 7 + ["suspended"] * (100 - first - 14)
        at.emulator.mend_payments("cus_acme")
        assert (await days(at, 40))[-1] == "full"
        # Once it was paid for a while, the next failure is the first again.
        at.emulator.fail_payments("cus_acme")
        found = await days(at, 40)
        first = found.index("grace")
        assert found[first : first + 8] == ["grace"] * 7 + ["restricted"]
