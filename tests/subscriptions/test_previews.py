"""F-227: a preview shows what the change costs, also where no webhook has told of the period at Stripe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.shop import CATALOG, END, HALF, START, shop
from meterkit.decisions.subscription import SubscriptionState
from meterkit.subscriptions.proration import Terms, cost_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Literal

    from drivers.shop import Shop
    from meterkit.subscriptions.proration import Proration

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


def test_a_renewal_that_stripe_has_not_made_yet_is_reckoned_with() -> None:
    known = SubscriptionState(
        id="sub_1", status="active", plan="team", start_ms=ms(START), end_ms=ms(END), anchor_ms=ms(START)
    )
    terms = [Terms(plan=CATALOG.plans[name], seats=0) for name in ("team", "pro")]

    def cost(now: datetime, when: Literal["now", "period_end"]) -> Proration:
        return cost_of(known, *terms, when=when, seat_meter=None, currency="usd", now_ms=ms(now))

    middle = END + timedelta(days=15, hours=12)
    assert (cost(middle, "now").credit_cents, cost(middle, "now").charge_cents) == (750, 1450)
    assert cost(middle, "period_end").effective_at == datetime(2031, 8, 1, tzinfo=UTC)
    assert cost(HALF, "period_end").effective_at == END


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
