"""F-227: a preview shows what the change costs, also where no webhook has told of the period at Stripe."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.shop import END, HALF, shop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)


async def renew(at: Shop) -> None:
    at.clock.set(END + 6 * DAY)
    at.emulator.advance()


async def renew_twice(at: Shop) -> None:
    at.clock.set(END + 40 * DAY)
    at.emulator.advance()


def change(**params: str) -> Callable[[Shop], Awaitable[None]]:
    async def act(at: Shop) -> None:
        at.clock.set(HALF)
        (begun,) = await at.stripe_list("/v1/subscriptions")
        await at.stripe_change(f"/v1/subscriptions/{begun['id']}", **params)
        at.clock.advance(DAY)

    return act


MOVES: Final[Mapping[str, Callable[[Shop], Awaitable[None]]]] = {
    "renewed": renew,
    "renewed twice": renew_twice,
    "begun anew": change(**{"billing_cycle_anchor[type]": "now"}),
    "begun anew without a credit": change(**{"billing_cycle_anchor[type]": "now"}, proration_behavior="none"),
    "given a trial": change(trial_end=str(int((HALF + 9 * DAY).timestamp()))),
}


@pytest.mark.parametrize("move", MOVES)
async def test_a_preview_is_what_is_charged_after_a_late_webhook(store_url: str, move: str) -> None:
    async with shop(store_url) as at:
        await at.subscribed(plan="team")
        await MOVES[move](at)
        before = len(await at.invoices())
        preview = (await at.kit.subscriptions.preview("acme", plan="pro")).proration
        changed = await at.kit.subscriptions.change_plan("acme", "pro")
        assert changed.proration == preview
        now_s = int(at.clock.now().timestamp())
        prorated = [
            line["amount"]
            for invoice in (await at.invoices())[before:]
            for line in invoice["lines"]["data"]
            if line["period"]["start"] == now_s
        ]
        assert sum(prorated) == preview.net_cents
        assert preview.net_cents > 0 or move == "given a trial"
