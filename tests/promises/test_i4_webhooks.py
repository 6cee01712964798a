"""I4: what a webhook brings binds the very next request of every process, over real servers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from drivers.delivery import STRIPE_KEY, until
from drivers.webhooks import PLANS, SECRET
from meterkit.testing import StripeEmulator
from servers.stores import Server

pytestmark = pytest.mark.anyio

SERVER = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.starlette import stripe_webhook

kit = MeterKit("plans.yaml")

def served(request):
    return PlainTextResponse("served")

app = Starlette(
    routes=[
        Route("/webhooks/stripe", stripe_webhook(kit), methods=["POST"]),
        Route("/", served),
    ]
)
app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
server = uvicorn.Server(config)
socket = config.bind_socket()
socket.listen()
print(socket.getsockname()[1], flush=True)
server.run(sockets=[socket])
"""


@asynccontextmanager
async def serving(directory: Path, environment: dict[str, str]) -> AsyncGenerator[str]:
    """An app process of its own; its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER), cwd=directory, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        # Uvicorn says itself where it listens, before or after us.
        while not (line := await process.stdout.readline()).strip().isdigit():
            assert line, "the server has ended"
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.dear("three app servers start")
@pytest.mark.whole
async def test_i4_a_checkout_binds_the_next_request_of_three_processes(
    valkey: Server, tmp_path: Path
) -> None:
    (tmp_path / "plans.yaml").write_text(PLANS)
    emulator = StripeEmulator()
    for price, cents in (("price_pro", 1000), ("price_max", 2000), ("price_seat", 900)):
        emulator.add_price(cents, price_id=price)
    async with AsyncExitStack() as stack:
        stripe_url = await stack.enter_async_context(emulator.serve())
        environment = {
            "METERKIT_REDIS_URL": valkey.url,
            "METERKIT_STRIPE_API_KEY": STRIPE_KEY,
            "METERKIT_STRIPE_API_BASE": stripe_url,
            "METERKIT_STRIPE_WEBHOOK_SECRET": SECRET,
            "METERKIT_STORE_TIMEOUT": "60",
            "METERKIT_SHARDS": "4",
        }
        apps = [await stack.enter_async_context(serving(tmp_path, environment)) for _ in range(3)]
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=300))
        emulator.add_endpoint(f"{apps[0]}/webhooks/stripe", secret=SECRET)

        async def ask() -> list[int]:
            answers = [await client.get(app, headers={"x-customer-id": "acme"}) for app in apps]
            return [answer.status_code for answer in answers]

        # Five are included in the free plan.
        assert (await ask(), await ask()) == ([200, 200, 200], [200, 200, 429])
        form: dict[str, Any] = {
            "mode": "subscription",
            "client_reference_id": "acme",
            "success_url": "http://app/",
            "line_items[0][price]": "price_pro",
            "line_items[0][quantity]": "1",
        }
        key = {"Authorization": f"Bearer {STRIPE_KEY}"}
        session = await client.post(f"{stripe_url}/v1/checkout/sessions", data=form, headers=key)
        assert session.status_code == 200
        emulator.complete_checkout(session.json()["id"], email="ada@example.com")
        await until(lambda: '"plan":"pro"' in stored(valkey), within_s=300)
        assert (await ask(), await ask()) == ([200, 200, 200], [200, 200, 200])


def stored(valkey: Server) -> str:
    """What the store has of the customer, in whichever shard."""
    return str([valkey.command("HGET", f"mk:{{{shard}}}:s:acme", "data") for shard in range(4)])
