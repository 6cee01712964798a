"""Browser of a customer at the billing routes of a kit, within the process."""

from __future__ import annotations

from typing import Final

import httpx
from starlette.applications import Starlette

from meterkit import MeterKit
from meterkit.starlette import billing_routes

ORIGIN: Final = "https://app.example"


def browser(kit: MeterKit, customer: str = "acme") -> httpx.AsyncClient:
    """Ask as a customer."""
    routes = billing_routes(kit, customer=lambda _: customer, origins=[ORIGIN])
    return httpx.AsyncClient(transport=httpx.ASGITransport(Starlette(routes=routes)), base_url=ORIGIN)
