"""Stripe's test clocks, and the emulator's own clock moved from outside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, HOUR, MAY, SECOND, shop
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

JUNE = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())


async def clocked(client: stripe.StripeClient, at: int = SECOND) -> tuple[str, str]:
    """A clock and a customer with a card that lives by it."""
    clock = await client.v1.test_helpers.test_clocks.create_async({"frozen_time": at, "name": "Run"})
    wanted: Any = {"test_clock": clock.id, "payment_method": "pm_card_visa"}
    customer = await client.v1.customers.create_async(wanted)
    cards = await client.v1.customers.payment_methods.list_async(customer.id)
    default: Any = {"invoice_settings": {"default_payment_method": cards.data[0].id}}
    await client.v1.customers.update_async(customer.id, default)
    return clock.id, customer.id


async def subscribed(client: stripe.StripeClient, customer: str, price: str = "price_10") -> str:
    wanted: Any = {"customer": customer, "items": [{"price": price}]}
    return (await client.v1.subscriptions.create_async(wanted)).id


def clock_events(emulator: StripeEmulator) -> list[str]:
    return [each.type.rpartition(".")[2] for each in emulator.webhook_events if ".test_clock." in each.type]


async def test_objects_of_a_clock_move_with_it_alone(
    client: stripe.StripeClient, emulator: StripeEmulator
) -> None:
    """https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage."""
    clock, customer = await clocked(client)
    mine, other = await subscribed(client, customer), await subscribed(client, "cus_1")
    advancing = await client.v1.test_helpers.test_clocks.advance_async(clock, {"frozen_time": MAY + 2 * HOUR})
    assert (advancing.status, advancing.frozen_time) == ("advancing", SECOND)
    assert advancing.status_details.advancing is not None
    assert advancing.status_details.advancing.target_frozen_time == MAY + 2 * HOUR
    ready = await client.v1.test_helpers.test_clocks.retrieve_async(clock)
    assert (ready.status, ready.frozen_time, ready.name) == ("ready", MAY + 2 * HOUR, "Run")
    invoices = await client.v1.invoices.list_async({"subscription": mine})
    assert [(each.created, each.status, each.test_clock) for each in invoices.data] == [
        (MAY, "paid", clock),
        (SECOND, "paid", clock),
    ]
    assert len((await client.v1.invoices.list_async({"subscription": other})).data) == 1
    seen = await client.v1.subscriptions.retrieve_async(mine)
    assert (seen.test_clock, seen["items"].data[0].current_period_start) == (clock, MAY)
    assert clock_events(emulator) == ["created", "advancing", "ready"]


async def test_a_clock_goes_forward_by_at_most_two_intervals(client: stripe.StripeClient) -> None:
    clocks = client.v1.test_helpers.test_clocks
    clock, customer = await clocked(client)
    two_years = int(datetime(2028, 4, 1, tzinfo=UTC).timestamp())
    with pytest.raises(stripe.InvalidRequestError, match="more than two intervals"):
        await clocks.advance_async(clock, {"frozen_time": two_years + 1})
    await subscribed(client, customer)
    for to, said in [(SECOND, "only be advanced"), (JUNE + 1, f"must be at most {JUNE}")]:
        with pytest.raises(stripe.InvalidRequestError, match=said):
            await clocks.advance_async(clock, {"frozen_time": to})
    assert (await clocks.advance_async(clock, {"frozen_time": JUNE})).status == "advancing"
    schedule: Any = {
        "customer": (await clocked(client))[1],
        "start_date": SECOND + DAY,
        "phases": [{"items": [{"price": "price_10"}], "duration": {"interval": "month"}}],
    }
    made = await client.v1.subscription_schedules.create_async(schedule)
    assert made.test_clock is not None
    with pytest.raises(stripe.InvalidRequestError, match=f"must be at most {JUNE}"):
        await clocks.advance_async(str(made.test_clock), {"frozen_time": JUNE + 1})
    nothing: Any = {}
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param: frozen_time"):
        await clocks.advance_async(clock, nothing)


async def test_lists_show_objects_of_a_clock_only_where_it_is_named(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/subscriptions/list#list_subscriptions-test_clock."""
    clock, customer = await clocked(client)
    mine = await subscribed(client, customer)
    assert [each.id for each in (await client.v1.customers.list_async()).data] == ["cus_1"]
    of_clock: Any = {"test_clock": clock}
    assert [each.id for each in (await client.v1.customers.list_async(of_clock)).data] == [customer]
    listed = client.v1.subscriptions.list_async
    assert (await listed()).data == []
    assert [each.id for each in (await listed(of_clock)).data] == [mine]
    assert [each.id for each in (await listed({"customer": customer})).data] == [mine]
    assert [each.id for each in (await client.v1.test_helpers.test_clocks.list_async()).data] == [clock]


