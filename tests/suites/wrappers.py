"""Wrappers that the suites of other projects are run with; each is a factory ``(app) -> app``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drivers.lua_runtime import compile_once
from meterkit import MeterKit, MeterMiddleware
from meterkit.catalog import Catalog, loads
from meterkit.redis import event_loops, memory


def without_last_header(app: ASGIApp) -> ASGIApp:
    """A wrapper that is not transparent, to see that the suite notices."""

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_less(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", ()))[:-1]}
            await send(message)

        await app(scope, receive, send_less)

    return wrapper


PLANS = """
schema: 1
currency: usd
default_plan: only
meters:
  requests: {{unit: request}}
routes:
  - {{match: "*", consume: {{requests: 1}}}}
plans:
  only:
    price: {{amount_cents: 0, interval: month}}
    meters:
      requests: {{rate: 1_000_000/hour, included: 1_000_000, overage: deny, concurrency: 1_000}}
headers: {headers}
"""
# Some suites set a clock that no store agrees with: what is not taken then is not waited for at the end.
patch.object(event_loops, "_DRAIN_S", 0.1).start()
_memory: Any = memory
compile_once(_memory._server)
OURS = (b"ratelimit", b"ratelimit-policy")
EXPOSED = b"access-control-expose-headers"


@cache
def catalog(headers: str) -> Catalog:
    return loads(PLANS.format(headers=headers))


def metered(app: ASGIApp, headers: str = "none") -> ASGIApp:
    """The middleware, with limits that nothing comes near."""
    kit = MeterKit(catalog(headers), redis_url="memory://", shards=1, flush=False)
    return MeterMiddleware(app, kit=kit, identify=lambda _: "acme")


def metered_with_fields(app: ASGIApp) -> ASGIApp:
    """The middleware with its fields, which are taken off again: nothing else may differ."""
    wrapped = metered(app, "ietf")

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_fields(message: Message) -> None:
            if message["type"].endswith((".start", ".accept")) and "headers" in message:
                message = {**message, "headers": list(without_fields(message["headers"]))}
            await send(message)

        await wrapped(scope, receive, send_without_fields)

    return wrapper


def without_fields(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers:
        if name.lower() == EXPOSED:
            names = [part.strip() for part in value.split(b",")]
            names = [part for part in names if part.lower() not in OURS]
            if names:
                yield name, b", ".join(names)
        elif name.lower() not in OURS:
            yield name, value
