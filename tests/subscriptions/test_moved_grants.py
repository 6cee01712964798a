"""F-225: a recurring grant is given once for each period as it came to be, and ends with it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.period_ends import MAY, paying
from drivers.plans import plans_text

if TYPE_CHECKING:
    from drivers.period_ends import Ending

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
PLANS: Final = plans_text("moved_grants")
PRICES: Final = ("price_pro", "price_pro_requests")
TRIAL: Final = {"trial_end": int((MAY + 14 * DAY).timestamp())}
ANEW: Final = {"billing_cycle_anchor": {"type": "now"}}


async def change(at: Ending, **params: Any) -> None:
    """Change the subscription in Stripe's Dashboard, and take its webhooks."""
    (found,) = (await at.found.client.v1.subscriptions.list_async()).data
    asked: Any = params
    await at.found.client.v1.subscriptions.update_async(found["id"], asked)
    await at.found.settle()


async def balance(at: Ending) -> int:
    return (await at.kit.usage("acme"))["balance"]["ai"]


async def given(at: Ending) -> int:
    """Credits that were given in all, by the ledger, once they are on file."""
    await at.kit.record("acme", "tokens", 1)
    lines = await at.kit.grants.ledger("acme")
    return sum(line.quantity for line in lines if line.entry in {"grant", "adjustment"}) // 10**6


async def test_a_cycle_begun_anew_ends_the_grant_of_its_period(store_url: str) -> None:
    async with paying(store_url, PLANS, prices=PRICES) as at:
        at.go(MAY + 10 * DAY)
        await at.kit.record("acme", "tokens", 20)
        assert await balance(at) == 37
        await change(at, **ANEW)
        # Ten of 31 days pay for 19 credits. One more was used: the new period lacks it.
        assert await balance(at) == 57 - 1
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["used"] == 0
        assert await given(at) == 20 + 57 - 1


async def test_a_shorter_trial_ends_its_grant(store_url: str) -> None:
    async with paying(store_url, PLANS, prices=PRICES, begun=TRIAL) as at:
        at.go(MAY + 5 * DAY)
        await at.kit.record("acme", "tokens", 20)
        await change(at, trial_end=int((MAY + 7 * DAY).timestamp()))
        assert await balance(at) == 37
        at.go(MAY + 8 * DAY)
        assert await balance(at) == 50 + 7 + 7


async def test_a_trial_extended_after_a_late_webhook_grants_once(store_url: str) -> None:
    async with paying(store_url, PLANS, prices=PRICES, begun=TRIAL) as at:
        at.go(MAY + 13 * DAY)
        (found,) = (await at.found.client.v1.subscriptions.list_async()).data
        asked: Any = {"trial_end": int((MAY + 28 * DAY).timestamp())}
        await at.found.client.v1.subscriptions.update_async(found["id"], asked)
        at.go(MAY + 15 * DAY)
        await at.kit.record("acme", "tokens", 20)  # By our clock the trial is over.
        before, left = await given(at), await balance(at)
        await at.found.settle()
        assert await balance(at) == left
        assert await given(at) == before
        at.go(MAY + 27 * DAY)
        assert await balance(at) == left - 1
