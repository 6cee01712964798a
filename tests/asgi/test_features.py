"""Whether a customer has a feature: `kit.allows`, and `meterkit.allows` in a request."""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.routing import Route

from drivers.app import PLANS, served
from faults.proxy import TcpProxy
from faults.refusals import evalsha_calls
from meterkit import (
    CustomerError,
    MeterKit,
    MeterkitError,
    StoreError,
    UnknownFeatureError,
    UnknownMeterError,
    allows,
)
from meterkit.catalog import loads
from servers.stores import free_port

if TYPE_CHECKING:
    from starlette.requests import Request

    from servers.stores import Server

pytestmark = pytest.mark.anyio

OPEN = PLANS + "anonymous: {plan: pro, by: ip}\n"
NO_FEATURES = re.sub(r"^ *features: .*\n", "", PLANS, flags=re.MULTILINE).replace("feature: full, ", "")
later: list[bool] = []


async def tell(request: Request) -> JSONResponse:
    del request
    there = await asyncio.to_thread(allows, "full")
    after = BackgroundTask(lambda: later.append(allows("full")))
    return JSONResponse([allows("basic"), allows("full"), there], background=after)


def tell_in_a_thread(request: Request) -> JSONResponse:
    del request
    return JSONResponse([allows("basic"), allows("full"), allows("full")])


APP = Starlette(
    routes=[
        Route("/{path:path}", tell, methods=["GET"]),
        Route("/{path:path}", tell_in_a_thread, methods=["POST"]),
    ]
)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_knows_the_features_of_its_plan(any_store_url: str, method: str) -> None:
    later.clear()
    async with served(APP, redis_url=any_store_url) as at:
        assert (await at.client.request(method, "/v1/x")).json() == [True, False, False]
        await at.kit.customers.set_plan("acme", "pro")
        assert (await at.client.request(method, "/v1/x")).json() == [True, True, True]
    assert later == ([False, True] if method == "GET" else [])


async def test_it_asks_nobody(valkey: Server, store_url: str) -> None:
    async with served(APP, redis_url=store_url) as at:
        await at.client.get("/quiet")
        before = evalsha_calls(valkey)
        await at.client.get("/quiet")
        assert evalsha_calls(valkey) - before == 2  # Decided, and settled.
        await at.kit.allows("acme", "full")
        assert evalsha_calls(valkey) - before == 3


async def test_an_anonymous_customer_has_the_features_of_their_plan() -> None:
    async with served(APP, plans=OPEN) as at:
        assert (await at.client.get("/v1/x", headers={"x-customer-id": ""})).json() == [True, True, True]


async def test_the_suspended_have_none_where_they_are_served_at_all(any_store_url: str) -> None:
    async with served(APP, redis_url=any_store_url) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.customers.set_status("acme", "unpaid")
        assert (await at.client.get("/billing/x")).json() == [False, False, False]
        assert not await at.kit.allows("acme", "full")
        await at.kit.customers.set_status("acme", "active")
        assert (await at.client.get("/billing/x")).json() == [True, True, True]
        assert await at.kit.allows("acme", "full")


async def test_grace_keeps_the_features_and_restriction_takes_them(any_store_url: str) -> None:
    async with served(APP, redis_url=any_store_url) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.customers.set_status("acme", "past_due")
        found: list[tuple[bool, bool]] = []
        for _ in range(3):
            found.append((await at.kit.allows("acme", "basic"), await at.kit.allows("acme", "full")))
            at.clock.advance(timedelta(days=8))
        assert found == [(True, True), (True, False), (False, False)]


async def test_a_change_binds_the_next_question_in_every_process(store_url: str) -> None:
    async with (
        MeterKit(loads(PLANS), redis_url=store_url) as one,
        MeterKit(loads(PLANS), redis_url=store_url) as other,
    ):
        for plan in ("pro", "free", "pro"):
            await one.customers.set_plan("acme", plan)
            assert await other.allows("acme", "full") == (plan == "pro")
            assert not await other.allows("zoe", "full")
            assert await other.allows("zoe", "basic")