async def test_a_clock_has_few_customers_and_they_few_subscriptions(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/billing/testing/test-clocks: three each."""
    clock, customer = await clocked(client)
    for _ in range(2):
        await client.v1.customers.create_async({"test_clock": clock})
    with pytest.raises(stripe.InvalidRequestError, match="at most 3 customers"):
        await client.v1.customers.create_async({"test_clock": clock})
    for _ in range(3):
        await subscribed(client, customer)
    with pytest.raises(stripe.InvalidRequestError, match="at most 3 subscriptions"):
        await subscribed(client, customer)
    with pytest.raises(stripe.InvalidRequestError, match="No such test clock: 'clock_none'"):
        await client.v1.customers.create_async({"test_clock": "clock_none"})
    update: Any = {"test_clock": clock}
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: test_clock"):
        await client.v1.customers.update_async("cus_1", update)


async def test_a_deleted_clock_takes_its_customers_along() -> None:
    emulator, _ = shop()
    async with account(emulator) as client:
        clock, customer = await clocked(client)
        mine = await subscribed(client, customer)
        assert (await client.v1.test_helpers.test_clocks.delete_async(clock)).deleted is True
        assert (await client.v1.customers.retrieve_async(customer)).deleted is True
        assert (await client.v1.subscriptions.retrieve_async(mine)).status == "canceled"
        with pytest.raises(stripe.InvalidRequestError, match="No such test clock"):
            await client.v1.test_helpers.test_clocks.retrieve_async(clock)
    async with account(emulator, key="sk_live_1") as client:
        with pytest.raises(stripe.InvalidRequestError, match="only be used in test mode"):
            await client.v1.test_helpers.test_clocks.create_async({"frozen_time": SECOND})


async def test_the_own_clock_is_moved_from_outside() -> None:
    """For a process that nothing reaches but HTTP: ``meterkit stripe emulator``."""
    emulator, clock = shop()
    async with account(emulator) as client, emulator.serve() as url, httpx.AsyncClient(base_url=url) as own:
        subscription = await subscribed(client, "cus_1")
        assert (await own.get("/_emulator/clock")).json() == {
            "now": SECOND,
            "utc": "2026-04-01T00:00:00+00:00",
        }
        failing = await own.post("/_emulator/customers/cus_1", json={"payments": "fail"})
        assert failing.json() == {"customer": "cus_1", "payments": "fail"}
        moved = await own.post("/_emulator/clock", json={"to": "2026-05-01T02:00:00Z"})
        assert (moved.status_code, moved.json()["now"]) == (200, MAY + 2 * HOUR)
        assert (await client.v1.subscriptions.retrieve_async(subscription)).status == "past_due"
        mended = await own.post(
            "/_emulator/customers/cus_1", json={"payments": "succeed", "card": "pm_card_mastercard"}
        )
        assert mended.json()["payments"] == "succeed"
        await own.post("/_emulator/clock", json={"advance": 3 * DAY})
        assert (await client.v1.subscriptions.retrieve_async(subscription)).status == "active"
        assert clock() == MAY + 3 * DAY + 2 * HOUR
        cards = await client.v1.customers.payment_methods.list_async("cus_1")
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
        ("clock", [], "no JSON object"),
        ("clock", {"advance": 10**18}, "at most"),
        ("customers/cus_1", {"payments": "maybe"}, "must be fail or succeed"),
        ("customers/cus_none", {"payments": "fail"}, "No such customer"),
    ],
)
async def test_controls_that_make_no_sense_are_refused(path: str, body: Any, said: str) -> None:
    emulator, clock = shop()
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url) as own:
        refused = await own.post(f"/_emulator/{path}", json=body)
    assert refused.status_code == 400
    assert said in refused.json()["error"]
    assert clock() == SECOND
