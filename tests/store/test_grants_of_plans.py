"""Grants that a plan gives every period: known by what they are, and never more than the best plan gives."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.subscribed_customer import fetched, subscription
from meterkit import MeterKit, PlansError
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
MICRO = 10**6
HEAD = """
schema: 1
currency: usd
default_plan: none
meters: {tokens: {unit: token}}
credits: {ai: {costs: {tokens: 1 per 1}}}
plans:
  none: {price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 0, overage: deny}}}
"""


def plans(**grants: Sequence[str]) -> str:
    """A plans file whose plans differ by what they grant only."""
    lists = {
        name: ", ".join(f"{{{line}, every: period}}" for line in given) for name, given in grants.items()
    }
    return HEAD + "".join(
        f"  {name}: {{extends: none, grants: [{given}]}}\n" for name, given in lists.items()
    )


@asynccontextmanager
async def kit_on(url: str, text: str, clock: Clock | None = None) -> AsyncGenerator[MeterKit]:
    async with MeterKit(
        loads(text), clock=clock or Clock(NOW), redis_url=url, flush=False, shards=4, store_timeout=10.0
    ) as kit:
        yield kit


async def given_of(kit: MeterKit, customer: str = "acme") -> int:
    """Credits that were given to a customer in all, by the ledger."""
    lines = await kit.grants.ledger(customer)
    return sum(line.quantity for line in lines if line.entry in {"grant", "adjustment"}) // MICRO


async def test_two_lines_that_change_places_give_nothing_again(store_url: str) -> None:
    """F-21."""
    lines = "credit: ai, quantity: 500, priority: 10", "credit: ai, quantity: 48, priority: 20, expires: 45d"
    clock = Clock(NOW)
    async with kit_on(store_url, plans(pro=lines), clock) as kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 100)
        async with kit_on(store_url, plans(pro=lines[::-1]), clock) as later:
            assert (await later.usage("acme"))["balance"] == {"ai": 448}
            await later.record("acme", "tokens", 100)
            await kit.record("acme", "tokens", 100)
            assert (await kit.usage("acme"))["balance"] == {"ai": 248}
            assert await given_of(kit) == 548


async def test_a_grant_with_an_id_stays_one_where_its_terms_change(store_url: str) -> None:
    """F-21."""
    before = plans(pro=["credit: ai, quantity: 20, id: monthly, priority: 10"])
    after = plans(pro=["credit: ai, quantity: 30, id: monthly, priority: 99"])
    async with kit_on(store_url, before) as kit, kit_on(store_url, after) as later:
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 5)
        await later.record("acme", "tokens", 5)
        (grant,) = await later.grants.list("acme")
        assert (grant.quantity, grant.remaining, grant.priority) == (30, 20, 10)
        assert grant.grant_id == "plan/2031-06-01/monthly"


async def test_lines_that_differ_in_quantity_only_are_one_grant(store_url: str) -> None:
    """F-21."""
    text = plans(pro=["credit: ai, quantity: 20", "credit: ai, quantity: 5"])
    async with kit_on(store_url, text) as kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.record("acme", "tokens", 5)
        assert [(g.grant_id, g.remaining) for g in await kit.grants.list("acme")] == [
            ("plan/2031-06-01/50-period", 20)
        ]


def test_an_id_names_one_grant_of_a_plan() -> None:
    """F-21."""
    with pytest.raises(PlansError, match="'a' is the id of another grant of ai"):
        loads(plans(pro=["credit: ai, quantity: 20, id: a", "credit: ai, quantity: 5, id: a"]))
    loads(plans(pro=["credit: ai, quantity: 20, id: a", "meter: tokens, quantity: 5, id: a"]))


GRANT = st.builds(
    "credit: ai, quantity: {}, priority: {}{}".format,
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.sampled_from(["", ", expires: 9d", ", expires: 90d", ", id: a", ", id: b"]),
)


@pytest.mark.dear("ten sequences of plans")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offers=st.lists(
        st.lists(GRANT, max_size=4, unique_by=lambda line: line.partition("id: ")[2] or line),
        min_size=2,
        max_size=4,
    ),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=12),
)
async def test_no_sequence_of_plans_gives_more_than_the_most_generous(
    valkey: Server, offers: list[list[str]], steps: list[tuple[int, int]]
) -> None:
    """F-21."""
    valkey.command("FLUSHALL")
    text = plans(**{f"p{nth}": offer for nth, offer in enumerate(offers)})
    totals = [sum(int(line.split("quantity: ")[1].split(",")[0]) for line in offer) for offer in offers]
    most = 0
    async with kit_on(valkey.url, text) as kit:
        for plan, used in steps:
            nth = plan % len(offers)
            await kit.customers.set_plan("acme", f"p{nth}")
            await kit.record("acme", "tokens", used)
            if used:
                most = max(most, totals[nth])
            assert await given_of(kit) == max(most, totals[nth])


# F-22c: a recurring grant that outlives its period is given though nothing was used in that period.


JUNE, JULY, AUGUST, SEPTEMBER = (datetime(2031, month, 10, 12, tzinfo=UTC) for month in (6, 7, 8, 9))
KEPT = plans(kept=["credit: ai, quantity: 100, expires: 61d"])


async def balance_of(kit: MeterKit) -> int:
    """The balance as it is shown; decisions know the same."""
    shown = (await kit.usage("acme"))["balance"]["ai"]
    assert (await kit.check("acme", "tokens", max(1, shown))).allowed == (shown > 0)
    assert not (await kit.check("acme", "tokens", shown + 1)).allowed
    return shown


async def test_grants_of_periods_without_use_count_until_they_expire(store_url: str) -> None:
    clock = Clock(JUNE)
    async with kit_on(store_url, KEPT, clock) as kit:
        await kit.customers.set_plan("acme", "kept")
        clock.set(JULY)
        assert await balance_of(kit) == 200
        assert (await kit.consume("acme", "tokens", 130)).allowed
        assert [grant.remaining for grant in await kit.grants.list("acme")] == [0, 70]
        clock.set(SEPTEMBER)  # That of June has expired; in August nothing was used.
        assert await balance_of(kit) == 200
        await kit.record("acme", "tokens", 1)
        found = [(f"{grant.effective_at:%b}", grant.remaining) for grant in await kit.grants.list("acme")]
        assert found == [("Aug", 99), ("Sep", 100), ("Jun", 0), ("Jul", 0)]
        assert sum(line.quantity for line in await kit.grants.ledger("acme")) == 199 * MICRO


async def test_a_subscription_gets_them_from_its_beginning_on(store_url: str) -> None:
    clock = Clock(JUNE)
    async with kit_on(store_url, KEPT, clock) as kit:
        first = subscription(plan="kept", start_ms=JUNE, end_ms=JULY, anchor_ms=JUNE, created_ms=JUNE)
        clock.set(JUNE + timedelta(days=2))
        await fetched(kit, first)
        assert await balance_of(kit) == 100
        clock.set(JULY + timedelta(days=1))  # Before any word of the renewal.
        assert await balance_of(kit) == 200
        clock.set(AUGUST + timedelta(days=1))
        assert await balance_of(kit) == 200
