"""A customer whose usage waits for an emulated Stripe, as commands find it in a store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from drivers.command_line import Shell


@asynccontextmanager
async def recorded(
    stored: Shell, directory: Path, store_url: str
) -> AsyncGenerator[tuple[MeterKit, StripeEmulator]]:
    """A kit that has 25 tokens of acme's to deliver, to a Stripe that does not know acme yet."""
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    with emulator.running() as url:
        key = "sk_test_1"
        stored.environment |= {"METERKIT_STRIPE_API_KEY": key, "METERKIT_STRIPE_API_BASE": url}
        plans = directory / "plans.yaml"
        async with MeterKit(
            plans, redis_url=store_url, flush=False, stripe_api_key=key, stripe_api_base=url
        ) as kit:
            await kit.customers.link("acme", "cus_acme", force=True)
            await kit.record("acme", "tokens", 25)
            yield kit, emulator
