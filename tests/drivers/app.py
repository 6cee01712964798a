"""An app behind the middleware, in this process: what tests of the edge hold in their hands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drivers.delivery import NOW
from drivers.plans import completed
from faults.refusals import http_scope as request
from faults.refusals import used
from meterkit import MeterKit, MeterkitError, MeterMiddleware, identify
from meterkit.catalog import Catalog, loads
from meterkit.testing import Clock

_numbers = count()


@cache  # Hundreds of tests share a few plans files.
def _read(text: str) -> Catalog:
    return loads(completed(text))


PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: ai_tokens}}
  pages:    {unit: page}
features: [basic, full]
routes:
  - {match: "GET /healthz", exempt: true}
  - {match: "/billing/{path:path}", always: true, consume: {requests: 1}}
  - {match: "GET /full", feature: full, consume: {requests: 1}}
  - {match: "/attempt", consume: {requests: 1}, charge_on: attempt}
  - {match: "/errors", consume: {requests: 1}, charge_on: [client_error, server_error]}
  - {match: "/strict", consume: {requests: 1}, on_store_failure: deny}
  - {match: "/shadow", consume: {requests: 1}, enforcement: shadow}
  - {match: "/quiet", consume: {requests: 1}, headers: none}
  - {match: "/both", consume: {requests: 1}, headers: both}
  - {match: "/pages", consume: {pages: 1}}
  - {match: "/v1/{path:path}", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    features: [basic]
    meters:
      requests: {rate: 20/hour, included: 5, overage: deny}
      tokens:   {rate: 1000/hour}
      pages:    {concurrency: 1}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month}
    features: [basic, full]
    meters:
      requests: {rate: 20/hour, included: 3, overage: deny}
      tokens:   {included: 10, overage: {bill: {cap: 5}}}
"""
HEADERS = {"x-customer-id": "acme"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An app behind the middleware, and a client of a customer who is called acme."""

    app: ASGIApp
    kit: MeterKit
    clock: Clock
    client: httpx.AsyncClient

    async def counted(self, customer: str = "acme", meter: str = "requests") -> tuple[int, int]:
        return await used(self.kit, customer, meter)

    async def statuses(self, *paths: str, method: str = "GET", **options: Any) -> list[int]:
        return [(await self.client.request(method, path, **options)).status_code for path in paths]

    async def left(self, path: str = "/v1/x", **options: Any) -> str:
        """The ``RateLimit`` field of one more request."""
        return (await self.client.get(path, **options)).headers["ratelimit"]


@asynccontextmanager
async def served(
    app: ASGIApp,
    *,
    plans: str | Path = PLANS,
    who: Callable[[Scope], Any] | None = None,
    redis_url: str = "memory://",
    raise_app_exceptions: bool = True,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncGenerator[Served]:
    """Serve an app behind the middleware, under a clock that stands still.

    A plans file may leave out what :func:`completed` adds.
    """
    clock = Clock(NOW)
    given: dict[str, Any] = {"shards": 4, "flush": False} | (settings or {})
    kit = MeterKit(
        _read(plans) if isinstance(plans, str) else plans,
        clock=clock,
        redis_url=redis_url,
        key_prefix=f"edge{next(_numbers)}",
        **given,
    )
    wrapped = MeterMiddleware(app, kit=kit, identify=who or identify.header("x-customer-id"), **options)
    transport = httpx.ASGITransport(app=wrapped, raise_app_exceptions=raise_app_exceptions)
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=HEADERS) as client:
        yield Served(app=wrapped, kit=kit, clock=clock, client=client)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def answering(status: int) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def http_scope(path: str = "/v1/x", *, method: str = "GET", customer: str = "acme", **more: Any) -> Scope:
    return {
        **request(customer, path),
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": method,
        "client": ("127.0.0.1", 5000),
        "server": ("app", 80),
        "state": {},
        **more,
    }


async def ignore(_: Message) -> None:
    """A client that reads nothing of its answer."""


class SentMessages(list["Message"]):
    """A client that keeps what it is sent."""

    async def __call__(self, message: Message) -> None:
        self.append(message)


async def no_more() -> Message:
    """A client that has sent all it will."""
    return {"type": "http.request", "body": b"", "more_body": False}


def staying(body: bytes = b"") -> Receive:
    """A client that sends one message, and stays."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def are_refused_in_child(*records: Callable[[], None]) -> bool:
    """Whether a child process that is forked here may record for no request."""
    child = os.fork()
    if not child:
        refused = 0
        try:
            for record in records:
                try:
                    record()
                except MeterkitError as error:
                    refused += "outside of a request" in str(error)
        finally:
            os._exit(refused != len(records))
    return (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
