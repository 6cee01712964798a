"""Units that Stripe has are taken back there, by meter events of less than nothing: once, never below 0."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import NOW, desk

if TYPE_CHECKING:
    from drivers.delivery import Desk
    from meterkit import Corrected

pytestmark = pytest.mark.anyio


async def correct(at: Desk, quantity: int, *, meter: str = "tokens", id_: str = "t-1") -> Corrected:
    (found,) = await at.kit.correct("acme", {meter: quantity}, reason="a loop", correction_id=id_)
    parts = (found.taken_back, found.granted_next, found.by_hand, found.never_billed, found.beyond)
    assert found.asked == sum(parts) == quantity
    assert found.sent_back <= found.taken_back == found.overage + found.included
    return found


async def places(at: Desk, meter: str = "tokens") -> dict[str, int]:
    """Where what is reported is, zeros left out: it adds up to what was recorded of it."""
    found: Any = (await at.kit.usage("acme"))["meters"][meter]
    names = ("pending", "queued", "leased", "parked", "delivered", "dead")
    reported = found["overage"] if meter == "tokens" else found["recorded"]
    assert sum(found[name] for name in names) == reported
    return {name: found[name] for name in names if found[name]}


async def deliver(at: Desk, quantity: int = 130, meter: str = "tokens") -> None:
    await at.link("acme")
    await at.kit.record("acme", meter, quantity)
    assert (await at.flush(everything=True)).is_complete


@pytest.mark.parametrize("transport", ["v1", "v2-stream"])
async def test_i6_delivered_units_are_taken_back_in_their_period(store_url: str, transport: str) -> None:
    async with desk(store_url, stripe_transport=transport) as at:
        await deliver(at)
        found = await correct(at, 20)
        assert (found.taken_back, found.overage, found.sent_back) == (20, 20, 20)
        assert await places(at) == {"delivered": 30, "queued": -20}
        (intent,) = await at.kit.outbox.list()
        assert (intent.quantity, intent.minute) == (-20, NOW.replace(second=0) + timedelta(minutes=1))
        assert (await at.flush(everything=True)).is_complete
        assert (await places(at), at.accepted("acme", "ai_tokens")) == ({"delivered": 10}, 10)
        assert [int(event.value) for event in at.emulator.events] == [30, -20]
        (line,) = await at.kit.reconcile("acme")
        assert (line.recorded, line.delivered, line.confirmed, line.agrees) == (110, 10, 10, True)
        # What comes after it has a minute of its own.
        await at.kit.record("acme", "tokens", 5)
        await at.flush(everything=True)
        assert len({event.timestamp for event in at.emulator.events}) == 3


async def test_i6_negative_events_go_in_a_batch_of_their_own(
    store_url: str,
) -> None:
    # A batch with a value below 0 in it is taken, and Stripe counts nothing of that one.
    async with desk(store_url, stripe_transport="v2-stream", shards=1) as at:
        await at.link("zeta")
        await deliver(at)
        await correct(at, 20)
        await at.kit.record("zeta", "tokens", 105)
        await at.seal()
        assert (await at.flush(everything=True)).is_complete
        assert (await places(at), at.accepted("acme", "ai_tokens")) == ({"delivered": 10}, 10)
        assert at.accepted("zeta", "ai_tokens") == 5


@pytest.mark.each_store
async def test_more_than_stripe_has_is_never_taken_back_there(store_url: str) -> None:
    async with desk(store_url) as at:
        await deliver(at)
        first, second = await correct(at, 25), await correct(at, 40, id_="t-2")
        again = await correct(at, 40, id_="t-2")
        assert (first.sent_back, second.sent_back, second.included) == (25, 5, 35)
        assert (again.sent_back, again.is_repeated) == (5, True)
        await at.flush(everything=True)
        assert (await places(at), at.accepted("acme", "ai_tokens")) == ({}, 0)
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["recorded"] == 65


@pytest.mark.parametrize(("when", "place"), [("after", "delivered"), ("before", "parked")])
async def test_i6_a_doubtful_negative_event_is_compared_not_resent(
    store_url: str, when: Any, place: str
) -> None:
    async with desk(store_url) as at:
        await deliver(at)
        await correct(at, 20)
        at.emulator.fail_next("drop", when=when)
        await at.flush(everything=True, timeout_s=0)
        for hours in (24, 3, 1):
            at.clock.advance(timedelta(hours=hours))
            await at.flush(everything=True, timeout_s=0)
        found = {"delivered": 10} if place == "delivered" else {"delivered": 30, "parked": -20}
        assert await places(at) == found
        assert at.accepted("acme", "ai_tokens") == (10 if when == "after" else 30)
        whys = [one.why for one in await at.kit.outbox.list()]
        assert all("it takes units back" in why for why in whys)
        assert len(whys) == (place == "parked")


async def test_a_negative_event_goes_to_the_customer_of_delivery(store_url: str) -> None:
    async with desk(store_url) as at:
        await deliver(at)
        await correct(at, 20)
        await at.kit.customers.unlink("acme")
        at.emulator.add_customer("cus_other")
        await at.kit.customers.link("acme", "cus_other", force=True)
        await at.flush(everything=True)
        assert at.accepted("acme", "ai_tokens") == 10
        assert int(at.emulator.accepted("cus_other", "ai_tokens")) == 0
        # And from now on nobody can tell what which of them has.
        assert (await correct(at, 10, id_="t-2")).granted_next == 10
