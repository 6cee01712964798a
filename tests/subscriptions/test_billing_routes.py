"""The billing routes: each row of what they promise, in both frameworks, and what hostile clients get."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, Literal, cast

import httpx
import jsonschema
import pytest
from fastapi import FastAPI, Header
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Scope

from drivers.llm_apps import listening
from drivers.plans import plans_text
from drivers.sampled import whole
from drivers.shop import END, HALF, START, Shop, sell, sell_nothing, shop
from drivers.sync_queue import sign_payload
from meterkit import (
    CurrencyError,
    MeterKit,
    MeterkitError,
    MeterMiddleware,
    NoSubscriptionError,
    StripeError,
    current,
    identify,
)
from meterkit.catalog import loads
from meterkit.fastapi import billing_router
from meterkit.pages import usage_page
from meterkit.starlette import billing_routes
from meterkit.testing import StripeEmulator
from subscriptions.looks import linked_of

pytestmark = pytest.mark.anyio

Framework = Literal["fastapi", "starlette"]
ORIGINS = ["https://app.example", "http://localhost:3000"]
HEADERS = {"x-customer-id": "acme"}
URLS = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}
SECRET = "whsec_test_4eC39HqLyjWDarjtT1zdp7dc"
PROBLEM = "application/problem+json"
URN = "urn:meterkit:problem:"


async def who(x_customer_id: Annotated[str | None, Header()] = None) -> str | None:
    return x_customer_id


async def who_by_scope(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-customer-id", b"").decode() or None


def app_of(framework: Framework, kit: MeterKit, *, delivery_states: bool = True) -> ASGIApp:
    app: FastAPI | Starlette
    if framework == "fastapi":
        app = FastAPI()
        router = billing_router(kit, customer=who, origins=ORIGINS, delivery_states=delivery_states)
        app.include_router(router, prefix="/billing")
    else:
        routes = billing_routes(kit, customer=who_by_scope, origins=ORIGINS, delivery_states=delivery_states)
        app = Starlette(routes=[Mount("/billing", routes=routes)])
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return app


@asynccontextmanager
async def billing(
    framework: Framework, store_url: str, **settings: Any
) -> AsyncGenerator[tuple[httpx.AsyncClient, Shop]]:
    async with shop(store_url, **settings) as at, client_of(app_of(framework, at.kit)) as client:
        yield client, at


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://app/billing", headers=HEADERS)


@pytest.fixture(params=[whole("fastapi"), "starlette"])
def framework(request: pytest.FixtureRequest) -> Framework:
    return cast("Framework", request.param)


@pytest.fixture
async def client(framework: Framework, at: Shop) -> AsyncGenerator[httpx.AsyncClient]:
    async with client_of(app_of(framework, at.kit)) as opened:
        yield opened


both_frameworks = pytest.mark.parametrize("framework", ["fastapi", "starlette"])


def told(answer: httpx.Response) -> tuple[int, str]:
    """The status and type of a problem, which is one by all its marks."""
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == (PROBLEM, "no-store")
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["instance"].startswith("urn:uuid:")
    assert {"title", "detail"} <= set(document)
    return answer.status_code, document["type"].removeprefix(URN)


def given(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def upgrade(client: httpx.AsyncClient) -> httpx.Response:
    return await client.put("/subscription/plan", json={"plan": "pro"})


@asynccontextmanager
async def served(framework: Framework, store_url: str) -> AsyncGenerator[tuple[httpx.AsyncClient, Shop]]:
    async with (
        shop(store_url, stripe_webhook_secret=SECRET) as at,
        listening(app_of(framework, at.kit)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/billing", headers=HEADERS) as client,
    ):
        yield client, at


@pytest.mark.parametrize("way", [billing, whole(served)])
@both_frameworks
async def test_the_life_of_a_subscription(framework: Framework, store_url: str, way: Any) -> None:
    async with way(framework, store_url) as (client, at):
        assert told(await client.get("/subscription")) == (404, "no-subscription")
        made = given(await client.post("/subscription", json={"plan": "team", "seats": 7}), 201)
        assert set(made) == {"subscription", "client_secret"}
        at.emulator.confirm_payment(made["client_secret"])
        await at.kit.subscriptions.sync("acme")
        assert told(await client.post("/subscription", json={"plan": "pro"})) == (409, "subscription-exists")

        assert given(await client.get("/subscription")) == {
            "id": made["subscription"]["id"],
            "customer": "acme",
            "plan": "team",
            "seats": 7,
            "addons": {},
            "status": "active",
            "access": "full",
            "cancel_at_period_end": False,
            **dict.fromkeys(("cancel_at", "trial_end", "pending_change")),
            "current_period_start": "2031-06-01T00:00:00Z",
            "current_period_end": "2031-07-01T00:00:00Z",
        }
        at.clock.set(HALF)
        preview = given(await client.get("/subscription/preview", params={"plan": "pro", "seats": ""}))
        cost = {"credit_cents": 1450, "charge_cents": 1450, "net_cents": 0, "currency": "usd"}
        said = preview["proration"].pop("description")
        assert preview == {"proration": {**cost, "effective_at": "2031-06-16T00:00:00Z"}, "over_limit": []}
        changed = given(await upgrade(client))
        assert changed["proration"] == {**preview["proration"], "description": said}
        assert changed["client_secret"] is None
        assert changed["subscription"]["plan"] == "pro"

        await at.kit.gauges.set("acme", "seats", 11)
        refused = await client.put("/subscription/seats", json={"seats": 10})
        assert told(refused) == (409, "seats-in-use")
        assert (refused.json()["seats"], refused.json()["used"]) == (10, 11)
        seats = given(await client.put("/subscription/seats", json={"seats": 12}))
        assert (seats["subscription"]["seats"], seats["proration"]["charge_cents"]) == (12, 900)
        over = given(await client.get("/subscription/preview?seats=10"))["over_limit"]
        assert over == [{"meter": "seats", "used": 11, "limit": 10}]

        down = given(await client.put("/subscription/plan", json={"plan": "team"}))["subscription"]
        later: dict[str, Any] = {
            "plan": "team",
            "seats": 11,
            "addons": {},
            "effective_at": "2031-07-01T00:00:00Z",
        }
        assert down["pending_change"] == later
        ending = given(await client.post("/subscription/cancel", json={"immediately": False}))
        assert set(ending) == {"subscription"}
        assert ending["subscription"]["cancel_at"] == "2031-07-01T00:00:00Z"
        assert given(await client.post("/subscription/resume"))["subscription"]["cancel_at"] is None
        assert given(await client.post("/subscription/cancel"))["subscription"]["cancel_at_period_end"]
        ended = given(await client.post("/subscription/cancel", json={"immediately": True}))
        assert ended["subscription"]["status"] == "canceled"
        assert told(await client.post("/subscription/resume")) == (404, "no-subscription")
        assert given(await client.get("/subscription"))["status"] == "canceled"

        invoices = given(await client.get("/invoices"))
        assert [one["status"] for one in invoices].count("paid") >= 1
        assert {"id", "number", "total_cents", "currency", "created_at", "url"} <= set(invoices[0])


@both_frameworks
async def test_addons_are_bought_and_given_up(framework: Framework, store_url: str) -> None:
    catalog = loads(plans_text("addon_shop"))
    async with billing(framework, store_url, catalog=catalog, selling=StripeEmulator.add_plans) as found:
        client, at = found
        bought = {"plan": "team", "addons": {"storage_pack": 2}}
        made = given(await client.post("/subscription", json=bought), 201)
        at.emulator.confirm_payment(made["client_secret"])
        await at.kit.subscriptions.sync("acme")
        at.clock.set(HALF)
        preview = given(await client.get("/subscription/preview?addons=call_pack:2,storage_pack:2"))
        assert (preview["proration"]["charge_cents"], set(preview)) == (500, {"proration", "over_limit"})
        asked = {"call_pack": 2, "storage_pack": 1}
        changed = given(await client.put("/subscription/addons", json=asked))
        assert changed["subscription"]["addons"] == {"call_pack": 2, "storage_pack": 2}
        assert changed["subscription"]["pending_change"]["addons"] == asked
        assert changed["proration"]["charge_cents"] == 500
        assert given(await client.get("/usage"))["addons"] == {"call_pack": 2, "storage_pack": 2}
        ended = given(await client.get("/subscription/preview?plan=pro"))["ended_addons"]
        assert ended == {"call_pack": 2} == given(await upgrade(client))["ended_addons"]

        for body, problem in (
            ({"gold": 1}, {"addon": "gold", "allowed": ["exports", "seat_pack", "storage_pack"]}),
            ({"exports": 2}, {"addon": "exports", "limit": 1}),
            ({"exports": -1}, {"addon": "exports", "limit": 1}),
        ):
            refused = await client.put("/subscription/addons", json=body)
            kind = "addon-limit" if "limit" in problem else "addon-unknown"
            assert told(refused) == (422, kind)
            assert problem.items() <= refused.json().items()
        for wrong in ([1], {"exports": "1"}, {"exports": True}, {"exports": 1.5}):
            refused = await client.put("/subscription/addons", json=wrong)
            assert told(refused) == (422, "request-invalid")
        for query in ("exports", "exports:x", "exports:-1", ":1", "exports:1,exports:1"):
            refused = await client.get("/subscription/preview", params={"addons": query})
            assert told(refused) == (422, "request-invalid")
        await at.kit.subscriptions.cancel("acme", immediately=True)
        page = {"plan": "team", "addons": {"exports": 1}, **URLS}
        assert told(await client.post("/checkout", json=page)) == (422, "addon-unknown")
        page["addons"] = {"storage_pack": 1}
        assert given(await client.post("/checkout", json=page))["url"].startswith("http")


async def test_a_customer_is_told_no_words_for_operators(
    client: httpx.AsyncClient, at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Conflicts told customers of the plans file, of commands and of ids at Stripe, and operators nothing."""
    sold = (await at.subscribed(plan="tried")).id
    details: list[tuple[tuple[int, str], str]] = []
    refused = await client.put("/subscription/seats", json={"seats": 8})
    details.append((told(refused), refused.json()["detail"]))
    assert "could not be served" not in caplog.text
    base, *_ = (await at.stripe_subscription(sold))["items"]["data"]
    odd = at.emulator.add_price(777, product=at.emulator.add_product("Odd"))
    await at.stripe_change(
        f"/v1/subscriptions/{sold}", **{"items[0][id]": base["id"], "items[0][price]": odd}
    )
    await at.kit.subscriptions.sync("acme")
    refused = await client.put("/subscription/plan", json={"plan": "team"})
    details.append((told(refused), refused.json()["detail"]))
    conflict = (409, "subscription-conflict")
    assert details == [
        (conflict, "The plan 'tried' includes 5 seats, and sells no others."),
        (
            conflict,
            "The subscription cannot be changed in this way at the moment. Ask who runs this service.",
        ),
    ]
    assert f"could not be served: customer 'acme' has subscription {sold}, of a price that no" in caplog.text


