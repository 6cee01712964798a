"""``meterkit reconcile``: exits 1 where our books and Stripe's differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def test_books_are_compared(stored: Shell, directory: Path, store_url: str) -> None:
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_customer("cus_acme")
    with emulator.running() as url:
        key, plans = "sk_test_1", directory / "plans.yaml"
        stored.environment |= {"METERKIT_STRIPE_API_KEY": key, "METERKIT_STRIPE_API_BASE": url}
        async with MeterKit(
            plans, redis_url=store_url, flush=False, stripe_api_key=key, stripe_api_base=url
        ) as kit:
            nothing = stored.run("reconcile")
            assert (nothing.code, nothing.out) == (0, "")
            assert "nothing is known of customer acne" in stored.run("reconcile", "acne").err
            await kit.customers.link("acme", "cus_acme")
            await kit.record("acme", "tokens", 25)
            await kit.flush(everything=True)
            same = stored.run("reconcile", "acme")
            assert same.code == 0
            assert same.out.splitlines()[-1].split()[-4:] == ["25", "25", "25", "0"]
            whole, brief = stored.run("reconcile", "--all"), stored.run("reconcile")
            assert (whole.out, whole.code) == (same.out, 0)
            assert (brief.code, brief.out, brief.err) == (0, "", "all 1 agree with Stripe\n")
            emulator.fail_next("lose")
            await kit.record("acme", "tokens", 5)
            await kit.flush(everything=True)
        differs = stored.run("reconcile", "--json", "--repair")
        (one,) = differs.json
        assert (differs.code, one["delivered"], one["confirmed"], one["agrees"]) == (1, 30, 25, False)
        told = stored.run("reconcile")
        assert (told.code, "1 of 1 do not agree" in told.err) == (1, True)
        assert "acme" in told.out
        assert stored.run("reconcile", "--period", "2020-01").code == 0
        assert stored.run("reconcile", "--period", "soon").code == 2
