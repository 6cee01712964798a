"""I6, I13: after a loss of all data, a rebuild bills each unit once, at the price it was recorded at."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from drivers.audited_kit import (
    Audited,
    audited,
    drain_all_of,
    lose_all,
    lose_all_of,
    rebuild,
    rebuild_of,
    sqlite_in,
)
from drivers.period_ends import JUNE, MAY, Ending, paying
from drivers.priced_shop import (
    SWITCHED,
    SWITCHED_DEAD_LETTER,
    begin,
    item_lines,
    metered_lines,
    renewed,
    sell,
    switch,
)
from drivers.shop import HALF, Shop, sell_nothing, shop
from drivers.usage_lines import CATALOG as BY_LINES
from drivers.usage_lines import end_period, flushed, usage_lines
from meterkit import MeterKit, MeterUsage

pytestmark = pytest.mark.anyio


async def lose(at: Shop | Ending) -> None:
    """The store has lost everything once the log has it, and acme is linked and synced again."""
    await drain_all_of(at.kit)
    linked = (await at.kit.customers.get("acme")).stripe_customer
    assert linked is not None
    await lose_all_of(at.kit)
    await at.kit.customers.link("acme", linked, force=True)
    await at.kit.subscriptions.sync("acme")
    at.go(at.clock.now() + timedelta(hours=3))


async def words_of(kit: MeterKit) -> MeterUsage:
    found = (await kit.usage("acme"))["meters"]["words"]
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "late", "dead")
    assert found["overage"] == sum(found[place] for place in places)  # type: ignore[literal-required]
    return found


async def test_i13_invoice_lines_keep_their_prices(store_url: str, audit_url: str) -> None:
    """All of it was billed at the price of now."""
    async with shop(store_url, catalog=BY_LINES, selling=sell_nothing, audit_url=audit_url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        at.go(HALF)
        await at.kit.subscriptions.change_plan("acme", "team")
        await at.kit.record("acme", "words", 10)
        before = await words_of(at.kit)
        await lose(at)
        assert [(one.meter, one.raised) for one in await rebuild_of(at.kit)] == [("words", 136)]
        assert await words_of(at.kit) == before
        await end_period(at)
        for _ in range(3):
            await flushed(at)
        assert await usage_lines(at) == [("Words", "26", "4", 104), ("Words", "10", "7", 70)]


async def test_i6_an_invoice_items_units_are_not_sent_too(store_url: str, tmp_path: Path) -> None:
    """Stripe's meters lack them, and so they were sent, at another price."""
    async with shop(store_url, catalog=SWITCHED, selling=sell, audit_url=sqlite_in(tmp_path)) as at:
        await begin(at)
        await at.kit.record("acme", "words", 26)
        await switch(at, "seven")
        await at.kit.subscriptions.sync("acme")
        await at.kit.flush(everything=True)
        before = await words_of(at.kit)
        assert (before["late"], before["overage_cents"]) == (26, 104)
        await lose(at)
        assert [(one.raised, one.parked) for one in await rebuild_of(at.kit)] == [(36, 0)]
        assert await words_of(at.kit) == before
        await renewed(at)
        assert ([units for _, units, _ in await item_lines(at)], await metered_lines(at)) == ([26], [])


async def test_i6_units_given_up_are_not_sent(store_url: str, tmp_path: Path) -> None:
    """A rebuild parked them, and later sent them at another price, even where nothing was lost."""
    async with shop(
        store_url, catalog=SWITCHED_DEAD_LETTER, selling=sell, audit_url=sqlite_in(tmp_path)
    ) as at:
        await begin(at)
        await at.kit.record("acme", "words", 26)
        await switch(at, "seven")
        await at.kit.subscriptions.sync("acme")
        before = await words_of(at.kit)
        assert (before["late"], await rebuild_of(at.kit)) == (26, [])
        assert await words_of(at.kit) == before


async def test_i6_late_usage_is_not_advised_for_an_item(store_url: str, audit_url: str) -> None:
    """The next period has billed it; `rebuild` told to bill it by an invoice item once more."""
    async with paying(store_url, audit_url=audit_url) as at:
        await at.kit.record("acme", "requests", 60)
        await at.reach(JUNE + timedelta(days=2))
        await at.flush()
        assert (await at.counts(MAY))["late"] == 50
        at.go(at.clock.now() + timedelta(hours=3))
        await at.flush()
        await lose(at)
        may, june = await rebuild_of(at.kit)
        assert (may.period_start, may.audited, may.is_done) == (MAY, 60, True)
        assert may.advice.endswith("nothing that is missing was to be billed")
        assert (june.raised, june.delivered, june.parked) == (50, 50, 0)


async def test_i6_dropped_units_stay_dropped(at: Audited) -> None:
    """After the loss they were parked, and later sent."""
    await at.desk.link("acme")
    await at.kit.record("acme", "tokens", 150)
    at.desk.emulator.fail_next("error", status=401)
    await at.desk.flush(everything=True, timeout_s=0)
    (one,) = await at.kit.outbox.list()
    await at.kit.outbox.drop(one.identifier, reason="a test")
    await at.kit.record("acme", "tokens", 7)
    await at.drainer.drain()
    await lose_all(at)
    await at.kit.customers.link("acme", "cus_acme", force=True)
    assert [(one.raised, one.parked) for one in await rebuild(at)] == [(157, 7)]
    assert await at.desk.places(meter="tokens") == {"parked": 7, "dead": 50}


