from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from drivers.command_line import TIMEOUT_S, Shell
from drivers.redrives import kill_webhook, queue_webhook
from drivers.webhooks import PLANS
from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def give_up(directory: Path, store_url: str, *stripe_customers: str) -> None:
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for name in stripe_customers:
            await kill_webhook(kit, name, f"{name} is linked to another customer")


async def test_what_is_given_up_is_listed_and_tried_again(
    stored: Shell, directory: Path, store_url: str
) -> None:
    nobody = stored.run("webhooks", "list")
    assert (nobody.code, nobody.out) == (0, "")
    assert "no sync was given up" in nobody.err
    await give_up(directory, store_url, "cus_a", "cus_b")
    listed = stored.run("webhooks", "list")
    assert listed.code == 1
    assert "cus_a is linked to another customer" in listed.out
    assert "waiting syncs: 0" in listed.err
    as_json = stored.run("webhooks", "list", "--json")
    assert [entry["stripe_customer"] for entry in as_json.json["dead"]] == ["cus_a", "cus_b"]
    assert (as_json.json["waiting"], as_json.json["alarms"]) == (0, {})
    one = stored.run("webhooks", "redrive", "cus_a", "cus_else")
    assert (one.code, one.out) == (1, "looked at again: 1\n")
    assert "not given up: 1 of those" in one.err
    rest = stored.run("webhooks", "redrive", "--json")
    assert (rest.code, rest.json) == (0, {"redriven": 1})
    assert stored.run("webhooks", "list", "--json").json["waiting"] == 2


async def test_the_worker_works_off_webhooks(stored: Shell, directory: Path, store_url: str) -> None:
    (directory / "plans.yaml").write_text(PLANS)
    emulator = StripeEmulator(automatic_webhooks=False)
    emulator.add_price(1000, price_id="price_pro")
    emulator.add_customer("cus_acme")
    emulator.add_payment_method("cus_acme")
    with emulator.running() as url:
        stored.environment |= {"METERKIT_STRIPE_API_KEY": "sk_test_1", "METERKIT_STRIPE_API_BASE": url}
        async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
            await kit.customers.link("acme", "cus_acme")
            form = {"customer": "cus_acme", "items[0][price]": "price_pro"}
            key = {"Authorization": "Bearer sk_test_1"}
            async with httpx.AsyncClient(headers=key) as client:
                assert (await client.post(f"{url}/v1/subscriptions", data=form)).status_code == 200
            await queue_webhook(kit, "cus_acme")
            with stored.running("worker") as worker:
                async with asyncio.timeout(TIMEOUT_S):
                    while (await kit.customers.get("acme")).plan != "pro":  # noqa: ASYNC110
                        await asyncio.sleep(0.05)  # The worker runs elsewhere.
                worker.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(worker.wait, TIMEOUT_S) == 0
