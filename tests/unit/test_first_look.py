"""Which subscriptions the flusher fetches before it sends usage that has waited."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import PERIOD_MS, kit_alone, subscription
from meterkit.decisions.customer_state import CustomerState
from meterkit.delivery.first_look import WAITED_MS, FirstLook
from meterkit.errors import StripeUnavailableError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.store.store import Store

pytestmark = pytest.mark.anyio

SOLD: Final = subscription(metered="requests=price_1")
STATES: Final = {
    "sold": CustomerState(subscription=SOLD).dump(),
    "flat": CustomerState(subscription=replace(SOLD, metered="")).dump(),
    "ended": CustomerState(subscription=replace(SOLD, status="canceled", ended_at_ms=PERIOD_MS)).dump(),
    "damaged": "{",
    "odd": '"no object"',
}


@asynccontextmanager
async def a_store(clock: Clock) -> AsyncGenerator[Store]:
    async with kit_alone(clock=clock) as kit:
        admin = await kit.store.admin()
        for name, data in STATES.items():
            state = kit.store.keys.customer(name).state
            await admin.ask(admin.client.hset(state, mapping={"data": data}))
        yield kit.store


async def test_customers_with_metered_prices_are_looked_at_each_two_minutes() -> None:
    clock, looked = Clock(NOW), list[str]()

    async def look(customer: str) -> None:
        looked.append(customer)

    async with a_store(clock) as store:
        first, names = FirstLook(store, look), [*STATES, "nobody"]
        assert first.unseen_of(names) == names
        assert (await first.look(names), looked) == (set(), ["sold"])
        assert first.unseen_of([*names, "another"]) == ["another"]
        clock.set(NOW + timedelta(milliseconds=WAITED_MS - 1_000))
        assert first.unseen_of(names) == []
        clock.set(NOW + timedelta(milliseconds=WAITED_MS))
        assert first.unseen_of(names) == names


async def test_whom_stripe_does_not_answer_for_stays_unseen() -> None:
    async def look(_: str) -> None:
        raise StripeUnavailableError("no answer")

    async with a_store(Clock(NOW)) as store:
        first = FirstLook(store, look)
        assert await first.look(["sold", "flat"]) == {"sold"}
        assert first.unseen_of(["sold", "flat"]) == ["sold"]


async def test_without_a_way_to_look_nobody_is_unseen() -> None:
    async with a_store(Clock(NOW)) as store:
        assert FirstLook(store, None).unseen_of(["sold"]) == []
