"""Beside the middleware that apps have, in both orders, what is counted is the same (promise I8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from typing import Any, Literal

import pytest
from brotli_asgi import BrotliMiddleware
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response

from drivers.llm_apps import listening
from field.endpoints import EVENTS, PLANS, routes
from field.traffic import BILLED, INCLUDED, Visitors, visiting
from meterkit import MeterKit, MeterMiddleware, identify

pytestmark = pytest.mark.anyio


async def hand_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


BESIDE: dict[str, tuple[Any, dict[str, Any]]] = {
    "gzip": (GZipMiddleware, {"minimum_size": 1}),
    "brotli": (BrotliMiddleware, {"minimum_size": 1}),
    "cors": (CORSMiddleware, {"allow_origins": ["*"]}),
    "base http": (BaseHTTPMiddleware, {"dispatch": hand_on}),
    "opentelemetry": (import_module("opentelemetry.instrumentation.asgi").OpenTelemetryMiddleware, {}),
    "prometheus": (PrometheusInstrumentatorMiddleware, {}),
}
CHOSEN = {("brotli", "outside"), ("base http", "inside"), ("opentelemetry", "outside")}


def _orders() -> Iterator[object]:
    """Each middleware in both orders; without ``--whole`` those chosen."""
    for cell in product(BESIDE, ("outside", "inside")):
        yield pytest.param(*cell, marks=[] if cell in CHOSEN else pytest.mark.whole)


@pytest.mark.parametrize(("beside", "order"), [*_orders()])
async def test_i8_counts_do_not_depend_on_other_middleware(
    beside: str, order: Literal["outside", "inside"], store_url: str
) -> None:
    # F-6, F-7: compressed outside, streams counted no tokens; behind BaseHTTPMiddleware, hang-ups were free.
    app = Starlette(routes=routes("/api"))
    middleware, options = BESIDE[beside]
    if beside == "prometheus":
        options = {"registry": CollectorRegistry()}
    if order == "inside":
        app.add_middleware(middleware, **options)
    kit = MeterKit(PLANS, redis_url=store_url, shards=4, flush=False, store_timeout=60.0)
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    if order == "outside":
        app.add_middleware(middleware, **options)
    async with kit:
        await kit.customers.set_plan(BILLED, "pro")
        async with listening(app, lifespan="on") as port, visiting(f"http://127.0.0.1:{port}") as client:
            visitors = Visitors(client)
            await visitors.all_come()
        assert Counter({200: INCLUDED, 429: 12 - INCLUDED}) == visitors.statuses
        meters = (await kit.usage(BILLED))["meters"]
        assert all(visitors.seen[meter] == meters[meter]["recorded"] for meter in EVENTS)
