"""A downgrade at the end of a period: usage on both sides is billed once, and nothing is prorated."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, shop
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from subscriptions.looks import synced

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
CATALOG: Final = loads(plans_text("downgrades"))


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
    async with shop(store_url, catalog=CATALOG, selling=StripeEmulator.add_plans) as at:
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
        (10, 3, 5, 1500),  # All were included: none is bought.
    ],
)
async def test_a_downgrade_keeps_seats_and_shows_the_next_cost(
    at: Shop, seats: int, in_use: int, after: int, cents: int
) -> None:
    """F-22d: included seats became bought ones, and the preview said that nothing is due."""
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
    found = await synced(at)
    assert (found.plan, found.seats) == ("team", after)
