"""Recorded units are taken back: each class restored, never below zero, once an id, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.delivery import CATALOG, NOW, PLANS, Desk, desk
from drivers.subscribed_customer import fetched, subscription
from meterkit import Corrected, MeterKit, MeterkitError, QuantityError, StoreError, UnknownMeterError
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLACES = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
JUNE, JULY = datetime(2031, 6, 1, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)
PAID = loads(
    PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:").replace(
        "tokens:   {included: 100, overage: bill}",
        "tokens:   {included: 100, overage: {bill: {per: 10, amount_cents: 3}}}",
    )
)


async def correct(kit: MeterKit, quantity: int, *, id_: str = "t-1") -> Corrected:
    (found,) = await kit.correct("acme", {"tokens": quantity}, reason="a loop", correction_id=id_, by="ada")
    parts = (found.taken_back, found.granted_next, found.by_hand, found.never_billed, found.beyond)
    assert found.asked == sum(parts) == quantity
    classes = (found.overage, found.credited, found.granted, found.included)
    assert found.sent_back <= found.taken_back == sum(classes)
    return found


async def deliver(at: Desk, quantity: int = 130) -> None:
    await at.link("acme")
    await at.kit.record("acme", "tokens", quantity)
    assert (await at.flush(everything=True)).is_complete


async def link_another(at: Desk) -> None:
    """Acme gets another Stripe customer: nothing is taken back from there any more."""
    at.emulator.add_customer("cus_other")
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("acme", "cus_other", force=True)


async def tokens(kit: MeterKit) -> Mapping[str, Any]:
    """What is kept of tokens; what is reported of them is somewhere, once."""
    found: Mapping[str, Any] = (await kit.usage("acme"))["meters"]["tokens"]
    assert found["overage"] == sum(found[place] for place in PLACES)
    return found


async def test_what_is_pending_is_taken_back_and_never_sent(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        asked = len(at.emulator.requests)
        found = await correct(at.kit, 50)
        assert len(at.emulator.requests) == asked
        assert (found.taken_back, found.overage, found.included, found.is_repeated) == (50, 30, 20, False)
        after = await tokens(at.kit)
        assert (after["recorded"], after["overage"], after["pending"]) == (80, 0, 0)
        assert (await at.flush(everything=True)).is_complete
        assert at.accepted("acme", "ai_tokens") == 0
        entry = (await at.kit.customers.history("acme"))[-1]
    assert (entry.kind, entry.before, entry.cause) == ("correction", "50 of tokens to be taken back", "ada")
    assert entry.after == "50 taken back, 0 sent to Stripe before, 0 never recorded: a loop"


async def test_corrections_go_back_by_class_and_refund_what_paid(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.grants.add("acme", {"tokens": 40}, grant_id="g")
        await at.kit.grants.add("acme", {"ai": 100}, grant_id="c")
        await at.kit.record("acme", "tokens", 100 + 40 + 50 + 7)
        assert (await at.kit.usage("acme"))["balance"]["ai"] == 0
        first = await correct(at.kit, 7 + 10)
        assert (first.overage, first.credited, first.granted, first.included) == (7, 10, 0, 0)
        assert (await at.kit.usage("acme"))["balance"]["ai"] == 20
        second = await correct(at.kit, 40 + 15, id_="t-2")
        assert (second.overage, second.credited, second.granted, second.included) == (0, 40, 15, 0)
        assert (await at.kit.usage("acme"))["balance"]["ai"] == 100
        assert (await tokens(at.kit))["granted"] == 40
        grants = await at.kit.grants.list("acme")
        assert sum(grant.remaining for grant in grants if grant.name == "tokens") == 15
        assert {grant.name for grant in grants} == {"tokens", "ai"}
        third = await correct(at.kit, 25 + 3, id_="t-3")
        assert (third.granted, third.included) == (25, 3)
        after = await tokens(at.kit)
        assert (after["recorded"], after["granted"], after["remaining"]) == (97, 40, "unlimited")
        # And it pays anew.
        await at.kit.record("acme", "tokens", 3 + 40 + 50)
        after = await tokens(at.kit)
        assert (after["overage"], after["recorded"]) == (0, 190)
        assert (await at.kit.usage("acme"))["balance"]["ai"] == 0
        # The ledger of each grant adds up to what it has left.
        sums = Counter[tuple[str, str]]()
        for line in await at.kit.grants.ledger("acme"):
            sums[line.grant_id, line.kind] += line.quantity
        for grant in await at.kit.grants.list("acme"):
            scale = 10**6 if grant.kind == "credit" else 1
            assert sums[grant.grant_id, grant.kind] == grant.remaining * scale


async def test_units_stripe_keeps_are_granted_in_the_next_period(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await deliver(at)
        await link_another(at)
        await at.kit.record("acme", "tokens", 5)
        found = await correct(at.kit, 25)
        assert (found.taken_back, found.granted_next, found.by_hand) == (5, 20, 0)
        after = await tokens(at.kit)
        assert (after["recorded"], after["overage"], after["delivered"]) == (130, 30, 30)
        (grant,) = await at.kit.grants.list("acme")
        assert (grant.grant_id, grant.quantity, grant.effective_at) == ("correction/t-1", 20, JULY)
        at.clock.set(JULY + timedelta(minutes=1))
        await at.kit.record("acme", "tokens", 125)
        after = await tokens(at.kit)
        assert (after["recorded"], after["overage"], after["pending"]) == (125, 5, 5)


@pytest.mark.parametrize(
    ("ahead", "granted"),
    [
        ({"cancel_at_ms": JULY}, 0),
        ({"cancel_at_ms": JULY + timedelta(days=7)}, 0),
        ({"cancel_at_ms": JULY + timedelta(days=31)}, 20),
        ({"pending_plan": "pro", "pending_at_ms": JULY}, 0),
        ({"pending_plan": "free", "pending_seats": 2, "pending_at_ms": JULY}, 20),
    ],
)
async def test_what_the_next_period_lacks_is_not_granted_in_it(
    store_url: str, ahead: dict[str, Any], granted: int
) -> None:
    june: dict[str, Any] = dict.fromkeys(("start_ms", "anchor_ms", "created_ms"), JUNE)
    async with desk(store_url, catalog=PAID) as at:
        await deliver(at)
        await link_another(at)
        await fetched(at.kit, subscription(plan="free", end_ms=JULY, **june, **ahead))
        found = await correct(at.kit, 20)
        assert (found.granted_next, found.by_hand) == (granted, 20 - granted)
        assert found.by_hand_cents == (0 if granted else 6)
        assert len(await at.kit.grants.list("acme")) == granted // 20


async def test_an_id_corrects_once_and_only_what_it_did(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        await correct(at.kit, 30)
        again = await correct(at.kit, 30)
        assert (again.taken_back, again.is_repeated) == (30, True)
        assert (await tokens(at.kit))["recorded"] == 100
        with pytest.raises(MeterkitError, match="was used for something else: tokens=30"):
            await correct(at.kit, 31)
        # Of another customer it is another one.
        await at.kit.record("zeta", "tokens", 30)
        (other,) = await at.kit.correct("zeta", {"tokens": 30}, reason="a loop", correction_id="t-1")
        assert (other.taken_back, other.is_repeated) == (30, False)
        assert (await at.kit.customers.delete("zeta")).corrections == 1


async def test_a_repeat_grants_what_an_error_kept(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StoreError("the store is away")

    async with desk(store_url) as at:
        await deliver(at, 200)
        await link_another(at)
        with monkeypatch.context() as broken:
            broken.setattr("meterkit.customers.grants.Grants.add", fail)
            with pytest.raises(StoreError, match="is away"):
                await correct(at.kit, 100)
        at.clock.set(JULY + timedelta(minutes=1))
        again = await correct(at.kit, 100)
        assert (again.granted_next, again.never_billed, again.is_repeated) == (100, 0, True)
        assert (again.by_hand, again.by_hand_cents) == (0, None)  # The plans file gives no price.
        (grant,) = await at.kit.grants.list("acme")
        assert (grant.quantity, grant.effective_at) == (100, JULY)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"quantities": {}}, MeterkitError),
        ({"quantities": {"tokens": -1}}, QuantityError),
        ({"quantities": {"token": 1}}, UnknownMeterError),
        ({"reason": ""}, MeterkitError),
        ({"by": "x" * 501}, MeterkitError),
        ({"correction_id": "x" * 201}, MeterkitError),
        ({"correction_id": "a\nb"}, MeterkitError),
        ({"correction_id": "a\u00a0b"}, MeterkitError),  # No grant could have it.
    ],
)
async def test_unusable_arguments_are_refused(given: dict[str, Any], error: type[MeterkitError]) -> None:
    asked: dict[str, Any] = {"quantities": {"tokens": 1}, "reason": "x", "correction_id": "x"} | given
    async with MeterKit(CATALOG, redis_url="memory://", clock=Clock(NOW), flush=False) as kit:
        with pytest.raises(error):
            await kit.correct("acme", **asked)


# Units that Stripe has are taken back there, by meter events of less than nothing: once, never below 0.


async def places(at: Desk) -> dict[str, int]:
    """Where what is reported is, zeros left out."""
    found = await tokens(at.kit)
    return {name: found[name] for name in PLACES if found[name]}


@pytest.mark.parametrize("transport", ["v1", "v2-stream"])
async def test_i6_delivered_units_are_taken_back_in_their_period(store_url: str, transport: str) -> None:
    async with desk(store_url, stripe_transport=transport) as at:
        await deliver(at)
        found = await correct(at.kit, 20)
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


async def test_i6_negative_events_go_in_a_batch_of_their_own(store_url: str) -> None:
    # A batch with a value below 0 in it is taken, and Stripe counts nothing of that one.
    async with desk(store_url, stripe_transport="v2-stream", shards=1) as at:
        await at.link("zeta")
        await deliver(at)
        await correct(at.kit, 20)
        await at.kit.record("zeta", "tokens", 105)
        await at.seal()
        assert (await at.flush(everything=True)).is_complete
        assert (await places(at), at.accepted("acme", "ai_tokens")) == ({"delivered": 10}, 10)
        assert at.accepted("zeta", "ai_tokens") == 5


@pytest.mark.each_store
async def test_more_than_stripe_has_is_never_taken_back_there(store_url: str) -> None:
    async with desk(store_url) as at:
        await deliver(at)
        first, second = await correct(at.kit, 25), await correct(at.kit, 40, id_="t-2")
        again = await correct(at.kit, 40, id_="t-2")
        assert (first.sent_back, second.sent_back, second.included) == (25, 5, 35)
        assert (again.sent_back, again.is_repeated) == (5, True)
        await at.flush(everything=True)
        assert (await places(at), at.accepted("acme", "ai_tokens")) == ({}, 0)
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["recorded"] == 65


@pytest.mark.parametrize(
    ("when", "found"), [("after", {"delivered": 10}), ("before", {"delivered": 30, "parked": -20})]
)
async def test_i6_doubtful_corrections_are_compared(store_url: str, when: Any, found: dict[str, int]) -> None:
    async with desk(store_url) as at:
        await deliver(at)
        await correct(at.kit, 20)
        at.emulator.fail_next("drop", when=when)
        await at.flush(everything=True, timeout_s=0)
        for hours in (24, 3, 1):
            at.clock.advance(timedelta(hours=hours))
            await at.flush(everything=True, timeout_s=0)
        assert await places(at) == found
        assert at.accepted("acme", "ai_tokens") == found["delivered"]
        whys = [one.why for one in await at.kit.outbox.list()]
        assert ["it is a negative event" in why for why in whys] == [True] * ("parked" in found)


async def test_a_negative_event_goes_to_the_customer_of_delivery(store_url: str) -> None:
    async with desk(store_url) as at:
        await deliver(at)
        await correct(at.kit, 20)
        await link_another(at)
        await at.flush(everything=True)
        assert at.accepted("acme", "ai_tokens") == 10
        assert int(at.emulator.accepted("cus_other", "ai_tokens")) == 0
        # And from now on nobody can tell what which of them has.
        assert (await correct(at.kit, 10, id_="t-2")).granted_next == 10
