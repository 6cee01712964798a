"""The emulated account, reached by the official Stripe SDK over HTTP."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import stripe

from drivers.stripe_sdk import StripeSession
from meterkit import Settings
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import pytest

    from meterkit.testing import StripeEmulator


def unpaced(patched: pytest.MonkeyPatch) -> None:
    """Ask Stripe without pauses, for its limits or between two tries: these have tests of their own."""
    patched.setattr("meterkit.stripe.sdk._PER_ENDPOINT_S", 10_000.0)
    patched.setattr("meterkit.stripe.sdk._LIVE_PER_S", 10_000.0)
    patched.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.0)


@asynccontextmanager
async def account(
    emulator: StripeEmulator, *, key: str = "sk_test_1", timeout_s: float = 60.0
) -> AsyncGenerator[stripe.StripeClient]:
    """Serve the emulator and yield a client of it."""
    async with emulator.serve() as url, reached(url, key=key, timeout_s=timeout_s) as client:
        yield client


@asynccontextmanager
async def reached(url: str, *, key: str, timeout_s: float) -> AsyncGenerator[stripe.StripeClient]:
    """Yield a client of an emulator that is served."""
    session = StripeSession(key, api_base=url, events_base=url, timeout_s=timeout_s)
    try:
        yield session.client
    finally:
        await session.close()


@asynccontextmanager
async def stripe_api(url: str, key: str) -> AsyncGenerator[StripeApi]:
    """Yield calls of Stripe's API by path: ``get``, ``post`` and ``list``."""
    given: Any = {"stripe_api_key": key, "stripe_api_base": url}
    api = StripeApi(Settings.load(**given))
    try:
        yield api
    finally:
        await api.close()
