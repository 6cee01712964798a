"""The stand-in provider, the proxy and, without a Stripe key, an emulated Stripe; Ctrl+C stops all."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from meterkit import MeterKit
from meterkit.testing import StripeEmulator

HERE = Path(__file__).parent
PROVIDER_PORT, PROXY_PORT, STRIPE_PORT = 8001, 8000, 12111
HOOK = f"http://127.0.0.1:{PROXY_PORT}/billing/webhooks/stripe"
SECRET = "whsec_example"  # noqa: S105 - the emulator's


async def serve(module: str, port: int) -> None:
    """Run one of them until it ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port)),
        cwd=HERE,
        env=os.environ | {"PROVIDER_URL": f"http://127.0.0.1:{PROVIDER_PORT}/v1"},
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def main() -> None:
    with ExitStack() as stack:
        if "METERKIT_STRIPE_API_KEY" not in os.environ:
            emulator = StripeEmulator()
            base = stack.enter_context(emulator.running(port=STRIPE_PORT))
            emulator.add_endpoint(HOOK, secret=SECRET)
            os.environ["METERKIT_STRIPE_API_KEY"] = "sk_test_emulator"
            os.environ["METERKIT_STRIPE_API_BASE"] = base
            os.environ["METERKIT_STRIPE_WEBHOOK_SECRET"] = SECRET
            # Products and prices; for a real account, `meterkit stripe sync` once.
            async with MeterKit(HERE / "plans.yaml", flush=False) as kit:
                await kit.stripe.sync()
        await run()


async def run() -> None:
    async with asyncio.TaskGroup() as servers:
        servers.create_task(serve("provider", PROVIDER_PORT))
        servers.create_task(serve("app", PROXY_PORT))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
