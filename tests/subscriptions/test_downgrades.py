"""A downgrade at the end of a period: usage on both sides is billed once, and nothing is prorated."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import kit_for
from drivers.near_stripe import served
from drivers.plans import plans_text
from drivers.sampled import whole
from drivers.shop import END, HALF, START, Shop
from drivers.shop import shop as shop_with_seats
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
CATALOG: Final = loads(plans_text("downgrades"))


@asynccontextmanager
async def shop(store_url: str) -> AsyncGenerator[Shop]:
    clock = Clock(START)
    emulator = StripeEmulator(clock=clock)
    emulator.add_plans(CATALOG)
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=clock, catalog=CATALOG) as kit,
    ):
        yield Shop(kit=kit, emulator=emulator, clock=clock, url=url)


async def lines_of(at: Shop) -> list[list[tuple[str, int, int]]]:
    """Of each invoice, the oldest first, the lines that are not empty: price, quantity, amount."""
    return [
        [
            (line["pricing"]["price_details"]["price"], line["quantity"], line["amount"])
            for line in invoice["lines"]["data"]
            if line["quantity"]
        ]
        for invoice in await at.invoices()
    ]


async def test_a_downgrade_at_a_periods_end_bills_both_sides_once(store_url: str) -> None:
    """F-10b: the phase that removes a metered price was sent with ``proration_behavior: none``."""
    async with shop(store_url) as at:
        await at.subscribed(plan="pro")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 100)
        await at.kit.record("acme", "words", 10)
        await at.kit.flush(everything=True)
        await at.kit.subscriptions.change_plan("acme", "team")
        at.clock.set(END - DAY)
        await at.kit.record("acme", "tokens", 11)
        await at.kit.record("acme", "words", 7)
        await at.kit.flush(everything=True)
        at.clock.set(END + DAY)
        await at.kit.subscriptions.sync("acme")
        await at.kit.record("acme", "tokens", 1_000)
        await at.kit.flush(everything=True)
        at.clock.set(END + 45 * DAY)
        assert await lines_of(at) == [
            [("price_pro", 1, 2900)],
            [
                ("price_team", 1, 1500),
                ("price_pro_tokens", 111, 222),
                ("price_pro_words", 17, 85),
            ],
            [("price_team", 1, 1500), ("price_team_tokens", 1_000, 3_000)],
        ]
        (schedule,) = await at.stripe_list("/v1/subscription_schedules")
        assert {phase["proration_behavior"] for phase in schedule["phases"]} == {"create_prorations"}


MONTHLY: Final = " From the next period on it costs USD {:.2f} a month, before usage."


@pytest.mark.parametrize(
    ("seats", "in_use", "after", "cents"),
    [
        (11, 3, 6, 1500 + 700),  # One was bought, and one stays so.
        (11, 8, 8, 1500 + 3 * 700),  # Those in use are paid for.
        whole(11, 11, 11, 1500 + 6 * 700),
        (10, 3, 5, 1500),  # All were included: none is bought.
        whole(10, 8, 5, 1500),
        whole(17, 0, 12, 1500 + 7 * 700),
    ],
)
async def test_a_downgrade_keeps_seats_and_shows_the_next_cost(
    store_url: str, seats: int, in_use: int, after: int, cents: int
) -> None:
    """F-22d: included seats became bought ones, and the preview said that nothing is due."""
    async with shop_with_seats(store_url) as at:
        begun = await at.subscribed(plan="pro", seats=seats)
        await at.kit.gauges.set("acme", "seats", in_use)
        at.clock.set(HALF)
        preview = (await at.kit.subscriptions.preview("acme", plan="team")).proration
        assert (preview.net_cents, preview.effective_at) == (0, END)
        assert preview.description.endswith("due for this one." + MONTHLY.format(cents / 100))
        changed = await at.kit.subscriptions.change_plan("acme", "team")
        assert changed.proration == preview
        assert (await at.kit.subscriptions.preview("acme", plan="team")).proration == preview
        assert changed.subscription.pending_change is not None
        assert changed.subscription.pending_change.seats == after
        at.clock.set(END + DAY)
        at.emulator.advance()
        assert (await at.invoices())[-1]["total"] == cents
        assert (await at.items(begun.id)).get("price_team_seat", 0) == after - 5
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert (found.plan, found.seats) == ("team", after)


async def test_each_preview_says_what_the_next_period_costs(store_url: str) -> None:
    async with shop_with_seats(store_url) as at:
        await at.subscribed(plan="team", seats=6)
        preview = at.kit.subscriptions.preview
        assert (await preview("acme")).proration.description.endswith(MONTHLY.format(22))
        assert (await preview("acme", plan="pro")).proration.description.endswith(MONTHLY.format(29))
        assert (await preview("acme", seats=8)).proration.description.endswith(MONTHLY.format(36))
        await at.kit.subscriptions.change_plan("acme", "pro")
        await at.kit.subscriptions.set_seats("acme", 12)
        await at.kit.gauges.set("acme", "seats", 9)
        await at.kit.subscriptions.change_plan("acme", "team")
        # The next period has the scheduled plan, until the customer takes the change back.
        assert (await preview("acme")).proration.description.endswith(MONTHLY.format(15 + 4 * 7))
        more = (await preview("acme", seats=16)).proration
        assert more.description.endswith(MONTHLY.format(15 + 6 * 7))
        assert (await at.kit.subscriptions.set_seats("acme", 16)).proration.description == more.description
        assert (await preview("acme", plan="pro")).proration.description.endswith(MONTHLY.format(29 + 6 * 9))
        await at.kit.subscriptions.cancel("acme")
        ending = (await preview("acme", seats=17)).proration.description
        assert "next period" not in ending
