"""Whether a customer has a feature: `kit.allows`, and `meterkit.allows` in a request."""

from __future__ import annotations

import asyncio
import logging
import re
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
    MeterKit,
    MeterkitError,
    StoreError,
    UnknownFeatureError,
    allows,
)
from meterkit.catalog import loads
from servers.stores import free_port

if TYPE_CHECKING:
    from starlette.requests import Request

    from servers.stores import Server

pytestmark = pytest.mark.anyio

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
async def test_a_request_knows_the_features_of_its_plan(method: str) -> None:
    later.clear()
    async with served(APP) as at:
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
        await one.customers.set_status("acme", "unpaid")
        assert not await other.allows("acme", "full")


async def tell_misspelt(request: Request) -> JSONResponse:
    return JSONResponse(allows(request.query_params["feature"]))


@pytest.mark.parametrize(
    ("enforcement", "plans", "name", "message"),
    [
        ("on", PLANS, "ful", "found 'ful'; allowed are the features basic, full; did you mean 'full'?"),
        ("shadow", PLANS, "zzz", "found 'zzz'; allowed are the features basic, full"),
        ("off", PLANS, "", "found ''; allowed are the features basic, full"),
        ("on", NO_FEATURES, "full", "found 'full'; the plans file has no features"),
    ],
)
async def test_an_unknown_feature_is_refused_with_the_nearest_spelling(
    enforcement: str, plans: str, name: str, message: str
) -> None:
    app = Starlette(routes=[Route("/v1/x", tell_misspelt)])
    async with served(app, plans=plans, settings={"enforcement": enforcement}) as at:
        with pytest.raises(UnknownFeatureError) as by_kit:
            await at.kit.allows("acme", name)
        with pytest.raises(UnknownFeatureError) as in_request:
            await at.client.get("/v1/x", params={"feature": name})
    for refused in (by_kit.value, in_request.value):
        assert (str(refused), refused.feature) == (f"feature: {message}", name)
        assert isinstance(refused, MeterkitError)
        assert isinstance(refused, ValueError)


def test_outside_of_a_request_it_says_so() -> None:
    with pytest.raises(MeterkitError, match=r"^allows\(\) was called outside of a request that MeterMiddlew"):
        allows("full")


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
