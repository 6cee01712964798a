"""What Stripe has that a store has forgotten: by sums, by the minutes of the gap, and by the journal."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import kit_alone
from drivers.stripe_objects import Counted, Rows
from meterkit.customers.links import Delivered
from meterkit.decisions.keys import meter_token
from meterkit.delivery.forgotten import Forgotten, Gap
from meterkit.outbox.journal import JournalRow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from meterkit.store.store import Store

pytestmark = pytest.mark.anyio

MINUTE_S: Final = 60
HOUR_S: Final = 3_600
AT_S: Final = int(NOW.timestamp()) // MINUTE_S * MINUTE_S - 40 * HOUR_S
"""A whole minute: the first instant of each gap here."""
FAR_S: Final = AT_S - 10 * HOUR_S
"""A minute outside of each gap."""
SINCE_MS: Final = (AT_S - 48 * HOUR_S) * 1000
LINE: Final = ("acme", "cus_acme", "api_requests")


def gap(lasts_s: int = 10 * MINUTE_S) -> Gap:
    return Gap(from_ms=AT_S * 1000, till_ms=(AT_S + lasts_s) * 1000)


def made(identifier: str, minute_s: int, value: int) -> Delivered:
    return Delivered(identifier, *LINE, minute_s, value)


def row(
    identifier: str, value: int, *, delivered_s: int = AT_S, minute_s: int = AT_S, customer: str = "cus_acme"
) -> JournalRow:
    return JournalRow(
        identifier=identifier,
        customer="acme",
        event_name="api_requests",
        stripe_customer=customer,
        minute_s=minute_s,
        value=value,
        delivered_at_ms=delivered_s * 1000,
    )


@asynccontextmanager
async def a_store() -> AsyncGenerator[Store]:
    async with kit_alone() as kit:
        yield kit.store


async def unknown(
    store: Store, counted: Counted, *known: Delivered, journal: Rows | None = None, **asked: Any
) -> int:
    given: dict[str, Any] = {
        "since_ms": SINCE_MS, "gap": gap(), "names": {}, "taken_s": (), "deliveries": {LINE: known}
    }  # fmt: skip
    names = (LINE[0], LINE[2], LINE[1])
    return await Forgotten(store, counted, journal).unknown(*names, **given | asked)


@pytest.mark.parametrize(
    ("lasts_s", "is_exact", "is_by_minutes"),
    [
        (6 * HOUR_S, False, True),
        (6 * HOUR_S + MINUTE_S, False, False),
        (6 * HOUR_S + MINUTE_S, True, True),
        (36 * HOUR_S, True, True),
        (36 * HOUR_S + MINUTE_S, True, False),
    ],
)
async def test_i6_minutes_tell_apart_what_hours_do_not(
    lasts_s: int, *, is_exact: bool, is_by_minutes: bool
) -> None:
    async with a_store() as store:
        # With the minute before it, and the five behind it.
        span = gap(lasts_s - 5 * MINUTE_S)
        hidden = Counted({AT_S: 5, AT_S + MINUTE_S: -5})
        assert await unknown(store, hidden, gap=span, is_exact=is_exact) == (5 if is_by_minutes else 0)
        apart = Counted({AT_S: 5, AT_S + 2 * HOUR_S: -5})
        assert await unknown(store, apart, gap=span, is_exact=is_exact) == 5


@pytest.mark.parametrize(
    ("minutes", "expected"), [(-2, 0), (-1, 5), (0, 5), (10, 5), (11, 0), (13, 0), (14, 0)]
)
async def test_i6_minutes_are_those_from_one_before_the_gap_to_its_last(minutes: int, expected: int) -> None:
    async with a_store() as store:
        counted = Counted({AT_S + minutes * MINUTE_S: 5, FAR_S: -5})
        assert await unknown(store, counted) == expected


@pytest.mark.parametrize(
    "why", ["taken by an intent", "taken by a delivery", "taken at stripe", "not known", "exact", "a rest"]
)
async def test_i6_where_the_last_minute_is_taken_three_behind_it_are_asked_for(why: str) -> None:
    async with a_store() as store:
        last_s = AT_S + 10 * MINUTE_S
        units = {last_s + 3 * MINUTE_S: 5, last_s + 4 * MINUTE_S: 7, FAR_S: -12}
        known, asked = list[Delivered](), dict[str, Any]()
        if why == "taken by an intent":
            asked["taken_s"] = {last_s}
        elif why == "taken by a delivery":
            known, units[last_s] = [made("one", last_s, 0)], 0
        elif why == "taken at stripe":
            units |= {last_s: -2, FAR_S: -10}
        elif why == "not known":
            asked["taken_s"] = None
        elif why == "exact":
            asked["is_exact"] = True
        else:
            units[FAR_S] = -13
        counted = Counted(units)
        assert await unknown(store, counted, *known, **asked) == 5
        assert max(counted.asked) == last_s + 3 * MINUTE_S


async def test_i6_the_totals_of_an_event_name_since_the_period_are_what_is_known() -> None:
    async with a_store() as store:
        admin = await store.admin()
        tokens = [meter_token(name) for name in ("requests", "calls", "tokens")]
        totals = {
            f"{SINCE_MS}|{tokens[0]}d": 40,
            f"{SINCE_MS + 1}|{tokens[1]}d": 20,
            f"{SINCE_MS}|{tokens[0]}D": 10,
            f"{SINCE_MS - 1}|{tokens[0]}d": 300,
            f"{SINCE_MS}|{tokens[2]}d": 500,
            f"{SINCE_MS}|{tokens[0]}p": 700,
            f"{SINCE_MS}|label": "none",
        }
        await admin.ask(admin.client.hset(store.keys.customer("acme").totals, mapping=totals))
        names = dict(zip(tokens, ("api_requests", "api_requests", "ai_tokens"), strict=True))
        assert await unknown(store, Counted({FAR_S: 56}), names=names) == 6
        assert await unknown(store, Counted({FAR_S: 49}), names=names, is_exact=True) == 0
        # By the minutes there are more than by the sum, which usage that was taken back hides.
        counted = Counted({AT_S: 5, FAR_S: 47})
        assert await unknown(store, counted, names=names, is_exact=True) == 5


async def test_i6_deliveries_of_one_minute_are_known_together() -> None:
    async with a_store() as store:
        known = [made("one", AT_S, 3), made("two", AT_S, 4)]
        assert await unknown(store, Counted({AT_S: 12, FAR_S: -12}), *known) == 5
        assert await unknown(store, Counted({AT_S: 7, FAR_S: -12}), *known) == 0


async def test_i6_one_unit_by_the_sum_or_by_the_journal_is_enough_without_the_minutes() -> None:
    async with a_store() as store:
        counted = Counted({FAR_S: 1})
        assert (await unknown(store, counted), len(counted.asked)) == (1, 1)
        counted = Counted({FAR_S: 9})
        journal = Rows(row("one", 1))
        assert (await unknown(store, counted, journal=journal), counted.asked) == (1, [])
        # Where the number matters, the largest one is it.
        assert await unknown(store, counted, journal=journal, is_exact=True) == 9
        journal = Rows(row("one", 20))
        assert await unknown(store, counted, journal=journal, is_exact=True) == 20


@pytest.mark.parametrize(
    ("written", "known", "expected"),
    [
        ([row("one", 30)], [], 30),
        ([row("one", 30)], [made("one", AT_S, 30)], 0),
        # What takes units back hides nothing of what was sent.
        ([row("one", 30), row("two", -10)], [], 30),
        ([row("one", 30), row("two", 9, customer="cus_other")], [], 30),
        ([row("one", 30, delivered_s=AT_S - MINUTE_S)], [], 30),
        ([row("one", 30, delivered_s=AT_S - MINUTE_S - 1)], [], 0),
        # What a comparison has counted stands for what the journal has, within the gap.
        ([row("one", 30)], [made("counted", AT_S - MINUTE_S, 25)], 5),
        ([row("one", 30)], [made("counted", AT_S - 2 * MINUTE_S, 25)], 30),
        ([row("one", 30)], [made("counted", AT_S, -25)], 30),
        ([row("one", 30)], [made("counted", AT_S, 1)], 29),
        ([row("one", 30)], [made("counted", AT_S, 45)], 0),
        # The journal says of both that they were sent, the one long before it was restored.
        ([row("one", 30), row("two", 25, delivered_s=AT_S - 24 * HOUR_S)], [made("two", AT_S, 25)], 30),
    ],
)
async def test_i6_units_that_only_the_journal_has_are_forgotten(
    written: list[JournalRow], known: list[Delivered], expected: int
) -> None:
    async with a_store() as store:
        assert await unknown(store, Counted({}), *known, journal=Rows(*written)) == expected


async def test_what_went_to_other_stripe_customers_is_counted_by_its_minutes() -> None:
    async with a_store() as store:
        rows = [
            row(f"{minutes}-{customer}", times * value, minute_s=AT_S + minutes * MINUTE_S, customer=customer)
            for minutes, value in ((-1, 1), (0, 10), (1, 100), (2, 1_000))
            for customer, times in (("cus_acme", 2), ("cus_other", 1))
        ]
        found = Forgotten(store, Counted({}), Rows(*rows))
        names = (LINE[0], LINE[2], LINE[1])
        assert await found.elsewhere(*names, (AT_S, AT_S + 2 * MINUTE_S)) == 110
        assert await Forgotten(store, Counted({})).elsewhere(*names, (AT_S, AT_S + MINUTE_S)) == 0


@pytest.mark.parametrize(
    ("begins_s", "known", "expected"),
    [(-1, [], 30), (0, [], 30), (1, [], None), (-1, [made("counted", AT_S, 25)], None)],
)
async def test_the_journal_is_gone_by_where_it_begins_before_the_gap_and_lacks_nothing(
    begins_s: int, known: list[Delivered], expected: int | None
) -> None:
    class Begun(Rows):
        async def begun_ms(self) -> int:
            return (AT_S + begins_s) * 1000

    class Knowing(Forgotten):
        async def delivered(self, customer: str) -> Mapping[tuple[str, str, str], Sequence[Delivered]]:
            assert customer == "acme"
            return {LINE: known}

    async with a_store() as store:
        found = Knowing(store, Counted({}), Begun(row("one", 30)))
        assert await found.journaled(LINE[0], LINE[2], LINE[1], gap()) == expected
