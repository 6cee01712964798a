"""What people do with intents: they are found, seen to, entered into the ledger, and counted somewhere."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import NOW, PLANS, desk, kit_for
from drivers.store_keys import meter_token
from meterkit import MeterkitError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.delivery import Desk
    from meterkit import Intent

pytestmark = pytest.mark.anyio

NO_CUSTOMER = {"status": 400, "message": "No such customer: 'cus_acme'"}


@asynccontextmanager
async def sealed(store_url: str, **fault: Any) -> AsyncGenerator[tuple[Desk, Intent]]:
    """A desk with six requests of acme's, sealed, tried once and met by a fault."""
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("error", **fault)
        await at.flush(everything=True, timeout_s=0)
        (intent,) = await at.kit.outbox.list()
        yield at, intent


async def states(at: Desk) -> dict[str, int]:
    """Where acme's requests are, zeros left out."""
    meter = (await at.kit.usage("acme"))["meters"]["requests"]
    found: dict[str, int] = {
        "pending": meter["pending"],
        "queued": meter["queued"],
        "parked": meter["parked"],
        "delivered": meter["delivered"],
        "dead": meter["dead"],
    }
    assert sum(found.values()) == meter["recorded"]
    return {state: quantity for state, quantity in found.items() if quantity}


async def test_an_intent_is_shown_with_all_that_is_known_of_it(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        at.clock.advance(timedelta(minutes=5))
        shown = await at.kit.outbox.show(intent.identifier)
    assert (shown.customer, shown.stripe_customer) == ("acme", "cus_acme")
    assert (shown.meter, shown.event_name, shown.quantity) == ("requests", "api_requests", 6)
    assert (shown.state, shown.attempts, shown.compared_at) == ("queued", 1, None)
    # 429 says that Stripe has nothing of it.
    assert shown.first_attempt_at is None
    assert (shown.minute, shown.sealed_at, shown.age_s) == (NOW.replace(second=0), NOW, 300)
    assert shown.period_start == NOW.replace(day=1, hour=0, minute=0, second=0)
    assert "429" in shown.why


@pytest.mark.each_store
async def test_intents_are_listed_by_state_and_customer(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme", "zeta")
        at.emulator.fail_next("error", status=429, times=None)
        for customer in ("zeta", "acme", "zeta"):
            await at.kit.record(customer, "requests", 2)
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=11))
        listed = await at.kit.outbox.list()
        assert [one.customer for one in listed] == ["zeta", "acme", "zeta"]
        assert await at.kit.outbox.list(state="queued") == listed
        assert await at.kit.outbox.list(state="parked") == []
        assert await at.kit.outbox.list(customer="zeta") == [listed[0], listed[2]]
        assert await at.kit.outbox.list(limit=1) == listed[:1]
        await at.kit.outbox.park(listed[1].identifier)
        assert [one.customer for one in await at.kit.outbox.list(state="parked")] == ["acme"]


