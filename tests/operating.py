"""The operator pages of a kit, as an operator's browser asks for them."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from auditing import sqlite_in
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.pages import operator_pages
from meterkit.testing import Clock
from shopping import START

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from starlette.types import Scope

JSON = {"accept": "application/json"}
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: ai_tokens}}
plans:
  free:
    name: Free <b>plan</b>
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 10, overage: deny}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: 1_000, overage: deny}
"""


def who(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-operator", b"").decode() or None


@asynccontextmanager
async def pages_of(kit: MeterKit, operator: str = "ada") -> AsyncGenerator[httpx.AsyncClient]:
    app = Starlette(routes=[Mount("/operator", app=operator_pages(kit, allowed=who))])
    transport = httpx.ASGITransport(app=app)
    headers = {"x-operator": operator}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://app/operator", headers=headers
    ) as client:
        yield client


@asynccontextmanager
async def selling(store_url: str, directory: Path | None, **settings: Any) -> AsyncGenerator[MeterKit]:
    url = None if directory is None else sqlite_in(directory)
    async with MeterKit(
        loads(PLANS), redis_url=store_url, clock=Clock(START), audit_url=url, flush=False, **settings
    ) as kit:
        yield kit


def figures_on(page: str) -> dict[str, int]:
    """The figures of an overview as HTML, by section and name."""
    found = re.findall(r'<(dd|td) data-figure="([^"]*)"[^>]*>(.*?)</\1>', page, re.DOTALL)
    values = {name: re.search(r'<data value="([^"]*)">', shown) for _, name, shown in found}
    return {name: int(value[1]) for name, value in values.items() if value and value[1].lstrip("-").isdigit()}


def flat(figures: Any, name: str = "") -> dict[str, int]:
    """The figures of an overview as JSON, by section, row and name."""
    if isinstance(figures, int):
        return {name: figures}
    found: dict[str, int] = {}
    for part, of in figures.items():
        found |= flat(of, f"{name}:{part}" if name else part)
    return found