async def test_nothing_is_counted_by_asking(any_store_url: str) -> None:
    plans = PLANS.replace("rate: 20/hour", "rate: 1/hour, concurrency: 1")
    async with served(APP, plans=plans, redis_url=any_store_url) as at:
        for _ in range(3):
            assert await at.kit.allows("acme", "basic")
        await at.kit.consume("acme", "requests")
        assert await at.kit.allows("acme", "basic")
        assert await at.counted() == (1, 0)


async def tell_misspelt(request: Request) -> JSONResponse:
    return JSONResponse(allows(request.query_params["feature"]))


@pytest.mark.parametrize(
    ("plans", "name", "message"),
    [
        (PLANS, "ful", "feature: found 'ful'; allowed are the features basic, full; did you mean 'full'?"),
        (PLANS, "zzz", "feature: found 'zzz'; allowed are the features basic, full"),
        (PLANS, "", "feature: found ''; allowed are the features basic, full"),
        (NO_FEATURES, "full", "feature: found 'full'; the plans file has no features"),
    ],
)
@pytest.mark.parametrize("enforcement", ["on", "shadow", "off"])
async def test_an_unknown_feature_is_refused_with_the_nearest_spelling(
    plans: str, name: str, message: str, enforcement: str
) -> None:
    app = Starlette(routes=[Route("/v1/x", tell_misspelt)])
    async with served(app, plans=plans, settings={"enforcement": enforcement}) as at:
        with pytest.raises(UnknownFeatureError) as by_kit:
            await at.kit.allows("acme", name)
        with pytest.raises(UnknownFeatureError) as in_request:
            await at.client.get("/v1/x", params={"feature": name})
    for refused in (by_kit.value, in_request.value):
        assert (str(refused), refused.feature) == (message, name)
        assert isinstance(refused, MeterkitError)
        assert isinstance(refused, ValueError)


def test_an_unknown_meter_is_told_of_as_before() -> None:
    error = UnknownMeterError.of("requets", ["requests", "tokens"])
    said = "meter: found 'requets'; allowed are the counters requests, tokens; did you mean 'requests'?"
    assert (str(error), error.meter) == (said, "requets")


@pytest.mark.parametrize("customer", ["", "a\nb", "a" * 257])
async def test_a_customers_id_that_is_none_is_refused(customer: str) -> None:
    async with served(APP) as at:
        with pytest.raises(CustomerError):
            await at.kit.allows(customer, "full")


def test_outside_of_a_request_it_says_so() -> None:
    with pytest.raises(MeterkitError, match=r"^allows\(\) was called outside of a request that MeterMiddlew"):
        allows("full")


@pytest.mark.parametrize("enforcement", ["shadow", "off"])
async def test_nobody_is_held_to_a_plan_where_limits_are_not_enforced(
    enforcement: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(APP, settings={"enforcement": enforcement}) as at:
        assert await at.kit.allows("acme", "full")
        assert (await at.client.get("/v1/x")).json() == [True, True, True]
        await at.kit.customers.set_status("acme", "unpaid")
        assert (await at.client.get("/v1/x")).json() == [True, True, True]
        assert (await at.client.get("/v1/x", headers={"x-customer-id": ""})).json() == [True, True, True]
    features = [vars(line) for line in caplog.records if vars(line).get("reason") == "feature"]
    assert features == []  # A question refuses nothing.


async def test_a_route_in_shadow_asks_like_the_others_of_its_kind() -> None:
    async with served(APP) as at:
        assert (await at.client.get("/shadow")).json() == [True, True, True]
        assert (await at.client.get("/v1/x")).json() == [True, False, False]
        assert not await at.kit.allows("acme", "full")


async def test_off_asks_no_store() -> None:
    settings: dict[str, Any] = {"enforcement": "off", "store_timeout": 10}
    async with served(APP, redis_url=f"redis://127.0.0.1:{free_port()}", settings=settings) as at:
        assert await at.kit.allows("acme", "full")


async def test_without_the_store_the_kit_raises_and_requests_pass(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with TcpProxy(valkey.port) as proxy, served(APP, redis_url=proxy.url) as at:
        assert (await at.client.get("/v1/x")).json() == [True, False, False]
        await proxy.set("refuse")
        with pytest.raises(StoreError):
            await at.kit.allows("acme", "full")
        assert (await at.client.get("/full")).status_code == 403  # By what is known.
        other = {"x-customer-id": "other"}
        assert (await at.client.get("/full", headers=other)).json() == [True, True, True]
