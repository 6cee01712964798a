"""Each row of the billing routes, over HTTP, under a real server, at an emulated Stripe of its own port."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI, Header
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.llm_apps import listening
from drivers.shop import HALF, shop
from meterkit import MeterMiddleware, identify
from meterkit.fastapi import billing_router
from meterkit.starlette import billing_routes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import ASGIApp, Scope

    from drivers.shop import Shop
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

ORIGINS = ["https://app.example"]
URLS = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}
SECRET = "whsec_test_4eC39HqLyjWDarjtT1zdp7dc"


async def who(x_customer_id: Annotated[str | None, Header()] = None) -> str | None:
    return x_customer_id


def who_by_scope(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-customer-id", b"").decode() or None


def app_of(framework: str, kit: MeterKit) -> ASGIApp:
    app: FastAPI | Starlette
    if framework == "fastapi":
        app = FastAPI()
        app.include_router(billing_router(kit, customer=who, origins=ORIGINS), prefix="/billing")
    else:
        routes = billing_routes(kit, customer=who_by_scope, origins=ORIGINS)
        app = Starlette(routes=[Mount("/billing", routes=routes)])
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return app


class Browser:
    """A customer's browser.

    Attributes:
        hook: where the same server takes webhooks.
    """

    def __init__(self, client: httpx.AsyncClient, hook: str) -> None:
        self.client = client
        self.hook = hook

    async def asks(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        answer = await self.client.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


@asynccontextmanager
async def served(framework: str, store_url: str) -> AsyncGenerator[tuple[Browser, Shop]]:
    async with (
        shop(store_url, stripe_webhook_secret=SECRET) as at,
        listening(app_of(framework, at.kit)) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/billing", headers={"x-customer-id": "acme"}
        ) as client,
    ):
        hook = str(client.base_url.join("webhooks/stripe"))
        at.emulator.add_endpoint(hook, secret=SECRET)
        yield Browser(client, hook), at


@pytest.fixture(params=["fastapi", "starlette"])
def framework(request: pytest.FixtureRequest) -> Literal["fastapi", "starlette"]:
    found: Literal["fastapi", "starlette"] = request.param
    return found


async def deliver(at: Shop, hook: str) -> None:
    """Have what has happened at Stripe posted: forged, signed, and once more."""
    last = at.emulator.webhook_events[-1]
    (forged,) = await at.emulator.deliver(last, to=hook, forge="wrong_secret")
    assert forged.status == 400
    answers: list[Any] = []
    for _ in range(2):
        (signed,) = await at.emulator.deliver(last, to=hook)
        assert signed.status == 200
        answers.append(json.loads(signed.answer))
    assert answers[1] == {"received": True, "duplicate": True}
    await at.kit.webhooks.work_off()


@pytest.mark.dear("two servers, and each route over HTTP")
@pytest.mark.whole
async def test_a_subscription_is_lived_through_over_http(framework: str, store_url: str) -> None:
    async with served(framework, store_url) as (browser, at):
        await browser.asks("GET", "/subscription", status=404)
        made = await browser.asks("POST", "/subscription", {"plan": "team", "seats": 7}, status=201)
        at.emulator.confirm_payment(made["client_secret"])
        await deliver(at, browser.hook)
        found = await browser.asks("GET", "/subscription")
        assert (found["status"], found["plan"], found["seats"]) == ("active", "team", 7)
        await browser.asks("POST", "/subscription", {"plan": "pro"}, status=409)

        at.clock.set(HALF + timedelta(seconds=30))
        preview = await browser.asks("GET", "/subscription/preview?plan=pro&seats=")
        assert set(preview) == {"proration", "over_limit"}
        changed = await browser.asks("PUT", "/subscription/plan", {"plan": "pro"})
        assert (changed["proration"], changed["client_secret"]) == (preview["proration"], None)
        seats = await browser.asks("PUT", "/subscription/seats", {"seats": 12})
        assert seats["subscription"]["seats"] == 12
        down = await browser.asks("PUT", "/subscription/plan", {"plan": "team"})
        assert down["subscription"]["pending_change"]["plan"] == "team"
        ending = await browser.asks("POST", "/subscription/cancel", {"immediately": False})
        assert ending["subscription"]["cancel_at_period_end"]
        assert not (await browser.asks("POST", "/subscription/resume"))["subscription"]["cancel_at"]

        assert "url" in await browser.asks("POST", "/portal", {"return_url": "https://app.example/"})
        await browser.asks("POST", "/portal", {"return_url": "https://evil.example/"}, status=400)
        assert len(await browser.asks("GET", "/invoices")) == 2
        await at.kit.record("acme", "tokens", 1_200)
        assert (await browser.asks("GET", "/usage"))["meters"]["tokens"]["recorded"] == 1_200
        assert (await browser.asks("GET", "/usage?period=2031-05"))["meters"]["tokens"]["recorded"] == 0

        ended = await browser.asks("POST", "/subscription/cancel", {"immediately": True})
        assert ended["subscription"]["status"] == "canceled"
        page = await browser.asks("POST", "/checkout", {"plan": "pro", "seats": 12, **URLS})
        at.emulator.complete_checkout(page["url"].rpartition("/")[2].partition("#")[0])
        await deliver(at, browser.hook)
        assert (await browser.asks("GET", "/subscription"))["plan"] == "pro"
