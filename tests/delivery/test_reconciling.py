"""Our books against Stripe's, for each customer, meter and period, to the unit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import NOW, PLANS, desk, kit_for
from meterkit import MeterkitError, StripeError
from meterkit.catalog import loads

if TYPE_CHECKING:
    from drivers.delivery import Desk
    from meterkit import Reconciled

pytestmark = pytest.mark.anyio

JULY = datetime(2031, 7, 1, tzinfo=UTC)
RENAMED = loads(PLANS.replace("requests:", "calls:").replace("{requests: 1}", "{calls: 1}"))


async def of_acme(at: Desk, *, repair: bool = False) -> Reconciled:
    """What is said of acme's requests."""
    (found,) = await at.kit.reconcile("acme", repair=repair)
    return found


async def test_what_was_delivered_is_what_stripe_has_counted(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme", "zeta")
        await at.kit.record("acme", "requests", 7)
        await at.kit.record("acme", "tokens", 130)
        await at.kit.record("zeta", "requests", 5)
        await at.kit.record("nobody", "requests", 2)
        await at.flush(everything=True)
        await at.kit.record("acme", "requests", 4)
        found = {(one.customer, one.meter): one for one in await at.kit.reconcile()}
    assert set(found) == {
        ("acme", "requests"),
        ("acme", "tokens"),
        ("zeta", "requests"),
        ("nobody", "requests"),
    }
    one = found["acme", "requests"]
    assert (one.recorded, one.delivered, one.confirmed, one.difference, one.waiting) == (11, 7, 7, 0, 4)
    assert (one.stripe_customer, one.event_name, one.is_closed) == ("cus_acme", "api_requests", False)
    assert (one.agrees, one.advice) == (True, "")
    tokens = found["acme", "tokens"]
    assert (tokens.recorded, tokens.delivered, tokens.confirmed) == (130, 30, 30)
    # Who is not linked has nothing at Stripe, and nothing was delivered.
    assert (found["nobody", "requests"].confirmed, found["nobody", "requests"].agrees) == (None, True)


async def test_a_period_that_is_over_has_its_close_report(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        at.clock.set(JULY + timedelta(minutes=10))
        await at.kit.record("acme", "requests", 3)
        await at.kit.record("acme", "requests", 2, occurred_at=NOW)
        await at.flush(everything=True)
        (june,) = await at.kit.reconcile("acme", at=NOW)
        july = await of_acme(at)
    assert (june.recorded, june.delivered, june.confirmed, june.late) == (7, 7, 7, 2)
    assert (june.period_start, june.period_end, june.is_closed) == (
        NOW.replace(day=1, hour=0, second=0),
        JULY,
        True,
    )
    assert (july.recorded, july.delivered, july.confirmed, july.late, july.agrees) == (5, 5, 5, 0, True)


async def test_accepted_uncounted_units_are_a_difference(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        at.emulator.fail_next("lose")
        await at.flush(everything=True)
        found = await of_acme(at)
    assert (found.delivered, found.confirmed, found.difference, found.agrees) == (7, 0, -7, False)
    assert "counted 7 less than it accepted" in found.advice


async def test_a_meter_of_which_all_was_taken_back_is_compared(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 1)
        await at.flush(everything=True)
        await at.kit.correct("acme", {"requests": 1}, reason="a loop", correction_id="c-1")
        at.emulator.fail_next("lose")
        await at.flush(everything=True)
        found = await of_acme(at)
        assert (found.recorded, found.delivered, found.confirmed, found.difference) == (0, 0, 1, 1)
        assert (found.agrees, "1 were taken back there" in found.advice) == (False, True)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_i6_deliveries_under_a_former_name_are_compared(store_url: str, is_lost: bool) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        if is_lost:
            at.emulator.fail_next("lose")
        await at.flush(everything=True)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=RENAMED) as renamed:
            await renamed.record("acme", "calls", 4)
            await renamed.flush(everything=True)
            found = {one.meter: one for one in await renamed.reconcile("acme")}
        assert {name: (one.delivered, one.recorded) for name, one in found.items()} == {
            "calls": (4, 4),
            "requests": (6, 6),
        }
        assert {(one.confirmed, one.difference, one.agrees) for one in found.values()} == {
            (4, -6, False) if is_lost else (10, 0, True)
        }


async def test_a_repair_delivers_parked_units_that_stripe_has(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        at.emulator.fail_next("error", status=500, when="after")
        await at.flush(everything=True, timeout_s=0)
        (intent,) = await at.kit.outbox.list()
        await at.kit.outbox.park(intent.identifier)  # By hand: nothing compares it by itself.
        at.clock.advance(timedelta(hours=30))
        found = await of_acme(at)
        assert (found.delivered, found.confirmed, found.difference, found.parked) == (0, 7, 7, 7)
        assert (found.agrees, "7 are parked, and Stripe may have 7 of these" in found.advice) == (False, True)
        assert (await of_acme(at)).parked == 7  # Looking changes nothing.
        assert (await of_acme(at, repair=True)).parked == 7
        at.clock.advance(timedelta(minutes=10))
        found = await of_acme(at, repair=True)
        assert (found.delivered, found.confirmed, found.parked, found.agrees) == (7, 7, 0, True)


async def test_somebody_elses_events_and_another_link_are_told_apart(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        await at.flush(everything=True)
        at.emulator.add_customer("cus_other")
        await at.kit.customers.unlink("acme")
        await at.kit.customers.link("acme", "cus_other", force=True)
        found = await of_acme(at)
        assert (found.difference, "the link has changed" in found.advice) == (-7, True)
        await at.kit.customers.unlink("acme")
        found = await of_acme(at)
        assert (found.confirmed, found.agrees) == (None, False)
        assert "not linked any more" in found.advice


async def test_without_stripe_there_is_nothing_to_compare_with(store_url: str) -> None:
    async with desk(store_url) as at:
        at.emulator.fail_next("error", status=401, path="/v1/billing/meters", times=None)
        with pytest.raises(StripeError):
            await at.kit.reconcile()
        with pytest.raises(MeterkitError, match="naive"):
            await at.kit.reconcile(at=datetime(2031, 6, 1))  # noqa: DTZ001 - what is refused
