"""``meterkit recover`` settles what a restore has parked by what Stripe has."""
# Internals: a recovery that ends between two steps.

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW, desk, have_at_stripe
from drivers.emulated_account import unpaced
from drivers.restored_store import LAG, linked, parked_by_a_restore, states
from meterkit.delivery.recovering import Recovered, Recoverer
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import MeterkitError
from meterkit.store.tasks import TaskLease
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drivers.delivery import Desk
    from servers.stores import Server

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("valkey")]

MINUTE: Final = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the emulator as fast as it answers, not 20 times in a second."""
    unpaced(monkeypatch)


async def recover(at: Desk, **settings: Any) -> Sequence[Recovered]:
    summaries = StripeSummaries(StripeApi(at.kit.settings))
    try:
        return await Recoverer(at.kit.store, summaries).recover(**settings)
    finally:
        await summaries.close()


async def usage(at: Desk) -> dict[str, int]:
    counts = (await at.kit.usage("acme"))["meters"]["requests"]
    return {name: counts[name] for name in ("recorded", "queued", "parked", "delivered", "dead")}


@pytest.mark.parametrize(
    ("at_stripe", "billed", "sent", "lost"),
    [(30, 30, 0, 0), (20, 20, 10, 0), (50, 30, 0, 20)],
)
async def test_i6_parked_units_are_billed_as_far_as_stripe_has_them(
    store_url: str, at_stripe: int, billed: int, sent: int, lost: int
) -> None:
    async with linked(store_url) as at:
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, at_stripe, minute=NOW - MINUTE)
        assert await parked_by_a_restore(at) == 1
        before = await states(at)
        would = await recover(at, dry_run=True)
        assert (await states(at), await usage(at)) == (
            before,
            {"recorded": 30, "queued": 0, "parked": 30, "delivered": 0, "dead": 0},
        )
        done = await recover(at, by="operator")
        assert done == would
        assert [(one.parked, one.unknown, one.billed, one.sent, one.lost) for one in done] == [
            (30, at_stripe, billed, sent, lost)
        ]
        assert await usage(at) == {
            "recorded": 30, "queued": sent, "parked": 0, "delivered": billed, "dead": 0
        }  # fmt: skip
        await at.flush(everything=True)
        assert (at.accepted("acme"), await states(at)) == (max(30, at_stripe), [])
        entries = [one for one in await at.kit.customers.history("acme") if one.kind == "intent"]
        assert len(entries) == 1 + bool(billed) + bool(sent)
        assert await recover(at) == []


@pytest.mark.parametrize("there", [0, 1])
async def test_i6_an_intent_whose_minute_stripe_has_is_billed(store_url: str, there: int) -> None:
    async with linked(store_url) as at:
        at.emulator.fail_next("error", status=401, times=None, path="/v1/billing/meter_events")
        for quantity in (5, 7):
            await at.kit.record("acme", "requests", quantity)
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(MINUTE)
        at.emulator.clear_faults()
        await have_at_stripe(at, 3, minute=at.clock.now())
        assert await parked_by_a_restore(at) == 2
        both = sorted(await at.kit.outbox.list(), key=lambda one: one.quantity)
        known, other = both[there], both[1 - there]
        await have_at_stripe(at, known.quantity, minute=known.minute)
        (done,) = await recover(at)
        assert (done.billed, done.sent) == (known.quantity + 3, other.quantity - 3)
        (left,) = await at.kit.outbox.list()
        assert (left.quantity, left.state, left.minute) == (other.quantity - 3, "queued", other.minute)


async def test_i6_units_corrected_at_stripe_are_not_sent_again(store_url: str) -> None:
    async with linked(store_url) as at:
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, 30, minute=NOW - MINUTE)
        await have_at_stripe(at, -20, minute=NOW - 2 * MINUTE)
        assert await parked_by_a_restore(at) == 1
        (done,) = await recover(at)
        # The sum says that Stripe has 10 of them; the minutes say that it has had all.
        assert (done.unknown, done.billed, done.sent) == (30, 30, 0)
        await at.flush(everything=True)
        assert at.accepted("acme") == 10


async def test_i6_uncounted_deliveries_since_hide_nothing(
    store_url: str,
) -> None:
    async with linked(store_url) as at:
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, 30, minute=NOW - MINUTE)
        assert await parked_by_a_restore(at) == 1
        at.clock.advance(timedelta(hours=1))
        totals = await at.totals("acme")
        period = next(name for name in totals if name.endswith("k"))[:-1]
        admin = await at.kit.store.admin()
        key = at.kit.store.keys.customer("acme").totals
        await admin.ask(admin.client.hincrby(key, f"{period}d", 500))  # Delivered, and not counted yet.
        (done,) = await recover(at)
        assert (done.unknown, done.billed, done.sent) == (30, 30, 0)


async def recovered_by_word(at: Desk) -> None:
    """Have an operator say that a backup was put back, and see that nothing is billed twice."""
    await at.kit.record("acme", "requests", 30)
    await have_at_stripe(at, 30, minute=NOW - MINUTE)
    summaries = StripeSummaries(StripeApi(at.kit.settings))
    recoverer = Recoverer(at.kit.store, summaries)
    await recoverer.doubt(NOW - timedelta(hours=1))
    assert await recoverer.not_compared() == 1
    assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
    assert await recoverer.not_compared() == 1
    at.clock.advance(LAG)
    assert (await at.flush(everything=True, timeout_s=0)).parked == 1
    assert await recoverer.not_compared() == 0
    (done,) = await recoverer.recover()
    assert replace(done, customer="") == Recovered(
        customer="", meter="requests", event_name="api_requests", parked=30, unknown=30, billed=30
    )
    await summaries.close()
    await at.kit.record("acme", "requests", 4)
    await at.flush(everything=True)
    assert at.accepted("acme") == 34


async def test_i6_an_older_backup_is_compared_on_an_operators_word(
    store_url: str,
) -> None:
    async with desk(store_url, shards=1) as at:
        await at.link("acme")  # And nothing was delivered yet.
        await recovered_by_word(at)


async def test_a_customer_whom_stripe_does_not_have_is_for_a_person(store_url: str) -> None:
    async with linked(store_url) as at:
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, 30, minute=NOW - MINUTE)
        assert await parked_by_a_restore(at) == 1
        at.emulator.fail_next("error", status=404, times=None, skip=1, path="*")
        (done,) = await recover(at)
        assert (done.unknown, "bill by hand" in done.advice) == (None, True)
        at.emulator.fail_next("error", status=500, times=None, skip=1, path="*")
        with pytest.raises(MeterkitError):
            await recover(at)
        assert await states(at) == [(30, "parked")]


async def test_only_the_customer_that_is_named_is_settled(store_url: str) -> None:
    async with linked(store_url, "acme", "zeta") as at:
        for customer, there in (("acme", 30), ("zeta", 31)):
            await at.kit.record(customer, "requests", 30)
            await have_at_stripe(at, there, minute=NOW - MINUTE, customer=f"cus_{customer}")
        assert await parked_by_a_restore(at) == 2
        (done,) = await recover(at, customer="zeta")
        assert (done.customer, await states(at)) == ("zeta", [(30, "parked")])


async def test_i6_a_run_that_ended_between_two_steps_is_gone_on_with(store_url: str) -> None:
    async with linked(store_url) as at:
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, 20, minute=NOW - MINUTE)
        assert await parked_by_a_restore(at) == 1
        admin, key = await at.kit.store.admin(), at.kit.store.keys.shard(0, "intents")
        ((name, text),) = (await admin.ask(admin.client.hgetall(key))).items()
        cut = {**json.loads(text), "value": "20", "rest": "10"}
        await admin.ask(admin.client.hset(key, name, json.dumps(cut)))
        (done,) = await recover(at)
        assert (done.parked, done.billed, done.sent) == (30, 20, 10)
        await at.flush(everything=True)
        assert (at.accepted("acme"), await states(at)) == (30, [])


async def test_two_who_recover_at_once_are_told_apart(store_url: str) -> None:
    async with linked(store_url) as at:
        store = at.kit.store
        lease = TaskLease(store, store.keys.shard(0, "recover:lease"), lasts_ms=60_000)
        async with lease.held():
            with pytest.raises(MeterkitError, match="another process recovers"):
                await recover(at)


async def test_i6_without_info_an_operator_declares_a_backup(valkey: Server) -> None:
    valkey.ask("ACL", "SETUSER", "blind", "on", ">secret", "~*", "&*", "+@all", "-info")
    async with linked(f"redis://blind:secret@127.0.0.1:{valkey.port}/0") as at:
        await at.kit.record("acme", "requests", 5)
        assert (await at.flush(everything=True)).delivered == 1  # No restart is seen.
        at.clock.advance(10 * MINUTE)
        await at.kit.record("acme", "requests", 25)
        await have_at_stripe(at, 25, minute=at.clock.now() - MINUTE)
        summaries = StripeSummaries(StripeApi(at.kit.settings))
        recoverer = Recoverer(at.kit.store, summaries)
        await recoverer.doubt(NOW + 5 * MINUTE)
        assert await recoverer.not_compared() == 1
        assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
        at.clock.advance(LAG)
        assert (await at.flush(everything=True, timeout_s=0)).parked == 1
        assert await recoverer.not_compared() == 0
        assert [(one.unknown, one.billed) for one in await recoverer.recover()] == [(25, 25)]
        await summaries.close()
        await at.kit.record("acme", "requests", 4)
        assert (await at.flush(everything=True)).delivered == 1
        assert at.accepted("acme") == 34


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"value": "x"}'])
async def test_i6_an_unreadable_intent_is_named_once_and_skipped(
    store_url: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(store_url) as at:
        await at.kit.record("acme", "requests", 30)
        await have_at_stripe(at, 30, minute=NOW - MINUTE)
        assert await parked_by_a_restore(at) == 1
        admin, keys = await at.kit.store.admin(), at.kit.store.keys
        await admin.ask(admin.client.hset(keys.shard(0, "intents"), "bad-1", text))
        for place in ("outbox", "parked", "compare"):
            await admin.ask(admin.client.zadd(keys.shard(0, place), {"bad-1": 1}))
        (done,) = await recover(at)
        assert (done.parked, done.billed) == (30, 30)
        await at.kit.record("acme", "requests", 7)
        for _ in range(2):
            await at.flush(everything=True, timeout_s=0)
        assert at.accepted("acme") == 37
        with pytest.raises(MeterkitError, match="intent bad-1 of shard 0 cannot be read"):
            await at.kit.outbox.drop("bad-1", reason="damaged")
        await at.kit.customers.unlink("acme")
        await at.kit.customers.link("acme", "cus_acme", force=True)  # It asks which minutes are taken.
        told = [one.getMessage() for one in caplog.records if "bad-1" in one.getMessage()]
        assert told == ["intent bad-1 of shard 0 cannot be read and is left; all others are delivered"]
