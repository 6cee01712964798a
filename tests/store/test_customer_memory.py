"""How much memory of the server a customer takes, as docs/deployment.md says."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.subscribed_customer import END, NOW, fetched, kit_of, subscription
from meterkit.testing import Clock

if TYPE_CHECKING:
    from meterkit import MeterKit
    from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: pro
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens:   {unit: token, stripe: {event_name: tokens}}
  images:   {unit: image, stripe: {event_name: images}}
  seats:    {unit: seat, kind: gauge}
credits:
  ai: {costs: {images: 1 per 1}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: 100, overage: bill, rate: 100/minute}
      tokens:   {included: 100, overage: bill}
      images:   {included: 100, overage: bill}
      seats:    {included: 10, overage: deny}
    grants: [{credit: ai, quantity: 10, every: period}]
routes:
  - {match: GET /, consume: {requests: 1}}
"""
CUSTOMER = "customer-00042"


async def test_a_customer_takes_one_to_six_kilobytes(valkey: Server) -> None:
    clock = Clock(NOW)
    month = timedelta(days=31)
    async with kit_of(valkey.url, clock, PLANS) as kit:
        await fetched(kit, subscription(), customer=CUSTOMER)
        await use_each_meter(kit)
        in_the_first_month = bytes_of(valkey, CUSTOMER)
        for nth in range(12):
            start = END + nth * month
            renewed = subscription(start_ms=start, end_ms=start + month)
            clock.set(start + timedelta(days=1))
            await fetched(kit, renewed, customer=CUSTOMER, cause=f"renewal_{nth}")
            await use_each_meter(kit)
        assert 1_000 <= in_the_first_month <= 3_000
        assert in_the_first_month <= bytes_of(valkey, CUSTOMER) <= 6_000


async def use_each_meter(kit: MeterKit) -> None:
    for meter in ("requests", "tokens", "images"):
        await kit.consume(CUSTOMER, meter, 300)


def bytes_of(server: Server, customer: str) -> int:
    keys: list[str] = server.ask("KEYS", f"*{customer}*")
    return sum(server.ask("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys)
