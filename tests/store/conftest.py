"""What tests of the store share: a kit and its clock, and a network that loses, holds and cuts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from drivers.delivery import NOW
from drivers.subscribed_customer import PLANS, kit_of
from faults.proxy import TcpProxy
from meterkit import MeterKit
from meterkit.testing import Clock
from servers.stores import Server


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def kit(request: pytest.FixtureRequest, store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    """A kit of the plans file ``PLANS`` of the test's module, or of that of subscribed customers."""
    async with kit_of(store_url, clock, getattr(cast("Any", request).module, "PLANS", PLANS)) as kit:
        yield kit


@pytest.fixture
async def other(request: pytest.FixtureRequest, store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with kit_of(store_url, clock, getattr(cast("Any", request).module, "PLANS", PLANS)) as kit:
        yield kit


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port) as proxy:
        yield proxy
