"""``kit.stripe.sync`` makes the objects of the plans file at Stripe, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.plans import plans_text
from meterkit import MeterKit, SettingsError
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from meterkit import StripeSync

pytestmark = pytest.mark.anyio

CATALOG = loads(plans_text("stripe_account"))


def actions(done: StripeSync) -> list[tuple[str, str]]:
    return [(line.what, line.action) for line in done.lines]


async def test_a_sync_plans_then_makes_each_object_once() -> None:
    async with StripeEmulator(clock=Clock()).serve() as url:
        kit = MeterKit(CATALOG, redis_url="memory://", stripe_api_key="sk_test_1", stripe_api_base=url)
        planned = await kit.stripe.sync(dry_run=True)
        assert actions(planned) == [("meter", "to make"), ("product", "to make"), ("price", "to make")]
        made = await kit.stripe.sync()
        assert actions(made) == [("meter", "made"), ("product", "made"), ("price", "made")]
        again = await kit.stripe.sync()
        assert actions(again) == [("meter", "is there"), ("product", "is there"), ("price", "is there")]
        assert [line.id for line in again.lines] == [line.id for line in made.lines]
        await kit.stop()


async def test_without_a_key_a_sync_says_which_setting_is_missing() -> None:
    kit = MeterKit(CATALOG, redis_url="memory://")
    with pytest.raises(SettingsError, match="METERKIT_STRIPE_API_KEY"):
        await kit.stripe.sync()
