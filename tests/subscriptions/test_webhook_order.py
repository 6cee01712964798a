"""In whatever order events come, twice or not, what is known in the end is what Stripe has."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers import hook_process
from drivers.delivery import STRIPE_KEY
from drivers.sampled import whole
from drivers.sync_queue import LEASE_MS
from drivers.webhooks import DAY, hooked
from drivers.workers import start

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.webhooks import Hooked
    from servers.stores import Server

pytestmark = pytest.mark.anyio

HISTORY = 7


@asynccontextmanager
async def history(at: Hooked) -> AsyncGenerator[tuple[list[Any], list[list[dict[str, Any]]]]]:
    """Seven events of a subscription, and what Stripe had right after each of them."""
    versions: list[list[dict[str, Any]]] = []
    events: list[Any] = []
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


@pytest.mark.parametrize("orders", [12, whole(200)])
@pytest.mark.dear("twelve orders of ten events, each of them taken and worked off")
async def test_any_order_of_events_ends_in_one_state(valkey: Server, orders: int) -> None:
    chance = random.Random(7)  # noqa: S311 - the same each time
    async with hooked(valkey.url) as at, history(at) as (events, _):
        found: set[str] = set()
        for _ in range(orders):
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


@pytest.mark.dear("a process beside the emulator, killed")
@pytest.mark.parametrize("point", [whole("taken"), whole("fetched"), whole("linked"), "told"])
async def test_what_a_killed_worker_had_is_finished_by_the_next(valkey: Server, point: str) -> None:
    async with hooked(valkey.url) as at:
        at.customer()
        await at.subscribe()
        await at.bring()
        options = {"store": valkey.url, "stripe": at.url, "now": at.clock.now().isoformat()}
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