@pytest.mark.each_store
async def test_what_is_parked_by_hand_is_not_sent_until_it_is_redriven(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        parked = await at.kit.outbox.park(intent.identifier, reason="a wrong price", by="operator ada")
        assert (parked.state, parked.why) == ("parked", "parked by hand: a wrong price")
        assert await states(at) == {"parked": 6}
        at.clock.advance(timedelta(hours=30))
        assert not (await at.flush(everything=True)).is_complete
        assert at.accepted("acme") == 0
        redriven = await at.kit.outbox.redrive(intent.identifier)
        assert (redriven.state, redriven.identifier, redriven.why) == ("queued", intent.identifier, "")
        assert (await at.flush(everything=True)).is_complete
        assert await states(at) == {"delivered": 6}
        assert at.accepted("acme") == 6
        entries = [entry for entry in await at.kit.customers.history("acme") if entry.kind == "intent"]
    assert [(entry.after, entry.cause) for entry in entries] == [
        ("parked by hand: a wrong price", "operator ada"),
        ("queued", "api"),
    ]
    assert entries[0].before == f"queued: 6 of api_requests at 2031-06-10T12:00Z, {intent.identifier}"


async def test_who_has_done_it_need_not_be_said(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        await at.kit.outbox.park(intent.identifier, by="")
        (entry,) = [entry for entry in await at.kit.customers.history("acme") if entry.kind == "intent"]
    assert (entry.after, entry.cause) == ("parked by hand", "api")


async def test_a_refused_intent_is_redriven_under_its_identifier(
    store_url: str,
) -> None:
    async with sealed(store_url, **NO_CUSTOMER) as (at, intent):
        assert (intent.state, intent.first_attempt_at) == ("dead", None)
        at.clock.advance(timedelta(days=3))
        await at.kit.outbox.redrive(intent.identifier)
        assert (await at.flush(everything=True)).is_complete
        assert [event.identifier for event in at.emulator.events] == [intent.identifier]
    # Stripe's idempotency would have answered as it did then.
    keys = [request.idempotency_key for request in at.emulator.requests]
    assert len(set(keys)) == 2


async def test_what_stripe_may_have_is_sent_again_within_23_hours(store_url: str) -> None:
    async with sealed(store_url, status=500, when="after") as (at, intent):
        await at.kit.outbox.park(intent.identifier)
        at.clock.advance(timedelta(hours=22))
        redriven = await at.kit.outbox.redrive(intent.identifier)
        assert (redriven.state, redriven.first_attempt_at) == ("queued", NOW)
        await at.flush(everything=True)
        assert await states(at) == {"delivered": 6}
        assert at.accepted("acme") == 6


async def test_what_stripe_may_have_is_only_compared_after_23_hours(store_url: str) -> None:
    async with sealed(store_url, status=500, when="after") as (at, intent):
        await at.kit.outbox.park(intent.identifier)
        at.clock.advance(timedelta(hours=24))
        redriven = await at.kit.outbox.redrive(intent.identifier)
        assert (redriven.state, redriven.compared_at) == ("parked", NOW + timedelta(hours=26))
        assert (await at.kit.outbox.list(state="parked"))[0].compared_at == NOW + timedelta(hours=26)
        before = len(at.emulator.requests)
        await at.flush(everything=True, timeout_s=0)
        assert len(at.emulator.requests) == before
        assert await states(at) == {"parked": 6}


async def test_a_dropped_intent_is_dead_and_frees_its_customer(store_url: str) -> None:
    async with sealed(store_url, **NO_CUSTOMER) as (at, intent):
        with pytest.raises(MeterkitError, match="parked or dead"):
            await at.kit.customers.delete("acme")
        with pytest.raises(MeterkitError, match="say why"):
            await at.kit.outbox.drop(intent.identifier, reason="")
        dropped = await at.kit.outbox.drop(intent.identifier, reason="a test customer", by="operator ada")
        assert (dropped.state, dropped.quantity) == ("dead", 6)
        assert await states(at) == {"dead": 6}
        assert await at.kit.outbox.list() == []
        entry = (await at.kit.customers.history("acme"))[-1]
        assert (entry.kind, entry.after, entry.cause) == (
            "intent",
            "dropped: a test customer",
            "operator ada",
        )
        assert (await at.flush(everything=True)).is_complete
        with pytest.raises(MeterkitError, match="no intent"):
            await at.kit.outbox.redrive(intent.identifier)
        await at.kit.customers.delete("acme")


async def test_the_minute_of_a_dropped_intent_is_not_given_to_another(store_url: str) -> None:
    async with sealed(store_url, status=500, when="after") as (at, intent):
        await at.kit.outbox.drop(intent.identifier, reason="by hand")
        await at.kit.customers.unlink("acme")
        await at.kit.customers.link("zeta", "cus_acme", force=True)
        await at.kit.record("zeta", "requests", 1)
        at.clock.advance(timedelta(seconds=20))
        await at.flush(everything=True, timeout_s=0)
        assert len({event.timestamp for event in at.emulator.events}) == 2


@pytest.mark.parametrize(("verb", "state"), [("redrive", "queued"), ("park", "parked")])
async def test_a_verb_is_refused_in_a_state_that_it_is_not_for(store_url: str, verb: str, state: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        if state == "parked":
            await at.kit.outbox.park(intent.identifier)
        act: Any = getattr(at.kit.outbox, verb)
        with pytest.raises(MeterkitError, match=f"is {state}: only what is"):
            await act(intent.identifier)
        assert await states(at) == {state: 6}


async def test_what_is_being_sent_is_left_alone(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        send, refusals = at.transport.send, list[str]()

        async def see_to_it(sealed: Any) -> Any:
            for verb in (at.kit.outbox.park, at.kit.outbox.redrive, at.kit.outbox.drop):
                with pytest.raises(MeterkitError) as refused:
                    await verb(intent.identifier, reason="now")
                refusals.append(str(refused.value))
            return await send(sealed)

        at.transport.send = see_to_it  # type: ignore[method-assign,assignment] # looks at it while it is under way
        at.clock.advance(timedelta(minutes=11))
        await at.flush(everything=True)
        assert [refusal.endswith("it is being sent, try again in a minute") for refusal in refusals] == [
            True
        ] * 3
        assert await states(at) == {"delivered": 6}


async def test_damaged_totals_keep_an_intent_where_it_is(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        client: Any = (await at.kit.store.admin()).client
        totals = at.kit.store.keys.customer("acme").totals
        field = f"{int(intent.period_start.timestamp() * 1000)}|{meter_token('requests')}k"
        await client.hset(totals, field, "text")
        with pytest.raises(StoreError, match="cannot be counted in"):
            await at.kit.outbox.park(intent.identifier)
        await client.hdel(totals, field)
        assert await states(at) == {"queued": 6}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state": "lost"}, "state: found 'lost'; allowed are queued, leased, parked, dead and None"),
        ({"limit": 0}, "limit: found"),
        ({"customer": "a\nb"}, "control character"),
    ],
)
async def test_what_cannot_be_listed_is_refused_with_words(
    store_url: str, given: dict[str, Any], said: str
) -> None:
    async with desk(store_url) as at:
        with pytest.raises(MeterkitError, match=said):
            await at.kit.outbox.list(**given)


@pytest.mark.parametrize("identifier", ["nobody", 7])
async def test_an_intent_that_is_not_there_is_named(store_url: str, identifier: Any) -> None:
    async with desk(store_url) as at:
        with pytest.raises(MeterkitError, match="no intent that is not delivered"):
            await at.kit.outbox.show(identifier)


def test_without_an_event_loop(valkey: Any) -> None:
    kit = kit_for(valkey.url, "http://127.0.0.1:9", clock=NOW.timestamp).sync()
    with kit:
        assert kit.outbox.list() == []
    assert "requests" in PLANS
