"""I4: a payment is granted once, at whatever step between payment and grant its process is killed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import pytest

from drivers.payment_process import Paying
from drivers.top_ups import AUTO, BACK, DOLLAR, balance, bought, dying, night, opened, sold, with_card
from drivers.webhooks import NOW, Hooked, hooked
from drivers.workers import Worker, start

pytestmark = pytest.mark.anyio

POSTS: Final = ("post 1", "post 2", "post 3", "post 4")
GRANTING: Final = ("read", "granted", "noted")


def steps(*names: str, chosen: tuple[str, ...]) -> pytest.MarkDecorator:
    """Steps to die at; those that are not chosen only with ``--whole``."""
    marks = [[] if name in chosen else [pytest.mark.whole] for name in names]
    return pytest.mark.parametrize(
        "step", [pytest.param(name, marks=mark) for name, mark in zip(names, marks, strict=True)]
    )


@asynccontextmanager
async def doomed(store_url: str, at: Hooked, step: str, *, sells: str = "packs") -> AsyncGenerator[Worker]:
    """A process that dies at a step; that it did is checked."""
    options = {"store": store_url, "stripe": at.url, "now": NOW.isoformat(), "sells": sells, "crash": step}
    worker = await start(options, Paying)
    try:
        yield worker
        assert await worker.process.wait() == -9
    finally:
        await worker.kill()


async def paid_once(at: Hooked) -> None:
    """One payment, one grant, and one line of the ledger."""
    found = await at.client.v1.invoices.list_async({"customer": "cus_acme", "status": "paid"})
    assert (len(found.data), await balance(at)) == (1, 10 * DOLLAR)
    (line,) = await at.kit.grants.ledger("acme")
    assert (line.entry, line.grant_id, line.quantity) == ("grant", found.data[0].id, 10 * DOLLAR)


@pytest.mark.dear("a process with a kit starts, and dies at a step")
@steps(*POSTS, *GRANTING, chosen=("post 4", "granted"))
async def test_i4_a_purchase_of_a_killed_process_is_granted_once(store_url: str, step: str) -> None:
    """I4: the webhook, or the app's next try, ends it."""
    async with sold(store_url) as at:
        await opened(at)
        await with_card(at)
        async with doomed(store_url, at, step) as worker:
            with pytest.raises((EOFError, ConnectionError)):
                await worker.ask("buy", key="order 1")
        await at.settle()
        await bought(at, idempotency_key="order 1")
        await at.settle()
        await paid_once(at)


@steps(*GRANTING, chosen=("granted",))
async def test_i4_a_webhook_whose_process_is_killed_grants_once(store_url: str, step: str) -> None:
    """I4: the webhook was answered, so Stripe does not send it again; it is in the queue."""
    async with sold(store_url) as at:
        await opened(at)
        await with_card(at)
        await bought(at, **BACK)
        (session,) = (await at.client.v1.checkout.sessions.list_async()).data
        at.emulator.complete_checkout(session.id)
        assert (set(await at.bring()), await balance(at)) == ({200}, 0)
        async with doomed(store_url, at, step) as worker:
            with pytest.raises((EOFError, ConnectionError)):
                await worker.ask("work_off")
        at.clock.advance(timedelta(hours=1))
        await at.kit.webhooks.work_off()
        await paid_once(at)


@pytest.mark.dear("a process with a kit starts, and dies at a step")
@steps(
    *("begun", *POSTS, "noted", "read", "granted", "noted 2", "begun 2"),
    chosen=("begun", "post 4", "granted", "noted 2"),
)
async def test_i4_an_auto_top_up_of_a_killed_process_is_granted_once(store_url: str, step: str) -> None:
    """I4: the event comes again, to another process."""
    async with hooked(store_url, catalog=AUTO) as at:
        await opened(at)
        await with_card(at)
        await bought(at)
        await at.kit.record("acme", "usd_charged", 6 * DOLLAR)
        async with doomed(store_url, at, step, sells="auto") as worker:
            with pytest.raises((EOFError, ConnectionError)):
                await worker.ask("low", event="1")
        api, _, auto = dying(at)
        await auto.on_low("acme", "usd", "1")
        await api.close()
        await at.settle()
        await night(at)
        found = await at.client.v1.invoices.list_async({"customer": "cus_acme"})
        assert [invoice.status for invoice in found.data] == ["paid", "paid"]
        lines = [(line.entry, line.quantity // DOLLAR) for line in await at.kit.grants.ledger("acme")]
        assert sorted(lines) == [("burn", -6), ("grant", 10), ("grant", 20)]
        assert await balance(at) == 24 * DOLLAR
