"""Recorded units are taken back: each class restored, never below zero, once an id, and nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import CATALOG, NOW, PLANS, desk
from meterkit import MeterKit, MeterkitError, QuantityError, StoreError, UnknownMeterError
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drivers.delivery import Desk
    from meterkit import Corrected
    from servers.stores import Server

pytestmark = pytest.mark.anyio

JULY = datetime(2031, 7, 1, tzinfo=UTC)
PAID = loads(
    PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:").replace(
        "tokens:   {included: 100, overage: bill}",
        "tokens:   {included: 100, overage: {bill: {per: 10, amount_cents: 3}}}",
    )
)
# Another plan bills no overage.
FREE = "price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 100, overage: deny}}"
DENIED = loads(f"{PLANS}  free: {{{FREE}}}\n")
# What a large model writes goes to Stripe under an event of its own.
DERIVED = loads(
    PLANS.replace("tokens:   {unit", "output_tokens: {unit")
    .replace("tokens:   {included", "output_tokens: {included")
    .replace(
        "pages:    {unit: page, ", 'large: {unit: token, from: output_tokens, where: {model: "*-large"}, '
    )
    .replace("pdf_pages, report: none", "pdf_pages")
)


async def correct(kit: MeterKit, quantity: int, *, meter: str = "tokens", id_: str = "t-1") -> Corrected:
    (found,) = await kit.correct("acme", {meter: quantity}, reason="a loop", correction_id=id_, by="ada")
    parts = (found.taken_back, found.granted_next, found.by_hand, found.never_billed, found.beyond)
    assert found.asked == sum(parts) == quantity
    assert found.taken_back == found.overage + found.credited + found.granted + found.included
    return found


async def sent_for_good(at: Desk, meter: str, quantity: int) -> None:
    """Stripe gets what acme has used, and acme another Stripe customer: nothing is taken back there."""
    await at.link("acme")
    await at.kit.record("acme", meter, quantity)
    await at.flush(everything=True)
    at.emulator.add_customer("cus_other")
    await at.kit.customers.unlink("acme")
    await at.kit.customers.link("acme", "cus_other", force=True)


async def tokens(kit: MeterKit) -> Mapping[str, Any]:
    """What is kept of tokens; what is reported of them is somewhere, once."""
    found: Mapping[str, Any] = (await kit.usage("acme"))["meters"]["tokens"]
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
    assert found["overage"] == sum(found[place] for place in places)
    return found


async def test_what_is_pending_is_taken_back_and_never_sent(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
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
            scale = 10**6 if grant.kind == "credit" else 1
            assert sums[grant.grant_id, grant.kind] == grant.remaining * scale


async def test_units_stripe_keeps_are_granted_in_the_next_period(
    store_url: str,
) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await sent_for_good(at, "tokens", 130)
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


async def test_where_nothing_follows_the_sum_is_said(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await sent_for_good(at, "tokens", 130)
        await at.kit.customers.set_status("acme", "unpaid")
        found = await correct(at.kit, 25)
        assert (found.granted_next, found.by_hand, found.by_hand_cents) == (0, 25, 8)  # 7.5 cents
        # Whoever asks again later hears the same, whatever the customer's status is by then.
        await at.kit.customers.set_status("acme", "active")
        again = await correct(at.kit, 25)
        assert (again.granted_next, again.by_hand, again.is_repeated) == (0, 25, True)
        assert await at.kit.grants.list("acme") == []


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


async def test_deleting_a_customer_forgets_its_corrections(store_url: str, valkey: Server) -> None:
    async with desk(store_url, catalog=PAID) as at:
        for customer in ("acme", "zeta"):
            await at.kit.record(customer, "tokens", 130)
            for nth in range(3):
                await at.kit.correct(customer, {"tokens": 9}, reason="x", correction_id=f"t-{nth}")
        assert len(valkey.command("KEYS", "mk:{*}:r:*")) == 6
        erased = await at.kit.customers.delete("acme")
        assert erased.corrections == 3
        assert len(valkey.command("KEYS", "mk:{*}:r:*")) == 3
        assert len(valkey.command("KEYS", "mk:{*}:k:*")) == 1
        assert (await at.kit.customers.delete("zeta")).corrections == 3


async def test_nothing_goes_below_zero(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        found = await correct(at.kit, 10**15 - 1)
        assert (found.taken_back, found.beyond) == (0, 10**15 - 1)
        await at.kit.record("acme", "tokens", 130)
        found = await correct(at.kit, 131, id_="t-2")
        assert (found.taken_back, found.beyond) == (130, 1)
        assert (await tokens(at.kit))["recorded"] == 0
        # Who has nothing to be sent does not wait for a link.
        assert (await at.flush(everything=True)).unlinked == []


async def test_a_period_that_is_over_is_not_corrected(store_url: str) -> None:
    async with desk(store_url, catalog=PAID) as at:
        await at.link("acme")
        await at.kit.record("acme", "tokens", 130)
        at.clock.set(JULY + timedelta(minutes=1))
        found = await correct(at.kit, 30)
        assert (found.taken_back, found.beyond) == (0, 30)
        await at.flush(everything=True)
        assert at.accepted("acme", "ai_tokens") == 30


async def test_sent_units_stay_recorded_whatever_the_plan_bills(store_url: str) -> None:
    async with desk(store_url, catalog=DENIED) as at:
        await sent_for_good(at, "tokens", 200)
        await at.kit.customers.set_plan("acme", "free")
        await at.kit.record("acme", "tokens", 7)  # Overage of a plan that bills none.
        found = await correct(at.kit, 107)
        assert (found.taken_back, found.overage, found.by_hand) == (7, 7, 100)
        assert (await tokens(at.kit))["delivered"] == 100


async def test_units_that_were_sent_are_paid_back_once_whatever_the_id(store_url: str) -> None:
    async with desk(store_url) as at:
        await sent_for_good(at, "tokens", 200)
        first = await correct(at.kit, 60, id_="x")
        second = await correct(at.kit, 60, id_="y")
        third = await correct(at.kit, 100, id_="z")
        assert (first.granted_next, second.granted_next, third.granted_next) == (60, 40, 0)
        assert (second.included, third.included, third.beyond) == (20, 80, 20)
        assert sum(grant.quantity for grant in await at.kit.grants.list("acme")) == 100
        # Those of the next period are others.
        at.clock.set(JULY + timedelta(minutes=1))
        await at.kit.record("acme", "tokens", 300)
        at.emulator.fail_next("error", status=429, times=None)
        await at.flush(everything=True, timeout_s=0)
        assert (await correct(at.kit, 100, id_="later")).granted_next == 100


async def test_a_repeated_correction_grants_what_an_error_kept(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StoreError("the store is away")

    async with desk(store_url) as at:
        await sent_for_good(at, "tokens", 200)
        with monkeypatch.context() as broken:
            broken.setattr("meterkit.customers.grants.Grants.add", fail)
            with pytest.raises(StoreError, match="is away"):
                await correct(at.kit, 100)
        at.clock.set(JULY + timedelta(minutes=1))
        again = await correct(at.kit, 100)
        assert (again.granted_next, again.never_billed, again.is_repeated) == (100, 0, True)
        (grant,) = await at.kit.grants.list("acme")
        assert (grant.quantity, grant.effective_at) == (100, JULY)


async def test_what_is_pending_under_a_derived_event_is_never_sent(store_url: str) -> None:
    async with desk(store_url, catalog=DERIVED) as at:
        await at.link("acme")
        for written in (100, 80):
            used = {"prompt_tokens": 1, "completion_tokens": written, "total_tokens": written + 1}
            answer: dict[str, Any] = {
                "object": "chat.completion",
                "model": "a-large",
                "choices": [],
                "usage": used,
            }
            await at.kit.record_usage("acme", answer)
        assert (await at.kit.usage("acme"))["meters"]["large"]["pending"] == 80
        found = await correct(at.kit, 30, meter="output_tokens")
        assert (found.taken_back, found.overage) == (30, 30)
        assert (await at.flush(everything=True)).is_complete
        assert at.accepted("acme", "pdf_pages") == 50
        found = await correct(at.kit, 50, meter="output_tokens", id_="t-2")
        assert (found.taken_back, found.sent_back, found.granted_next) == (50, 50, 0)
        await at.flush(everything=True)
        assert at.accepted("acme", "pdf_pages") == 0


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
