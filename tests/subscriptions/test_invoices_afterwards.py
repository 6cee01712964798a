"""Invoices that change after they were paid: access follows the subscription, and a person is told once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.webhooks import hooked

if TYPE_CHECKING:
    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio

DISPUTE: dict[str, object] = {
    "id": "dp_1",
    "object": "dispute",
    "amount": 1000,
    "charge": "ch_1",
    "currency": "usd",
    "payment_intent": "pi_1",
    "reason": "fraudulent",
    "status": "needs_response",
}


async def paying(at: Hooked) -> None:
    """Acme has paid for ``pro``."""
    at.customer()
    await at.subscribe()
    await at.settle()


def disputes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is disputed" in record.getMessage()]


@pytest.mark.parametrize("way", ["webhook", "sweep"])
async def test_a_dispute_is_told_once_and_changes_nothing(
    store_url: str, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    async with hooked(store_url) as at:
        await paying(at)
        before = await at.state()
        at.emulator.emit("charge.dispute.created", DISPUTE)
        if way == "webhook":
            await at.settle()
        for _ in range(2):
            await at.kit.webhooks.sweep()
            await at.settle()
        (told,) = disputes(caplog)
        assert told == (
            "a payment of USD 10.00 is disputed (dp_1): the subscription goes on until you end it; answer the"
            " dispute in Stripe's dashboard"
        )
        assert await at.state() == before
        assert (await at.kit.webhooks.backlog()).alarms == {"charge.dispute.created": 1}