async def test_what_stripe_has_no_price_for_is_logged(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Customers read "not on sale yet", and the operator nothing of ``stripe sync``."""
    catalog = loads(plans_text("addon_shop"))
    async with billing("starlette", store_url, catalog=catalog, selling=sell_nothing) as (client, at):
        unpriced = await client.post("/subscription", json={"plan": "tried"})
        at.emulator.add_price(1500, lookup_key="meterkit:tried:base")
        bought = {"plan": "tried", "addons": {"storage_pack": 1}}
        unpriced_addon = await client.post("/subscription", json=bought)
        free = await client.post("/subscription", json={"plan": "free"})
    assert (told(unpriced), told(unpriced_addon)) == ((422, "plan-unknown"), (422, "addon-unknown"))
    assert "sync" not in unpriced.text + unpriced_addon.text
    assert told(free) == (422, "plan-unknown")
    logged = [text for text in caplog.messages if "could not be served" in text]
    assert [re.findall("key '(.*)'; `meterkit stripe sync` makes it", text) for text in logged] == [
        ["meterkit:tried:base"],
        ["meterkit:addon:storage_pack"],
    ]


async def test_an_anonymous_address_has_no_subscription(framework: Framework, store_url: str) -> None:
    """Apps give `current().customer`: who had the same address saw and ended what another had bought."""
    catalog = loads(plans_text("shop").replace("meters:", "anonymous: {plan: free, by: ip}\nmeters:", 1))
    async with shop(store_url, catalog=catalog) as at:
        app: FastAPI | Starlette
        if framework == "fastapi":
            app = FastAPI()
            app.include_router(
                billing_router(at.kit, customer=lambda: current().customer, origins=ORIGINS),
                prefix="/billing",
            )
        else:
            routes = billing_routes(at.kit, customer=lambda _: current().customer, origins=ORIGINS)
            app = Starlette(routes=[Mount("/billing", routes=routes)])
        app.mount("/usage", usage_page(at.kit, customer=lambda _: current().customer, origins=ORIGINS))
        app.add_middleware(MeterMiddleware, kit=at.kit, identify=identify.header("x-customer-id"))
        async with client_of(app) as client:
            assert given(await client.get("/usage"))["customer"] == "acme"
            assert (await client.get("http://app/usage/")).status_code == 200
            del client.headers["x-customer-id"]
            unknown = (401, "customer-unknown")
            for path in ("/usage", "/invoices", "http://app/usage/"):
                assert told(await client.get(path)) == unknown
            for path, body in (("/checkout", {"plan": "pro", **URLS}), ("/subscription", {"plan": "pro"})):
                assert told(await client.post(path, json=body)) == unknown
        assert await at.stripe_list("/v1/customers") == []


async def test_pages_of_stripe(client: httpx.AsyncClient, at: Shop) -> None:
    assert set(given(await client.post("/checkout", json={"plan": "pro", "seats": 12, **URLS}))) == {"url"}
    nobody = {"x-customer-id": "other"}
    to = {"return_url": "http://localhost:3000/"}
    assert told(await client.post("/portal", json=to, headers=nobody)) == (404, "no-subscription")
    await at.subscribed()
    refused = await client.post("/checkout", json={"plan": "pro", **URLS})
    assert told(refused) == (409, "subscription-exists")
    for url in (f"{ORIGINS[1]}/", ORIGINS[0], "https://APP.example:443/paid?x=%2F#done"):
        assert set(given(await client.post("/portal", json={"return_url": url}))) == {"url"}


async def test_stripe_posts_its_events_among_them(framework: Framework, store_url: str) -> None:
    async with billing(framework, store_url, stripe_webhook_secret=SECRET) as (client, at):
        made = await at.kit.subscriptions.create("acme", "pro")
        assert made.client_secret is not None
        at.emulator.confirm_payment(made.client_secret)
        about = {"id": made.subscription.id, "object": "subscription", "customer": await linked_of(at)}
        event = {"id": "evt_1", "object": "event", "type": "customer.subscription.updated"}
        body = json.dumps({**event, "data": {"object": about}}).encode()
        signature = sign_payload(body, secrets=[SECRET], at_s=int(START.timestamp()))
        forged = sign_payload(body, secrets=["whsec_other"], at_s=int(START.timestamp()))
        for headers in ({}, {"stripe-signature": forged}):
            answer = await client.post("/webhooks/stripe", content=body, headers=headers)
            assert answer.status_code == 400
        nobody = {"x-customer-id": "", "stripe-signature": signature}
        for repeat in ({}, {"duplicate": True}):
            answer = await client.post("/webhooks/stripe", content=body, headers=nobody)
            assert given(answer) == {"received": True, **repeat}
        assert (await client.get("/webhooks/stripe")).status_code == 405
        await at.kit.webhooks.work_off()
        assert given(await client.get("/subscription"))["status"] == "active"


async def test_usage_is_that_of_the_kit(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed(plan="team")
    await at.kit.record("acme", "tokens", 40)
    found = given(await client.get("/usage"))
    kit = await at.kit.usage("acme")
    assert (found["meters"], found["period"]["start"]) == (kit["meters"], "2031-06-01T00:00:00Z")
    assert (found["plan"], found["status"], found["access"]) == ("team", "active", "full")
    at.clock.set(END + timedelta(days=1))
    for period in (found["period"]["id"], "2031-06-11", "2031-06", "2031-06-11T12:00:00+02:00"):
        past = given(await client.get("/usage", params={"period": period}))
        assert (past["meters"]["tokens"]["recorded"], past["period"]["id"]) == (40, found["period"]["id"])
        same = await at.kit.usage("acme", period=period)
        assert (same["period"], same["meters"]) == (kit["period"], past["meters"])
    assert given(await client.get("/usage"))["meters"]["tokens"]["recorded"] == 0
    for wrong in ("june", "2031-13", "1969-01-01", "9" * 400, "2031-06-11T99"):
        assert told(await client.get("/usage", params={"period": wrong})) == (422, "request-invalid")


@both_frameworks
async def test_delivery_states_can_be_hidden_from_customers(framework: Framework, at: Shop) -> None:
    """F-233: customers saw `queued`, `leased`, `parked` and `dead`."""
    await at.subscribed(plan="team")
    await at.kit.record("acme", "tokens", 40)
    async with client_of(app_of(framework, at.kit, delivery_states=False)) as client:
        tokens = given(await client.get("/usage"))["meters"]["tokens"]
    states = {"pending", "unlinked", "queued", "leased", "parked", "delivered", "late", "dead"}
    own = (await at.kit.usage("acme"))["meters"]["tokens"]
    assert states < set(own)
    assert tokens == {name: count for name, count in own.items() if name not in states}


ELSEWHERE = [
    "/paid",
    "//app.example/paid",
    "http://app.example/",  # another scheme
    "https://app.example:8443/",  # another port
    "https://app.example:99999/",
    "https://app.example.evil.example/",
    "https://app.example@evil.example/",
    "https://user:password@app.example/",
    "https://app.example\\.evil.example",
    "https://app.example\r\nLocation: https://evil.example",
    "https://app.ex\u0430mple/",  # a Cyrillic letter
    "https://app.example%2eevil.example/",
    "https://[::1]/",
    "javascript:alert(1)//https://app.example",
]


@both_frameworks
async def test_customers_are_sent_to_origins_of_the_app_only(client: httpx.AsyncClient, at: Shop) -> None:
    for url in ELSEWHERE:
        for name, path, body in (
            ("success_url", "/checkout", {"plan": "pro", **URLS, "success_url": url}),
            ("cancel_url", "/checkout", {"plan": "pro", **URLS, "cancel_url": url}),
            ("return_url", "/portal", {"return_url": url}),
        ):
            answer = await client.post(path, json=body)
            assert told(answer) == (400, "url-not-allowed"), url
            assert answer.json()["field"] == name
    assert at.changes() == []


NO_BODIES = (b"{", b"\xff\xfe", b"[" * 20_000, b'{"plan": ""}', b'{"plan": "\\ud800"}')
NO_SEATS = (b'"3"', b"0", b"true", b"1000001")
MALFORMED = [
    *(("POST", "/subscription", body) for body in NO_BODIES),
    *(("POST", "/subscription", b'{"plan": "pro", "seats": %b}' % seats) for seats in NO_SEATS),
    ("POST", "/subscription", b'{"plan": "pro", "customer": "other"}'),
    ("PUT", "/subscription/seats", b'{"seats": 2, "subscription": "sub_1"}'),
    ("POST", "/subscription/cancel", b'{"immediately": 1}'),
    ("POST", "/checkout", b'{"plan": "pro"}'),
    ("POST", "/portal", b'{"return_url": "https://app.example/%b"}' % (b"x" * 2048)),
]


@both_frameworks
async def test_a_body_that_is_not_what_is_asked_for_is_refused(client: httpx.AsyncClient, at: Shop) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    for method, path, body in MALFORMED:
        answer = await client.request(method, path, content=body, headers=headers)
        assert told(answer) == (422, "request-invalid"), body
        assert answer.json()["errors"]
        assert "sub_1" not in answer.text
    assert at.changes() == []


@both_frameworks
async def test_another_site_changes_nothing_by_a_form(client: httpx.AsyncClient, at: Shop) -> None:
    """A browser posts a form to wherever a page says, with its cookies; one without fields has no body."""
    begun = await at.subscribed()
    before = len(at.changes())
    form = {"content-type": "text/plain"}
    evil = ("https://evil.example", "https://app.example.evil.example", "https://app.example:8443", "null")
    for origin in evil:
        for path in ("/subscription/cancel", "/subscription/resume", "/portal", "/subscription"):
            answer = await client.post(path, headers={**form, "origin": origin})
            assert told(answer) == (403, "origin-not-allowed")
    foreign = (
        *({"sec-fetch-site": site} for site in ("cross-site", "same-site", "Same-Origin", "")),
        *({"sec-fetch-site": site, "origin": "http://app"} for site in ("cross-site", "same-site")),
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
        {"sec-fetch-site": "none", "origin": "https://evil.example"},
    )
    for headers in foreign:
        answer = await client.post("/subscription/cancel", headers={**form, **headers})
        assert told(answer) == (403, "origin-not-allowed"), headers
    assert (len(at.changes()), await at.kit.subscriptions.get("acme")) == (before, begun)
    # Pages of the app, of the host that is asked, and clients that are no browsers.
    own = (*ORIGINS, "https://APP.example:443", "http://app")
    sites = (
        *({"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}),
        {"sec-fetch-site": "same-origin", "origin": "null"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"},
        *({"sec-fetch-site": site, "origin": ORIGINS[0]} for site in ("same-site", "cross-site")),
    )
    for headers in ({}, *({"origin": origin} for origin in own), *sites):
        assert given(await client.post("/subscription/resume", headers=headers)), headers
    assert given(await client.get("/subscription", headers={"origin": "https://evil.example"}))


async def test_bodies_are_bounded_and_json(client: httpx.AsyncClient, at: Shop) -> None:
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b" " * 4096

    headers = {"content-type": "application/json"}
    answer = await client.post("/subscription", content=endless(), headers=headers)
    assert told(answer) == (413, "request-too-large")
    assert pulled < 32
    plain: Any = {"content": b'{"plan":"pro"}', "headers": {"content-type": "text/plain"}}
    form: Any = {"data": {"plan": "pro"}}
    for sent in (form, plain):
        assert told(await client.post("/subscription", **sent)) == (415, "media-type-not-supported")
    body = b'{"plan": "prp"' + b" " * 65_000 + b"}"
    fits = await client.post("/subscription", content=body, headers=headers)
    assert (told(fits), at.changes()) == ((422, "plan-unknown"), [])
    unsold = await client.post("/subscription", json={"plan": "free"})
    assert [answer.json()["detail"] for answer in (fits, unsold)] == [
        "There is no such plan; check its spelling.",
        "This plan cannot be subscribed to: it costs nothing, or is not on sale yet.",
    ]


async def test_what_is_asked_behind_the_path_is_checked(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed(plan="pro")
    numbers = ("x", "-1", "1.0", "%D9%A3", "0", 10**15)
    for query in (*(f"seats={number}" for number in numbers), "plan=a&plan=b", "x=1&" * 40):
        assert told(await client.get(f"/subscription/preview?{query}")) == (422, "request-invalid"), query
    assert told(await client.get("/subscription/preview?plan=prp")) == (422, "plan-unknown")
    assert given(await client.get("/subscription/preview?utm_source=mail"))["over_limit"] == []


async def test_whose_it_is_says_the_app_alone(client: httpx.AsyncClient, at: Shop) -> None:
    mine = await at.subscribed("acme", "pro")
    theirs = {"x-customer-id": "other"}
    assert told(await client.get("/subscription", headers=theirs)) == (404, "no-subscription")
    query = f"?customer=acme&subscription={mine.id}&plan=team"
    for method, path in (("GET", ""), ("GET", "/preview"), ("POST", "/resume"), ("POST", "/cancel")):
        answer = await client.request(method, f"/subscription{path}{query}", headers=theirs)
        assert told(answer) == (404, "no-subscription")
    assert given(await client.get("/invoices", headers=theirs)) == []
    nobody = await client.get("/subscription", headers={"x-customer-id": ""})
    assert told(nobody) in {(401, "customer-unknown"), (400, "customer-invalid")}
    long = await client.get("/subscription", headers={"x-customer-id": "x" * 257})
    assert told(long) == (400, "customer-invalid")
    at.clock.set(START + timedelta(days=1))
    assert given(await client.get("/subscription"))["id"] == mine.id


async def test_a_customer_that_is_false_is_unknown(at: Shop) -> None:
    # F-22a: as of `user.is_authenticated and user.id`.
    no: Any = False
    routes = billing_routes(at.kit, customer=lambda _: no, origins=ORIGINS)
    async with client_of(Starlette(routes=[Mount("/billing", routes=routes)])) as client:
        assert told(await client.get("/subscription")) == (401, "customer-unknown")


async def test_who_owes_can_still_pay(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed("acme", "pro")
    await at.kit.customers.set_status("acme", "unpaid")
    assert given(await client.get("/subscription"))["access"] == "suspended"
    assert given(await client.post("/portal", json={"return_url": "https://app.example/"}))["url"]


@both_frameworks
async def test_what_stripe_refuses_is_told_without_its_words(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed("acme", "team")
    linked = await at.fail_payments()
    declined = await upgrade(client)
    assert told(declined) == (402, "payment-required")
    assert (declined.json()["reason"], declined.json()["code"]) == ("declined", "card_declined")
    at.emulator.mend_payments(linked)
    secret = "No such thing sk_test_51SECRET"
    at.emulator.fail_next("error", status=400, path="*", message=secret, times=None)
    refused = await upgrade(client)
    assert told(refused) == (502, "stripe-refused")
    assert "SECRET" not in refused.text
    assert int(refused.headers["retry-after"]) >= 1
    at.emulator.clear_faults()
    assert given(await upgrade(client))["subscription"]["plan"] == "pro"


async def test_a_customer_billed_in_another_currency_is_refused(client: httpx.AsyncClient, at: Shop) -> None:
    at.emulator.add_customer("cus_acme")
    at.emulator.add_payment_method("cus_acme", "pm_card_visa")
    at.emulator.add_price(2900, price_id="price_eur", currency="eur")
    await at.stripe_change("/v1/subscriptions", **{"customer": "cus_acme", "items[0][price]": "price_eur"})
    await at.kit.customers.link("acme", "cus_acme")
    wanted = {"plan": "team", "seats": 1}
    for path, body in (("/subscription", wanted), ("/checkout", {**wanted, **URLS})):
        refused = await client.post(path, json=body)
        assert told(refused) == (409, "currency-fixed")
        assert (refused.json()["currency"], refused.json()["requested_currency"]) == ("eur", "usd")
        assert "billed in EUR, and USD was requested" in refused.json()["detail"]
    with pytest.raises(CurrencyError, match=r"EUR, and USD was requested: .*combine currencies") as caught:
        await at.kit.subscriptions.create("acme", "team")
    assert (caught.value.currency, caught.value.requested, caught.value.status) == ("eur", "usd", 400)


@pytest.mark.parametrize(
    "message",
    [
        "The currency of the selected prices (usd) does not match the customer currency (eur).",
        "The price specified only supports `usd`. This doesn't match the expected currency: `eur`.",
        "You cannot combine currencies on a single customer. This customer has had an item with currency EUR",
    ],
)
async def test_each_refusal_for_its_currency_is_told_as_one(store_url: str, message: str) -> None:
    async with billing("starlette", store_url) as (client, at):
        await at.subscribed("acme", "team")
        at.emulator.fail_next("error", status=400, path="*", message=message, times=None)
        for refused in (
            await upgrade(client),
            await client.put("/subscription/seats", json={"seats": 9}),
            await client.get("/subscription/preview?plan=pro"),
        ):
            assert (*told(refused), refused.json()["currency"]) == (409, "currency-fixed", "eur")


async def test_the_portal_of_a_deleted_customer_is_a_404(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed("acme", "team")
    linked = await linked_of(at)
    await at.stripe_delete(f"/v1/customers/{linked}")
    refused = await client.post("/portal", json={"return_url": "https://app.example/"})
    assert told(refused) == (404, "no-subscription")
    with pytest.raises(NoSubscriptionError, match=f"Stripe has deleted {linked}"):
        await at.kit.subscriptions.portal("acme", return_url="https://app.example/")
    # The customer can begin anew.
    assert (await client.post("/subscription", json={"plan": "team", "seats": 1})).status_code == 201


async def test_a_customer_unknown_to_stripe_names_the_cure(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed("acme", "team")
    linked, of = await linked_of(at), at.kit.subscriptions
    at.emulator.reset()  # As a restart does.
    sell(at.emulator, at.kit.catalog)
    cure = f"Stripe customer {linked}, which Stripe does not know: .*`meterkit customers unlink acme`"
    back = "https://app.example/"
    for call in (
        of.sync("acme"),
        of.checkout("acme", "pro", success_url=back, cancel_url=back),
        of.change_plan("acme", "pro"),
        of.portal("acme", return_url=back),
        of.invoices("acme"),
    ):
        with pytest.raises(StripeError, match=cure):
            await call
    refused = await client.post("/portal", json={"return_url": back})
    assert told(refused) == (502, "stripe-refused")
    await at.kit.customers.unlink("acme")
    assert (await client.post("/subscription", json={"plan": "team", "seats": 1})).status_code == 201


async def test_stripe_away_is_said_and_asking_again_is_safe(client: httpx.AsyncClient, at: Shop) -> None:
    begun = await at.subscribed("acme", "team")
    path = f"/v1/subscriptions/{begun.id}"
    at.emulator.fail_next("error", status=503, path=path, when="after", times=None, skip=1)
    away = await upgrade(client)
    assert told(away)[0] == 503
    assert int(away.headers["retry-after"]) >= 1
    at.emulator.clear_faults()
    assert given(await upgrade(client))["subscription"]["plan"] == "pro"
    assert len([one for one in await at.invoices() if one["billing_reason"] == "subscription_update"]) == 1


async def test_without_a_key_only_reading_works(framework: Framework, store_url: str) -> None:
    async with billing(framework, store_url, stripe_api_key=None) as (client, _):
        assert given(await client.get("/usage"))["plan"] == "free"
        assert told(await client.get("/subscription")) == (404, "no-subscription")
        answer = await client.post("/subscription", json={"plan": "pro"})
        assert (told(answer)[0], "retry-after" in answer.headers) == (503, False)
        assert answer.json()["detail"] == "Billing is not set up: this service has no Stripe key."


NO_ORIGINS: list[tuple[Any, str]] = [
    ([], "none"),
    ("https://app.example", "the text 'https://app.example'"),
    (["*"], "'*'; allowed are origins such as"),
    (["app.example"], "'app.example'"),
    (["https://app.example", "https://app.example/paid"], "'https://app.example/paid'"),
    (["https://*.app.example"], "'https://*.app.example'"),
]


async def test_a_router_with_an_origin_that_is_none_is_refused(at: Shop) -> None:
    unknown: tuple[Any, ...] = (None, "acme", 5)
    for make, customer in itertools.product((billing_router, billing_routes), unknown):
        with pytest.raises(MeterkitError, match="customer: found"):
            make(at.kit, customer=customer, origins=ORIGINS)
    for origins, said in NO_ORIGINS:
        with pytest.raises(MeterkitError, match=re.escape(f"origins: found {said}")):
            billing_router(at.kit, customer=who, origins=origins)
        with pytest.raises(MeterkitError, match="origins: found"):
            billing_routes(at.kit, customer=who_by_scope, origins=origins)


async def test_an_upgrade_without_a_card_names_the_page_to_add_one(
    client: httpx.AsyncClient, at: Shop
) -> None:
    given(await client.post("/subscription", json={"plan": "tried"}), 201)
    answer = await upgrade(client)
    assert told(answer) == (402, "payment-method-missing")
    at.emulator.use_portal(answer.json()["url"], "mend_payment")
    assert given(await upgrade(client))["subscription"]["plan"] == "pro"


async def test_an_open_invoice_is_named_with_its_page(client: httpx.AsyncClient, at: Shop) -> None:
    await at.subscribed(plan="team")
    await at.fail_payments()
    at.clock.advance(timedelta(days=31))
    for answer in (await upgrade(client), await client.put("/subscription/seats", json={"seats": 8})):
        assert told(answer) == (402, "invoice-open")
        assert answer.json()["url"] == (await at.invoices())[-1]["hosted_invoice_url"]


async def test_the_openapi_document_tells_what_is_sent_and_answered(at: Shop) -> None:
    app = FastAPI()
    app.include_router(billing_router(at.kit, customer=who, origins=ORIGINS, prefix="/billing"))
    paths = app.openapi()["paths"]
    places = ("", "/preview", "/plan", "/seats", "/addons", "/cancel", "/resume")
    pages = ("checkout", "portal", "top-up", "invoices", "usage")
    found = {path.removeprefix("/billing/") for path in paths}
    assert found == {*(f"subscription{place}" for place in places), *pages}
    create = paths["/billing/subscription"]["post"]
    body = create["requestBody"]["content"]["application/json"]["schema"]
    assert (body["required"], body["additionalProperties"]) == (["plan"], False)
    assert {"201", "401", "409", "413", "422", "502", "503"} <= set(create["responses"])
    async with client_of(app) as client:
        answer = await client.get("/subscription")
    shown = paths["/billing/subscription"]["get"]["responses"]["404"]["content"][PROBLEM]["schema"]
    jsonschema.validate(json.loads(answer.text), shown)
    unpaid = paths["/billing/subscription/plan"]["put"]["responses"]["402"]["content"][PROBLEM]["schema"]
    kinds = {one["properties"]["type"]["const"].removeprefix(URN) for one in unpaid["oneOf"]}
    assert kinds == {"payment-required", "payment-method-missing", "invoice-open"}
