"""Stripe's test clocks, and the emulator's own clock moved from outside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from drivers.emulated_account import account
from drivers.emulated_shop import refused, shop
from drivers.emulated_times import DAY, HOUR, MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

JUNE = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())


async def clocked(client: Any, at: int = SECOND) -> tuple[str, str]:
    """A clock and a customer with a card that lives by it."""
    clock = await client.test_helpers.test_clocks.create(frozen_time=at, name="Run")
    customer = await client.customers.create(test_clock=clock.id, payment_method="pm_card_visa")
    cards = await client.customers.payment_methods.list(customer.id)
    await client.customers.update(customer.id, invoice_settings={"default_payment_method": cards.data[0].id})
    return clock.id, customer.id


async def subscribed(client: Any, customer: str, price: str = "price_10") -> Any:
    return (await client.subscriptions.create(customer=customer, items=[{"price": price}])).id


def clock_events(emulator: StripeEmulator) -> list[str]:
    return [each.type.rpartition(".")[2] for each in emulator.webhook_events if ".test_clock." in each.type]


async def test_objects_of_a_clock_move_with_it_alone(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage."""
    clock, customer = await clocked(client)
    mine, other = await subscribed(client, customer), await subscribed(client, "cus_1")
    advancing = await client.test_helpers.test_clocks.advance(clock, frozen_time=MAY + 2 * HOUR)
    assert (advancing.status, advancing.frozen_time) == ("advancing", SECOND)
    assert advancing.status_details.advancing.target_frozen_time == MAY + 2 * HOUR
    ready = await client.test_helpers.test_clocks.retrieve(clock)
    assert (ready.status, ready.frozen_time, ready.name) == ("ready", MAY + 2 * HOUR, "Run")
    later = await client.invoices.create(customer=customer)
    assert later.created == MAY + 2 * HOUR
    await client.invoices.delete(later.id)
    invoices = await client.invoices.list(subscription=mine)
    shown = [(each.created, each.status, each.test_clock) for each in invoices.data]
    assert shown == [(MAY, "paid", clock), (SECOND, "paid", clock)]
    assert len((await client.invoices.list(subscription=other)).data) == 1
    seen = await client.subscriptions.retrieve(mine)
    assert (seen.test_clock, seen["items"].data[0].current_period_start) == (clock, MAY)
    assert clock_events(emulator) == ["created", "advancing", "ready"]


async def test_a_clock_goes_forward_by_at_most_two_intervals(client: Any) -> None:
    clocks = client.test_helpers.test_clocks
    clock, customer = await clocked(client)
    two_years = int(datetime(2028, 4, 1, tzinfo=UTC).timestamp())
    await refused(clocks.advance(clock, frozen_time=two_years + 1), "more than two intervals")
    await subscribed(client, customer)
    for to, said in [(SECOND, "only be advanced"), (JUNE + 1, f"must be at most {JUNE}")]:
        await refused(clocks.advance(clock, frozen_time=to), said)
    assert (await clocks.advance(clock, frozen_time=JUNE)).status == "advancing"
    made = await client.subscription_schedules.create(
        customer=(await clocked(client))[1],
        start_date=SECOND + DAY,
        phases=[{"items": [{"price": "price_10"}], "duration": {"interval": "month"}}],
    )
    await refused(clocks.advance(str(made.test_clock), frozen_time=JUNE + 1), f"must be at most {JUNE}")
    await refused(clocks.advance(clock), "Missing required param: frozen_time")


async def test_lists_show_objects_of_a_clock_only_where_it_is_named(client: Any) -> None:
    """https://docs.stripe.com/api/subscriptions/list#list_subscriptions-test_clock."""
    clock, customer = await clocked(client)
    mine = await subscribed(client, customer)
    assert [each.id for each in (await client.customers.list()).data] == ["cus_1"]
    of_clock = {"test_clock": clock}
    assert [each.id for each in (await client.customers.list(**of_clock)).data] == [customer]
    listed = client.subscriptions.list
    assert (await listed()).data == []
    assert [each.id for each in (await listed(**of_clock)).data] == [mine]
    assert [each.id for each in (await listed(customer=customer)).data] == [mine]
    assert [each.id for each in (await client.test_helpers.test_clocks.list()).data] == [clock]