async def test_i6_units_dropped_in_a_lost_period_are_not_advised(store_url: str, audit_url: str) -> None:
    """An operator has decided that they are not billed, and the books have forgotten it."""
    async with paying(store_url, audit_url=audit_url) as at:
        await at.kit.record("acme", "requests", 60)
        at.stripe.fail_next("error", status=400, code="invalid_value")
        await at.flush()
        (one,) = await at.kit.outbox.list()
        await at.kit.outbox.drop(one.identifier, reason="a test")
        await at.reach(JUNE + timedelta(days=2))
        at.go(at.clock.now() + timedelta(hours=3))
        await lose(at)
        (may,) = await rebuild_of(at.kit)
        assert (may.period_start, may.audited, may.is_done) == (MAY, 60, True)
        assert may.advice.endswith("nothing that is missing was to be billed")


async def test_a_lost_period_is_named_beside_the_open_one(store_url: str, tmp_path: Path) -> None:
    """Usage after the loss is of another period: then the lost one was not named."""
    async with paying(store_url, audit_url=sqlite_in(tmp_path)) as at:
        at.go(JUNE - timedelta(days=5))
        await at.kit.record("acme", "requests", 600)
        await at.drain()
        await lose_all_of(at.kit)
        await at.kit.record("acme", "requests", 1)
        (told,) = await rebuild_of(at.kit)
    assert (told.period_start, told.audited, told.is_done) == (MAY, 600, False)
    assert "have its subscription or plan known again first" in told.advice


async def test_usage_added_up_is_compared_after_its_period(store_url: str, tmp_path: Path) -> None:
    """It is entered in the next period, and so its own was taken for one that had not ended."""
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "rows", 5)
        await at.fold(0)
        at.desk.clock.set(at.desk.clock.now() + timedelta(days=30))
        await at.kit.record("acme", "rows", 7)
        await at.drainer.drain()
        assert await rebuild(at) == []
        await lose_all(at)
        assert [(one.recorded, one.audited, one.raised) for one in await rebuild(at)] == [
            (0, 5, 0),
            (0, 7, 7),
        ]


async def settle(at: Shop) -> None:
    """Parked units are compared with Stripe, twice, and those that it lacks are billed."""
    for _ in range(6):
        await at.kit.flush(everything=True, timeout_s=0)
        at.go(timedelta(minutes=40))


async def billed(at: Shop) -> tuple[list[tuple[int, int]], list[tuple[str, int]]]:
    """After the renewal: units and cents of the invoice items, and units by metered price."""
    await renewed(at)
    items = [(units, cents) for _, units, cents in await item_lines(at)]
    return items, sorted((price, units) for price, units, _ in await metered_lines(at))


async def test_i13_a_lost_item_is_billed_at_its_own_price(store_url: str, tmp_path: Path) -> None:
    """Its units were parked, and later sent at the price of now, which is higher."""
    async with shop(store_url, catalog=SWITCHED, selling=sell, audit_url=sqlite_in(tmp_path)) as at:
        await begin(at)
        await at.kit.record("acme", "words", 30)
        await at.kit.flush(everything=True)
        at.go(timedelta(minutes=10))
        await at.kit.record("acme", "words", 26)
        await switch(at, "seven")
        await at.kit.subscriptions.sync("acme")  # An item for 26 is queued.
        at.go(timedelta(minutes=10))
        await at.kit.record("acme", "words", 5)
        await lose(at)
        assert [(one.raised, one.delivered, one.parked) for one in await rebuild_of(at.kit)] == [(71, 30, 31)]
        await settle(at)
        assert await billed(at) == ([(26, 104)], [("price_four_words", 30), ("price_seven_words", 5)])
        (found,) = await at.kit.reconcile("acme", at=HALF)
        assert found.advice == ""


async def test_i13_lost_items_of_two_prices_are_each_billed_at_theirs(store_url: str, tmp_path: Path) -> None:
    """Units that Stripe has at one of them are taken off the dearer one alone."""
    async with shop(store_url, catalog=SWITCHED, selling=sell, audit_url=sqlite_in(tmp_path)) as at:
        await begin(at)
        await at.kit.record("acme", "words", 30)
        await at.kit.flush(everything=True)
        for plan, words in (("two", 5), ("seven", 8)):
            at.go(timedelta(minutes=10))
            await at.kit.record("acme", "words", words)
            await switch(at, plan)
            await at.kit.subscriptions.sync("acme")
        at.go(timedelta(minutes=10))
        await at.kit.record("acme", "words", 9)
        await lose(at)
        assert [(one.raised, one.delivered, one.parked) for one in await rebuild_of(at.kit)] == [(62, 30, 22)]
        await settle(at)
        items, metered = await billed(at)
        assert sorted(items) == [(5, 20), (8, 16)]
        assert metered == [("price_four_words", 30), ("price_seven_words", 9)]


async def test_i13_parked_units_keep_their_price(store_url: str, tmp_path: Path) -> None:
    """A change of plan before they were compared: they were sent at the price after it, or at none."""
    async with shop(store_url, catalog=SWITCHED, selling=sell, audit_url=sqlite_in(tmp_path)) as at:
        await begin(at)
        await at.kit.record("acme", "words", 26)
        await lose(at)
        assert [(one.raised, one.parked) for one in await rebuild_of(at.kit)] == [(36, 26)]
        await at.kit.subscriptions.change_plan("acme", "seven")
        await settle(at)
        assert await billed(at) == ([(26, 104)], [])
