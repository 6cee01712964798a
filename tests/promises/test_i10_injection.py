"""I10: what a client sends comes back in no header and no problem; nobody serves what nobody has mounted."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from drivers.plans import free_plan
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.starlette import stripe_webhook

pytestmark = pytest.mark.anyio

EVIL = "EVIL"
PLANS = free_plan(
    "{requests: {unit: request}, storage: {unit: byte, kind: gauge}, seats: {unit: seat, kind: gauge}}",
    """
      requests: {rate: 1/hour, included: 1, overage: deny}
      storage:  {included: 1, overage: deny}
      seats:    {included: 0, overage: deny}
  paid: {price: {amount_cents: 100, interval: month}, features: all}""",
    """
features: [full_ai]
billing: {portal_url: "https://app.example/billing"}
routes:
  - {match: "GET /feature/{name}", feature: full_ai}
  - {match: "PUT /files/{name}", storage: content-length}
  - {match: "POST /members/{name}", grow: {seats: 1}}
  - {match: "*", consume: {requests: 1}}""",
)


def app_of(kit: MeterKit) -> ASGIApp:
    return MeterMiddleware(PlainTextResponse("ok"), kit=kit, identify=identify.header("x-customer-id"))


@asynccontextmanager
async def client_of(
    store_url: str, app: Callable[[MeterKit], ASGIApp] = app_of, **settings: Any
) -> AsyncGenerator[tuple[MeterKit, httpx.AsyncClient]]:
    async with MeterKit(loads(PLANS), redis_url=store_url, flush=False, **settings) as kit:
        transport = httpx.ASGITransport(app(kit))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            yield kit, client


@pytest.mark.parametrize(
    ("method", "path", "customer", "statuses"),
    [
        ("GET", f"/{EVIL}%0d%0aX-Evil:%20{EVIL}?a={EVIL}%0d%0a", f"{EVIL}-1", {200, 429}),
        ("GET", f"/feature/{EVIL}%0d%0aX-Evil:%201", f"{EVIL}-1", {403}),
        ("PUT", f"/files/{EVIL}%22%0d%0a", f"{EVIL}-1", {413}),
        ("POST", f"/members/{EVIL}", f"{EVIL}-1", {403}),
        ("GET", f"/{EVIL}", f"{EVIL}\tx", {400}),
        ("GET", f"/{EVIL}", "", {401, 400}),
    ],
)
async def test_i10_what_a_client_sends_is_in_no_header_and_no_problem(
    store_url: str, method: str, path: str, customer: str, statuses: set[int]
) -> None:
    names = ("user-agent", "x-forwarded-for", "idempotency-key", "content-type")
    headers = {"x-customer-id": customer, **dict.fromkeys(names, EVIL)}
    headers |= {"origin": f"https://{EVIL}.example", "ratelimit": f'"{EVIL}";r=9'}
    found = set[int]()
    async with client_of(store_url) as (_, client):
        for _ in range(3):
            content = f"{EVIL} body" if method != "GET" else None
            answer = await client.request(method, path, headers=headers, content=content)
            found.add(answer.status_code)
            for name, value in answer.headers.raw:
                assert EVIL.encode() not in value, name
                assert re.fullmatch(rb"[\x20-\x7e]*", value), name
                assert b"evil" not in name.lower()
            assert EVIL not in answer.text
    assert found == statuses or found < statuses


@pytest.mark.parametrize(
    "path",
    [
        "/webhooks/stripe",
        "/billing/subscription",
        "/_emulator/events",
        "/metrics",
        "/v1/billing/meter_events",
    ],
)
async def test_i10_nothing_is_served_that_nobody_has_mounted(store_url: str, path: str) -> None:
    given: Any = {"stripe_webhook_secret": "whsec_1", "stripe_api_key": "sk_test_1"}
    async with client_of(store_url, **given) as (_, client):
        answer = await client.post(path, headers={"x-customer-id": "acme"}, content=b"{}")
        assert (answer.status_code, answer.text) == (200, "ok")  # The app's own.


async def test_i10_a_webhook_endpoint_without_a_secret_takes_nothing(store_url: str) -> None:
    async with client_of(store_url, stripe_webhook) as (kit, client):
        event = {"id": "evt_1", "object": "event", "type": "invoice.paid"}
        assert (await client.post("/", json=event)).status_code == 503
        assert (await kit.webhooks.backlog()).entries == 0
