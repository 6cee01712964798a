"""When the closer looks at a close again, and when it reports one: by the second."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import NOW, PLANS
from drivers.kept_intents import PERIOD_MS, kit_alone
from drivers.stripe_objects import ObjectsAtStripe
from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import meter_token
from meterkit.delivery.closing import Closer
from meterkit.outbox.closes import Close, Closes
from meterkit.outbox.outbox import Outbox
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)
JULY_MS: Final = int(JULY.timestamp() * 1000)
MINUTE: Final = timedelta(minutes=1)
SECOND: Final = timedelta(seconds=1)


async def note(kit: MeterKit) -> None:
    """Note the close of acme's June for the closer."""
    closes = Closes(kit.store, await kit.store.admin())
    close = Close(shard=0, customer="acme", end_ms=JULY_MS)
    await closes.note(0, {close.member: JULY_MS})


@asynccontextmanager
async def unconfirmed() -> AsyncGenerator[tuple[Closer, Clock]]:
    """A close that Stripe does not confirm."""
    clock = Clock(NOW)
    async with kit_alone(clock=clock) as kit:
        await kit.record("acme", "requests", 2)
        await note(kit)
        yield Closer(kit.store, lambda: ObjectsAtStripe({"/v1/billing/meters": 401})), clock


async def test_a_close_is_looked_at_each_five_minutes_and_told_after_45() -> None:
    async with unconfirmed() as (closer, clock):
        for after, found in (
            (11 * MINUTE, (1, 0)),
            (16 * MINUTE - SECOND, (0, 0)),
            (16 * MINUTE, (1, 0)),
            (45 * MINUTE - SECOND, (1, 0)),
            (50 * MINUTE - SECOND, (0, 1)),
            (110 * MINUTE - 2 * SECOND, (0, 0)),
            (110 * MINUTE - SECOND, (1, 0)),
        ):
            clock.set(JULY + after)
            looked = await closer.look()
            assert (looked.confirmed, looked.open, len(looked.late)) == (0, *found)


async def test_at_45_minutes_it_is_late() -> None:
    async with unconfirmed() as (closer, clock):
        clock.set(JULY + 45 * MINUTE)
        assert len((await closer.look()).late) == 1


async def test_36_days_after_its_end_it_is_let_be() -> None:
    async with unconfirmed() as (closer, clock):
        clock.set(JULY + timedelta(days=36))
        assert len((await closer.look()).late) == 1
        clock.advance(timedelta(minutes=60))
        assert (await closer.look()).open == 1
        clock.advance(timedelta(days=1))
        assert (await closer.look()).open == 0


@pytest.mark.parametrize(("late", "more"), [(5, ""), (6, "; and 1 more"), (1_205, "; and 1,200 more")])
async def test_five_closes_are_named(late: int, more: str, caplog: pytest.LogCaptureFixture) -> None:
    async with unconfirmed() as (closer, _):
        attrgetter("_tell")(closer)([f"customer c{number}" for number in range(late)])
    (line,) = caplog.messages
    assert f": customer c0; customer c1; customer c2; customer c3; customer c4{more}. `meterkit" in line


async def test_what_stripe_did_not_count_under_a_former_name_keeps_a_close_open(store_url: str) -> None:
    renamed = loads(PLANS.replace("requests:", "calls:").replace("{requests: 1}", "{calls: 1}"))
    clock = Clock(NOW)
    async with kit_alone(store_url, clock=clock) as kit:
        admin, keys = await kit.store.admin(), kit.store.keys.customer("acme")
        await Outbox(kit.store, admin).meters()  # It notes their event names.
        state = CustomerState(stripe_customer="cus_acme").dump()
        await admin.ask(admin.client.hset(keys.state, mapping={"data": state}))
        await kit.record("acme", "requests", 2)
        field = f"{PERIOD_MS}|{meter_token('requests')}d"
        await admin.ask(admin.client.hset(keys.totals, mapping={field: 2}))
        for name in (keys.state, keys.totals):
            await admin.ask(admin.client.expire(name, 600))
        await admin.ask(admin.client.delete(keys.counters))
    async with kit_alone(store_url, clock=clock, catalog=renamed) as kit:
        await note(kit)
        clock.set(JULY + 11 * MINUTE)
        stripe = ObjectsAtStripe({"/v1/billing/meters": [{"id": "mtr_1", "event_name": "api_requests"}]})
        assert (await Closer(kit.store, lambda: stripe).look())[:2] == (0, 1)
