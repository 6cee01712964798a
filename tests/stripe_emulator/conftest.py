"""A shop on the emulator, and Stripe's own SDK to ask it with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from drivers.emulated_account import account
from drivers.emulated_shop import shop
from stripe_emulator import Clock, StripeEmulator


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> tuple[StripeEmulator, Clock]:
    options: dict[str, Any] = getattr(request, "param", {})
    return shop(**options)


@pytest.fixture
def emulator(opened: tuple[StripeEmulator, Clock]) -> StripeEmulator:
    return opened[0]


@pytest.fixture
def clock(opened: tuple[StripeEmulator, Clock]) -> Clock:
    return opened[1]


@pytest.fixture
async def client(emulator: StripeEmulator) -> AsyncIterator[Any]:
    async with account(emulator) as client:
        yield client
