"""Until when it is waited for that Stripe has counted what was delivered."""

from __future__ import annotations

from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import HERE_S, PERIOD_MS, kit_alone
from drivers.stripe_objects import ObjectsAtStripe
from meterkit.decisions.keys import meter_token
from meterkit.delivery.summaries import until_counted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from meterkit import MeterKit
    from meterkit.stripe.api import Objects
    from meterkit.stripe.request import Parameter

pytestmark = pytest.mark.anyio

METERS: Final[Any] = {"/v1/billing/meters": [{"id": "mtr_1", "event_name": "api_requests"}]}


class Sums(ObjectsAtStripe):
    """What one meter has counted, by minute (s)."""

    def __init__(self, units: Mapping[int, int]) -> None:
        super().__init__(METERS)
        self._units = units

    async def list(self, path: str, params: Mapping[str, Parameter] | None = None) -> Objects:
        if not path.endswith("/event_summaries"):
            return await super().list(path, params)
        span: Any = params
        until_s = span["end_time"]
        counted = sum(units for at_s, units in self._units.items() if span["start_time"] <= at_s < until_s)
        return [{"aggregated_value": float(counted)}]


class Moving:
    """A clock that goes on a little each time that it is read, once a test says so."""

    def __init__(self) -> None:
        self.now_s, self.step_s = NOW.timestamp(), 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@asynccontextmanager
async def delivered(units: int) -> AsyncGenerator[tuple[MeterKit, Moving]]:
    clock = Moving()
    async with kit_alone(clock=clock) as kit:
        if units:
            admin, field = await kit.store.admin(), f"{PERIOD_MS}|{meter_token('requests')}d"
            await admin.ask(admin.client.hset(kit.store.keys.customer("acme").totals, mapping={field: units}))
        yield kit, clock


async def left(kit: MeterKit, stripe: ObjectsAtStripe) -> int:
    return await until_counted(kit.store, stripe, "acme", "cus_acme", timeout_s=0.0)


async def test_where_nothing_was_delivered_stripe_is_not_asked() -> None:
    async with delivered(0) as (kit, _):
        stripe = Sums({})
        assert (await left(kit, stripe), stripe.asked) == (0, {})


@pytest.mark.parametrize(("counted", "lacks"), [(5, 0), (7, 0), (3, 2), (0, 5)])
async def test_units_that_stripe_has_not_counted_in_time_are_left(counted: int, lacks: int) -> None:
    async with delivered(5) as (kit, _):
        assert await left(kit, Sums({HERE_S: counted})) == lacks


async def test_what_is_stamped_ahead_is_waited_for_unless_the_clock_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meterkit.delivery.summaries._PAUSE_S", 0.001)
    monkeypatch.setattr("meterkit.delivery.summaries._STILL_S", 0.03)
    async with delivered(5) as (kit, clock):
        stripe, began = Sums({HERE_S + 3 * 60: 5}), monotonic()
        assert await left(kit, stripe) == 5
        assert monotonic() - began >= 0.03
        clock.step_s = 1.0
        assert await left(kit, stripe) == 0
        assert HERE_S + 180 <= clock.now_s < HERE_S + 300
