"""Recorded units are taken back: each class restored, never below zero, once an id, and nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from delivering import CATALOG, NOW, PLANS, desk
from meterkit import MeterKit, MeterkitError, QuantityError, StoreError, UnknownMeterError
from meterkit.catalog import loads
from meterkit.decisions.prepaid import MICRO
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit import Corrected

pytestmark = pytest.mark.anyio

JULY = datetime(2031, 7, 1, tzinfo=UTC)
PAID = loads(
    PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:").replace(
        "tokens:   {included: 100, overage: bill}",
        "tokens:   {included: 100, overage: {bill: {per: 10, amount_cents: 3}}}",
    )
)


async def correct(kit: MeterKit, quantity: int, *, meter: str = "tokens", id_: str = "t-1") -> Corrected:
    (found,) = await kit.correct("acme", {meter: quantity}, reason="a loop", correction_id=id_, by="ada")
    parts = (found.taken_back, found.granted_next, found.by_hand, found.never_billed, found.beyond)
    assert found.asked == sum(parts) == quantity
    assert found.taken_back == found.overage + found.credited + found.granted + found.included
    return found


async def tokens(kit: MeterKit) -> Mapping[str, Any]:
    """What is kept of tokens; what is reported of them is somewhere, once."""
    found: Mapping[str, Any] = (await kit.usage("acme"))["meters"]["tokens"]
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
    assert found["overage"] == sum(found[place] for place in places)
    return found


async def test_what_is_pending_is_taken_back_and_never_sent(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        found = await correct(at.kit, 50)
        assert (found.taken_back, found.overage, found.included, found.is_repeated) == (50, 30, 20, False)
        after = await tokens(at.kit)
        assert (after["recorded"], after["overage"], after["pending"]) == (80, 0, 0)
        assert (await at.flush(everything=True)).is_complete
        assert at.accepted("acme", "ai_tokens") == 0
        entry = (await at.kit.customers.history("acme"))[-1]
    assert (entry.kind, entry.before, entry.cause) == ("correction", "50 of tokens to be taken back", "ada")
    assert entry.after == "50 taken back, 0 sent to Stripe before, 0 never recorded: a loop"


async def test_classes_go_back_in_the_opposite_order_and_what_paid_has_it_back(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
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
        left = {grant.name: grant.remaining for grant in await at.kit.grants.list("acme")}
        assert (
            sum(grant.remaining for grant in await at.kit.grants.list("acme") if grant.name == "tokens") == 15
        )
        assert set(left) == {"tokens", "ai"}
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
        sums: dict[tuple[str, str], int] = {}
        for line in await at.kit.grants.ledger("acme"):
            sums[line.grant_id, line.kind] = sums.get((line.grant_id, line.kind), 0) + line.quantity
        for grant in await at.kit.grants.list("acme"):
            scale = MICRO if grant.kind == "credit" else 1
            assert sums[grant.grant_id, grant.kind] == grant.remaining * scale


async def test_credits_that_have_expired_do_not_come_back(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        await at.link("acme")
        ends = NOW + timedelta(hours=1)
        await at.kit.grants.add("acme", {"ai": 100}, grant_id="c", expires_at=ends)
        await at.kit.record("acme", "tokens", 150)
        at.clock.advance(timedelta(hours=2))
        found = await correct(at.kit, 50)
        assert found.credited == 50
        assert (await at.kit.usage("acme"))["balance"]["ai"] == 0


async def test_what_stripe_was_sent_is_granted_from_the_next_period_on(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        await at.flush(everything=True)
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


async def test_where_nothing_follows_the_sum_is_said(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        await at.flush(everything=True)
        await at.kit.customers.set_status("acme", "unpaid")
        found = await correct(at.kit, 25)
        assert (found.granted_next, found.by_hand, found.by_hand_cents) == (0, 25, 8)  # 7.5 cents
        # Whoever asks again later hears the same, whatever the customer's status is by then.
        await at.kit.customers.set_status("acme", "active")
        again = await correct(at.kit, 25)
        assert (again.granted_next, again.by_hand, again.is_repeated) == (0, 25, True)
        assert await at.kit.grants.list("acme") == []


async def test_what_is_on_no_bill_stays_recorded(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        at.emulator.fail_next("error", status=400, message="No such customer: 'cus_acme'")
        await at.flush(everything=True, timeout_s=0)
        found = await correct(at.kit, 30)
        assert (found.never_billed, found.granted_next) == (30, 0)
        assert (await tokens(at.kit))["dead"] == 30


async def test_an_id_corrects_once_and_only_what_it_did(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
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


async def test_nothing_goes_below_zero(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        found = await correct(at.kit, 10**15 - 1)
        assert (found.taken_back, found.beyond) == (0, 10**15 - 1)
        await at.kit.record("acme", "tokens", 130)
        found = await correct(at.kit, 131, id_="t-2")
        assert (found.taken_back, found.beyond) == (130, 1)
        assert (await tokens(at.kit))["recorded"] == 0
        # Who has nothing to be sent does not wait for a link.
        assert (await at.flush(everything=True)).unlinked == []


async def test_numbers_of_15_digits_are_exact(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        most = 10**15 - 1
        await at.kit.record("acme", "tokens", most)
        found = await correct(at.kit, most - 2)
        assert (found.taken_back, found.overage) == (most - 2, most - 100)
        assert (await tokens(at.kit))["recorded"] == 2


async def test_a_period_that_is_over_is_not_corrected(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        at.clock.set(JULY + timedelta(minutes=1))
        found = await correct(at.kit, 30)
        assert (found.taken_back, found.beyond) == (0, 30)
        await at.flush(everything=True)
        assert at.accepted("acme", "ai_tokens") == 30


async def test_included_units_that_are_reported_come_off_what_is_pending(any_store_url: str) -> None:
    async with desk(any_store_url) as at:  # report: usage
        await at.link("acme")
        await at.kit.record("acme", "requests", 40)
        await at.flush(everything=True)
        await at.kit.record("acme", "requests", 5)
        found = await correct(at.kit, 15, meter="requests")
        assert (found.included, found.granted_next) == (5, 10)
        after = (await at.kit.usage("acme"))["meters"]["requests"]
        assert (after["recorded"], after["pending"], after["delivered"]) == (40, 0, 40)


async def test_a_change_of_the_customer_meanwhile_is_no_matter(any_store_url: str) -> None:
    async with desk(any_store_url, catalog=PAID) as at:
        await at.kit.record("acme", "tokens", 130)
        async with MeterKit(PAID, redis_url=any_store_url, clock=at.clock, shards=4, flush=False) as other:
            await other.customers.override("acme", {"tokens": {"included": 50}})
            found = await correct(at.kit, 10)
    assert found.overage == 10


async def test_damaged_counters_are_left_alone(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        client: Any = (await at.kit.store.admin()).client
        totals = at.kit.store.keys.customer("acme").totals
        await client.hset(totals, "1|abcdp", "x")
        with pytest.raises(StoreError, match="not a whole number"):
            await correct(at.kit, 10)
        await client.delete(totals)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"quantities": {}}, MeterkitError),
        ({"quantities": {"tokens": -1}}, QuantityError),
        ({"quantities": {"token": 1}}, UnknownMeterError),
        ({"reason": ""}, MeterkitError),
        ({"by": "x" * 501}, MeterkitError),
        ({"correction_id": ""}, MeterkitError),
        ({"correction_id": "x" * 201}, MeterkitError),
        ({"correction_id": "a\nb"}, MeterkitError),
    ],
)
async def test_arguments_that_cannot_be_used_are_refused(
    given: dict[str, Any], error: type[MeterkitError]
) -> None:
    asked: dict[str, Any] = {"quantities": {"tokens": 1}, "reason": "x", "correction_id": "x"} | given
    async with MeterKit(CATALOG, redis_url="memory://", clock=Clock(NOW), flush=False) as kit:
        with pytest.raises(error):
            await kit.correct("acme", **asked)
