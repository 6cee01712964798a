"""The emulated account, reached by the official Stripe SDK over HTTP."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from stripe_session import StripeSession

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import stripe

    from meterkit.testing import StripeEmulator

__all__ = ["account"]


@asynccontextmanager
async def account(emulator: StripeEmulator, *, key: str = "sk_test_1") -> AsyncGenerator[stripe.StripeClient]:
    """Serve the emulator and yield a client of it."""
    async with emulator.serve() as url:
        session = StripeSession(key, api_base=url, events_base=url, timeout_s=60)
        try:
            yield session.client
        finally:
            await session.close()
