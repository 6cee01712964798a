"""What ``meterkit flush`` says and exits with where Stripe will never have something by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def test_flush_exits_1_as_long_as_something_is_dead(
    stored: Shell, directory: Path, store_url: str
) -> None:
    # F-87: 0 was as good to the tests.
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_customer("cus_zeta")
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for customer, quantity in {"acme": 25, "zeta": 7}.items():
            await kit.customers.link(customer, f"cus_{customer}", force=True)  # Stripe has no cus_acme.
            await kit.record(customer, "tokens", quantity)
    with emulator.running() as url:
        stored.environment |= {"METERKIT_STRIPE_API_KEY": "sk_test_1", "METERKIT_STRIPE_API_BASE": url}
        first = stored.run("flush", "--all", "--json")
        assert (first.code, first.json["delivered"], first.json["dead"], first.json["left"]) == (1, 1, 1, 0)
        # Nothing is left to be tried, and it is still not delivered.
        again = stored.run("flush", "--all")
        assert again.code == 1
        assert "dead: 25 of tokens of customer acme in 1 intent: " in again.out
        assert "zeta" not in again.out
    assert emulator.accepted("cus_zeta", "ai_tokens") == 7