async def test_a_clock_has_few_customers_and_they_few_subscriptions(client: Any) -> None:
    """https://docs.stripe.com/billing/testing/test-clocks: three each."""
    clock, customer = await clocked(client)
    for _ in range(2):
        await client.customers.create(test_clock=clock)
    await refused(client.customers.create(test_clock=clock), "at most 3 customers")
    for _ in range(3):
        await subscribed(client, customer)
    await refused(subscribed(client, customer), "at most 3 subscriptions")
    await refused(client.customers.create(test_clock="clock_none"), "No such test clock: 'clock_none'")
    await refused(client.customers.update("cus_1", test_clock=clock), "unknown parameter: test_clock")


async def test_a_deleted_clock_takes_its_customers_along(client: Any, emulator: StripeEmulator) -> None:
    clock, customer = await clocked(client)
    mine = await subscribed(client, customer)
    assert (await client.test_helpers.test_clocks.delete(clock)).deleted is True
    assert (await client.customers.retrieve(customer)).deleted is True
    assert (await client.subscriptions.retrieve(mine)).status == "canceled"
    await refused(client.test_helpers.test_clocks.retrieve(clock), "No such test clock")
    async with account(emulator, key="sk_live_1") as live:
        await refused(live.test_helpers.test_clocks.create(frozen_time=SECOND), "only be used in test mode")


async def test_the_own_clock_moves_from_outside(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """For a process that nothing reaches but HTTP: ``meterkit stripe emulator``."""
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url) as own:
        subscription = await subscribed(client, "cus_1")
        now = (await own.get("/_emulator/clock")).json()
        assert now == {"now": SECOND, "utc": "2026-04-01T00:00:00+00:00"}
        failing = await own.post("/_emulator/customers/cus_1", json={"payments": "fail"})
        assert failing.json() == {"customer": "cus_1", "payments": "fail"}
        moved = await own.post("/_emulator/clock", json={"to": "2026-05-01T02:00:00Z"})
        assert (moved.status_code, moved.json()["now"]) == (200, MAY + 2 * HOUR)
        assert (await client.subscriptions.retrieve(subscription)).status == "past_due"
        better = {"payments": "succeed", "card": "pm_card_mastercard"}
        assert (await own.post("/_emulator/customers/cus_1", json=better)).json()["payments"] == "succeed"
        await own.post("/_emulator/clock", json={"advance": 3 * DAY})
        assert (await client.subscriptions.retrieve(subscription)).status == "active"
        assert clock() == MAY + 3 * DAY + 2 * HOUR
        cards = await client.customers.payment_methods.list("cus_1")
        assert [card.card.last4 for card in cards.data if card.card is not None] == ["4444", "4242"]


async def test_a_clock_that_runs_goes_on_from_where_it_is_moved_to() -> None:
    now = [float(SECOND)]
    emulator = StripeEmulator(clock=lambda: now[0])
    for by in (DAY, HOUR):
        emulator.move_clock(to=emulator.clock() + by)
    now[0] += 5
    assert emulator.clock() == SECOND + DAY + HOUR + 5
    with pytest.raises(ValueError, match="cannot be moved back: it is 2026-04-02T01:00:05"):
        emulator.move_clock(to=SECOND)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("clock", {"to": "2026-03-01T00:00:00Z"}, "cannot be moved back"),
        ("clock", {"to": "2026-05-01"}, "has no time zone"),
        ("clock", {"advance": 1, "to": 2}, "give either"),
        ("clock", [], "send a JSON object"),
        ("clock", {"advance": 10**18}, "at most"),
        ("customers/cus_1", {"payments": "maybe"}, "must be fail or succeed"),
        ("customers/cus_none", {"payments": "fail"}, "No such customer"),
    ],
)
async def test_controls_that_make_no_sense_are_refused(path: str, body: Any, said: str) -> None:
    emulator, clock = shop()
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url) as own:
        answer = await own.post(f"/_emulator/{path}", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert clock() == SECOND
