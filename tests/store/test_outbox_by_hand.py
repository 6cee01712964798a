"""What people do with intents: they are found, seen to, entered into the ledger, and counted somewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from drivers.delivery import NOW, Desk, desk
from drivers.store_keys import meter_token
from meterkit import Intent, MeterkitError, StoreError

pytestmark = pytest.mark.anyio


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
    meter: Any = (await at.kit.usage("acme"))["meters"]["requests"]
    found = {place: meter[place] for place in ("pending", "queued", "parked", "delivered", "dead")}
    assert sum(found.values()) == meter["recorded"]
    return {place: quantity for place, quantity in found.items() if quantity}


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


async def test_what_is_parked_by_hand_is_not_sent_until_it_is_redriven(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        parked = await at.kit.outbox.park(intent.identifier, reason="a wrong price", by="operator ada")
        assert (parked.state, parked.why) == ("parked", "parked by hand: a wrong price")
        with pytest.raises(MeterkitError, match="is parked: only queued"):
            await at.kit.outbox.park(intent.identifier)
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
    async with sealed(store_url, status=400, message="No such customer: 'cus_acme'") as (at, intent):
        with pytest.raises(MeterkitError, match="parked or dead"):
            await at.kit.customers.delete("acme")
        with pytest.raises(MeterkitError, match="say why"):
            await at.kit.outbox.drop(intent.identifier, reason="")
        dropped = await at.kit.outbox.drop(intent.identifier, reason="a test customer", by="operator ada")
        assert (dropped.state, dropped.quantity) == ("dead", 6)
        assert await states(at) == {"dead": 6}
        assert await at.kit.outbox.list() == []
        entry = (await at.kit.customers.history("acme"))[-1]
        assert (entry.kind, entry.cause) == ("intent", "operator ada")
        assert entry.after == "dropped: a test customer"
        assert (await at.flush(everything=True)).is_complete
        with pytest.raises(MeterkitError, match="no undelivered intent"):
            await at.kit.outbox.redrive(intent.identifier)
        await at.kit.customers.delete("acme")


async def test_damaged_totals_keep_an_intent_where_it_is(store_url: str) -> None:
    async with sealed(store_url, status=429) as (at, intent):
        client: Any = (await at.kit.store.admin()).client
        totals = at.kit.store.keys.customer("acme").totals
        field = f"{int(intent.period_start.timestamp() * 1000)}|{meter_token('requests')}k"
        await client.hset(totals, field, "text")
        with pytest.raises(StoreError, match="are damaged"):
            await at.kit.outbox.park(intent.identifier)
        await client.hdel(totals, field)
        assert await states(at) == {"queued": 6}


async def test_what_cannot_be_listed_is_refused_with_words(store_url: str) -> None:
    async with desk(store_url) as at:
        listed: Any = at.kit.outbox.list
        for given, said in (
            ({"state": "lost"}, "state: found 'lost'; allowed are queued, leased, parked, dead and None"),
            ({"limit": 0}, "limit: found"),
            ({"customer": "a\nb"}, "control character"),
        ):
            with pytest.raises(MeterkitError, match=said):
                await listed(**given)
        for name in ("unknown", "no UTF-8: \udcff"):  # As a command line hands on any byte.
            with pytest.raises(MeterkitError, match="no undelivered intent"):
                await at.kit.outbox.show(name)
