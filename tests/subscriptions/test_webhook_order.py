"""In whatever order events come, twice or not, what is known in the end is what Stripe has."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import permutations
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers import hook_process
from drivers.delivery import STRIPE_KEY
from drivers.webhooks import CATALOG, DAY, hooked
from drivers.workers import start
from meterkit.decisions.customer_state import CustomerState, with_subscription
from meterkit.subscriptions.subscription_reading import in_force, read_subscription
from meterkit.subscriptions.webhooks.customer_sync import LostError
from meterkit.subscriptions.webhooks.hint_scripts import LEASE_MS
from meterkit.subscriptions.webhooks.stripe_events import hint_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.webhooks import Hooked
    from meterkit.subscriptions.webhooks.customer_sync import Looker
    from meterkit.subscriptions.webhooks.queue import HookQueue
    from meterkit.testing.emulator.webhooks.events import Event
    from servers.stores import Server

pytestmark = pytest.mark.anyio

HISTORY = 7


@asynccontextmanager
async def history(at: Hooked) -> AsyncGenerator[tuple[list[Event], list[list[dict[str, Any]]]]]:
    """Seven events of a subscription, and what Stripe had right after each of them."""
    versions: list[list[dict[str, Any]]] = []
    events: list[Event] = []
    async with httpx.AsyncClient(base_url=at.url, auth=(STRIPE_KEY, "")) as client:

        async def keep(kind: str) -> None:
            query = "customer=cus_acme&status=all&expand[]=data.latest_invoice&expand[]=data.schedule"
            versions.append((await client.get(f"/v1/subscriptions?{query}")).json()["data"])
            events.append([told for told in at.emulator.webhook_events if told.type == kind][-1])

        async def update(**change: Any) -> None:
            given: Any = change
            await at.client.v1.subscriptions.update_async(subscription, given)
            await keep("customer.subscription.updated")

        at.customer()
        subscription = await at.subscribe()
        await keep("customer.subscription.created")
        items: Any = (await at.client.v1.subscriptions.retrieve_async(subscription))["items"]
        await update(items=[{"id": items.data[0].id, "price": "price_max"}])
        at.emulator.fail_payments("cus_acme")
        at.clock.advance(32 * DAY)
        at.emulator.advance()
        await keep("invoice.payment_failed")
        at.emulator.mend_payments("cus_acme")
        at.clock.advance(4 * DAY)
        at.emulator.advance()
        await keep("invoice.payment_succeeded")
        await update(cancel_at_period_end=True)
        await update(cancel_at_period_end=False)
        await at.client.v1.subscriptions.cancel_async(subscription)
        await keep("customer.subscription.deleted")
        yield events, versions


async def test_every_order_of_seven_events_ends_in_one_state(store_url: str) -> None:
    """An event comes when it has happened, and what is fetched then is what Stripe has by then."""
    async with hooked(store_url) as at, history(at) as (events, versions):
        pass
    hints = [hint_of(event.to_json()) for event in events]
    assert {hint.stripe_customer for hint in hints if hint is not None} == {"cus_acme"}
    assert (len({event.id for event in events}), None in hints) == (HISTORY, False)
    read = [
        None if (chosen := in_force(found, CATALOG)) is None else read_subscription(chosen, CATALOG)
        for found in versions
    ]
    assert len({repr(each) for each in read}) >= HISTORY - 1, "the history says something at each step"
    start_state = CustomerState(stripe_customer="cus_acme")
    expected = with_subscription(start_state, read[-1])
    orders = list(permutations(range(HISTORY)))
    assert len(orders) == 5040
    for order in orders:
        state, happened = start_state, 0
        for event in (*order, order[0], order[-1]):  # Some come twice.
            happened = max(happened, event)
            state = with_subscription(state, read[happened])
        assert state == expected


async def test_two_hundred_orders_end_to_end(valkey: Server, store_url: str) -> None:
    chance = random.Random(7)  # noqa: S311 - the same each time
    async with hooked(store_url) as at, history(at) as (events, _):
        found: set[str] = set()
        for _ in range(200):
            valkey.command("FLUSHALL")
            order = chance.sample(events, HISTORY) + chance.sample(events, 3)
            for event in order:
                assert await at.bring(event) == [200]
                if chance.random() < 0.2:
                    await at.kit.webhooks.work_off()
            await at.kit.webhooks.work_off()
            found.add((await at.state()).dump())
            backlog = await at.kit.webhooks.backlog()
            assert (backlog.entries, backlog.dead) == (0, 0)
    assert len(found) == 1
    assert '"status":"canceled"' in found.pop()


@pytest.mark.parametrize("point", ["taken", "fetched", "linked", "told"])
async def test_what_a_killed_worker_had_is_finished_by_the_next(store_url: str, point: str) -> None:
    async with hooked(store_url) as at:
        at.customer()
        await at.subscribe()
        await at.bring()
        options = {"store": store_url, "stripe": at.url, "now": at.clock.now().isoformat()}
        doomed = await start({**options, "crash": point}, hook_process.__file__)
        with pytest.raises(EOFError, match="-9"):
            await doomed.ask("work_off")
        await at.kit.webhooks.work_off()  # It is still the other's.
        assert (await at.kit.webhooks.backlog()).entries == 1
        assert (await at.kit.customers.get("acme")).plan == ("pro" if point == "told" else "free")
        at.clock.advance(timedelta(milliseconds=LEASE_MS))
        await at.kit.webhooks.work_off()
        assert (await at.kit.customers.get("acme")).plan == "pro"
        assert (await at.kit.webhooks.backlog()).entries == 0


async def test_who_has_lost_the_entry_stores_nothing(store_url: str) -> None:
    async with hooked(store_url) as at:
        at.customer()
        await at.subscribe()
        await at.bring()
        webhooks: Any = at.kit.webhooks
        queue: HookQueue = webhooks._queue
        looker: Looker = webhooks._looker
        (lost,) = await queue.take(1)
        at.clock.advance(timedelta(milliseconds=LEASE_MS))
        (entry,) = await queue.take(1)
        with pytest.raises(LostError):
            await looker.look(lost)
        assert (await at.kit.customers.get("acme")).plan == "free"
        await looker.look(entry)
        assert (await at.kit.customers.get("acme")).plan == "pro"
