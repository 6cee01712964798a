"""Two browsers of one customer begin a subscription at the same time: one comes of it."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from drivers.shop import shop
from meterkit.errors import SubscriptionBusyError
from meterkit.starlette import billing_routes

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from drivers.shop import Shop

pytestmark = pytest.mark.anyio


WAIT: Final = "meterkit.subscriptions.service.pending_changes:WAIT_S"


async def begun(at: Shop) -> list[dict[str, Any]]:
    """The subscriptions at Stripe that somebody could pay for."""
    found = await at.stripe_list("/v1/subscriptions", status="all")
    return [one for one in found if one["status"] not in {"canceled", "incomplete_expired"}]


async def page(at: Shop, plan: str) -> None:
    urls: Any = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}
    await at.kit.subscriptions.checkout("acme", plan, seats=1, **urls)


async def race(*tries: Awaitable[object]) -> None:
    async def run(one: Awaitable[object]) -> None:
        await one

    async with anyio.create_task_group() as tasks:
        for one in tries:
            tasks.start_soon(run, one)


async def test_two_plans_that_are_begun_at_once_are_one_subscription(at: Shop) -> None:
    create = at.kit.subscriptions.create
    # Whoever looks sees nothing before the others have looked, too.
    at.emulator.fail_next("delay", delay_s=0.2, path="/v1/subscriptions", times=None)
    await race(create("acme", "pro"), create("acme", "team"), create("acme", "pro", 12))
    (one,) = await begun(at)
    assert one["status"] == "incomplete"
    await race(page(at, "pro"), create("acme", "team"), page(at, "team"))
    pages = await at.stripe_list("/v1/checkout/sessions", status="open")
    assert len(pages) + len(await begun(at)) == 1


async def test_whoever_waits_too_long_is_told_when_to_try_again(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-113: after a kill in ``create`` the next call hung for a minute; a client gets 503 within 10 s."""
    assert resolve_name(WAIT) < 10
    monkeypatch.setattr(WAIT.replace(":", "."), 0.2)
    async with shop(store_url) as at:
        admin = await at.kit.store.admin()
        await admin.ask(admin.client.set(at.kit.store.keys.beginning("acme"), "killed", px=40_000))
        for begin in (at.kit.subscriptions.create("acme", "pro"), page(at, "pro")):
            with pytest.raises(SubscriptionBusyError) as raised:
                await begin
            assert 30 < raised.value.retry_after_s <= 40
        app = Starlette(
            routes=billing_routes(at.kit, customer=lambda _: "acme", origins=["https://a.example"])
        )
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="https://a.example"
        ) as client:
            answer = await client.post("/subscription", json={"plan": "pro"})
        assert answer.status_code == 503
        assert 30 < int(answer.headers["retry-after"]) <= 40
        assert at.changes() == []
