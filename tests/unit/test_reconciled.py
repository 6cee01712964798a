"""Books against Stripe's: what waits and is parked, and which subscription's invoice has a period."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from drivers.kept_intents import NOW_MS, keep, kit_alone, subscription
from drivers.stripe_objects import ObjectsAtStripe
from meterkit.decisions.customer_state import CustomerState
from meterkit.delivery.invoices import Invoicing, invoicing_of
from meterkit.delivery.reconciling import Reconciler
from meterkit.errors import StripeError

if TYPE_CHECKING:
    from meterkit import MeterKit
    from meterkit.decisions.subscription import SubscriptionState

pytestmark = pytest.mark.anyio

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
JUNE_MS: Final = int(datetime(2031, 6, 1, tzinfo=UTC).timestamp() * 1000)
JULY_MS: Final = int(datetime(2031, 7, 1, tzinfo=UTC).timestamp() * 1000)

subscribed: Final = partial(subscription, id="sub_new")


async def test_what_waits_for_a_link_is_on_its_way() -> None:
    async with kit_alone() as kit:
        await kit.record("acme", "requests", 2)
        (found,) = await Reconciler(kit.store, lambda: ObjectsAtStripe({})).reconcile("acme")
        assert (found.recorded, found.waiting, found.confirmed, found.advice) == (2, 2, None, "")


async def test_what_is_parked_is_compared_where_a_repair_is_asked_for() -> None:
    async with kit_alone() as kit:
        await keep(kit, "one", 5, first=NOW_MS - 30 * HOUR_MS)
        reconciler = Reconciler(kit.store, lambda: ObjectsAtStripe({}))
        for repair in (False, True):
            await reconciler.reconcile("acme", repair=repair)
            (intent,) = await kit.outbox.list()
            # Stripe has no such meter: that is told once it is compared.
            assert (intent.state, "no meter with its event name" in intent.why) == ("parked", repair)


async def invoicing(
    kit: MeterKit, stripe: ObjectsAtStripe, known: SubscriptionState | None, at_ms: int
) -> Invoicing | None:
    (usage,) = await kit.store.usage_of_many(["acme"], at_ms=at_ms)
    state = CustomerState(stripe_customer="cus_acme", subscription=known)
    return await invoicing_of(kit.store, stripe, usage, state)


async def formerly(kit: MeterKit, *subscriptions: str) -> None:
    """Have acme have had subscriptions before."""
    admin, key = await kit.store.admin(), kit.store.keys.customer("acme").history
    for name in subscriptions:
        entry = json.dumps(["subscription", f"{NOW_MS - HOUR_MS}", name, "another one", "api"])
        await admin.ask(admin.client.rpush(key, entry))


NEW: Final = subscribed(created_ms=NOW_MS - HOUR_MS, start_ms=NOW_MS - HOUR_MS)
"""It began within the period of which usage is compared."""


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, (JULY_MS, False)),
        ({"start_date": JUNE_MS // 1000}, (JULY_MS, False)),
        ({"start_date": JUNE_MS // 1000 + 1}, None),
        ({"ended_at": NOW_MS // 1000}, (NOW_MS // 1000 * 1000, True)),
        ({"ended_at": JULY_MS // 1000}, (JULY_MS, True)),
        ({"ended_at": JULY_MS // 1000 + 1}, (JULY_MS, False)),
        ({"ended_at": JUNE_MS // 1000}, None),
        ({"trial_end": JUNE_MS // 1000}, (JULY_MS, False)),
        ({"trial_end": JUNE_MS // 1000 + 1}, None),
    ],
)
async def test_the_invoice_of_an_earlier_subscription_has_what_was_used_under_it(
    shown: dict[str, int], expected: tuple[int, bool] | None
) -> None:
    async with kit_alone() as kit:
        await formerly(kit, "sub_old")
        stripe = ObjectsAtStripe({"/v1/subscriptions/sub_old": {"id": "sub_old", **shown}})
        found = await invoicing(kit, stripe, NEW, NOW_MS)
        assert found == (expected and Invoicing("sub_old", "pro", *expected))


async def test_of_subscriptions_the_latest_that_had_begun_and_that_stripe_shows_has_it() -> None:
    async with kit_alone() as kit:
        await formerly(kit, "sub_1", "sub_2", "sub_3", "sub_gone")
        stripe = ObjectsAtStripe({
            "/v1/subscriptions/sub_1": {"id": "sub_1"},
            "/v1/subscriptions/sub_2": {"id": "sub_2"},
            "/v1/subscriptions/sub_3": {"id": "sub_3", "start_date": NOW_MS // 1000 - 7_200},
        })  # fmt: skip
        found = await invoicing(kit, stripe, NEW, NOW_MS)
        assert (found and found.subscription, len(stripe.asked)) == ("sub_2", 3)
        stripe.shown["/v1/subscriptions/sub_gone"] = 500
        with pytest.raises(StripeError):
            await invoicing(kit, stripe, NEW, NOW_MS)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, None),
        (subscribed(), None),  # Its invoice is not made yet.
        (subscribed(start_ms=JUNE_MS - 30 * DAY_MS, end_ms=JUNE_MS + DAY_MS), (JUNE_MS + DAY_MS, False)),
        (subscribed(created_ms=JUNE_MS, status="canceled", ended_at_ms=NOW_MS), (NOW_MS, True)),
        (
            subscribed(created_ms=JUNE_MS - 90 * DAY_MS, status="canceled", ended_at_ms=NOW_MS),
            (NOW_MS, True),
        ),
    ],
)
async def test_the_invoice_of_the_subscription_of_now(
    known: SubscriptionState | None, expected: tuple[int, bool] | None
) -> None:
    async with kit_alone() as kit:
        found = await invoicing(kit, ObjectsAtStripe({}), known, NOW_MS - DAY_MS)
        assert found == (expected and Invoicing("sub_new", "pro", *expected))


async def test_the_invoice_of_an_earlier_period_of_the_subscription_of_now() -> None:
    async with kit_alone() as kit:
        known = subscribed(created_ms=JUNE_MS - 90 * DAY_MS)
        found = await invoicing(kit, ObjectsAtStripe({}), known, JUNE_MS - DAY_MS)
        assert found == Invoicing("sub_new", "pro", JUNE_MS, is_last=False)
