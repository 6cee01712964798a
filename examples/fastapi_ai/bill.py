"""Chats with the service until the bill has something on it, then checks the bill, unit by unit.

python bill.py            exit code 0: the Stripe emulator has exactly what is to be billed
python bill.py --break    it loses one event; the comparison names the difference: exit code 1
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx

from meterkit import MeterKit
from meterkit.testing import StripeEmulator, check_bill

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HERE: Final = Path(__file__).parent
METERS: Final = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
BYTES_PER_TOKEN: Final = 4  # How a bill estimates texts: see docs/llm.md.
WAIT_S: Final = 60.0
COLUMNS: Final = ("served", "recorded", "included", "prepaid", "due", "billed")


class Ada:
    """A customer on the plan `pro`, and what her client sees."""

    def __init__(self, kit: MeterKit, stripe: StripeEmulator, service: httpx.AsyncClient) -> None:
        self.served = Counter[str]()
        self._kit, self._stripe, self._service = kit, stripe, service
        self._chats = 0
        self._talk: list[dict[str, str]] = []

    async def chat(self, *, words: int) -> None:
        """Go on with the conversation, which is input each time, and read the answer to its end."""
        text = ""
        async with aclosing(self._ask(words)) as chunks:
            async for chunk in chunks:
                text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
                for meter, name in METERS.items():
                    self.served[meter] += chunk.get("usage", {}).get(name, 0)
        self._talk.append({"role": "assistant", "content": text})
        await self._counted()

    async def hang_up(self, *, words: int, after: int) -> None:
        """Ask for many words, and leave after a few: what that used is estimated by the texts."""
        before, text, held = await self._counted(), "", 0
        async with aclosing(self._ask(words)) as chunks:
            async for chunk in chunks:
                text += chunk["choices"][0]["delta"]["content"]
                if len(text.split()) == after:
                    held = (await self._kit.usage("ada"))["meters"]["output_tokens"]["held"]
                    break
        estimated = await self._counted() - before
        sent = sum(len(message["content"].encode()) for message in self._talk)
        self.served["input_tokens"] += sent // BYTES_PER_TOKEN
        # Some words more may have been on their way, but not all.
        read = len(text.encode())
        if read // BYTES_PER_TOKEN <= estimated["output_tokens"] < read * words // after // BYTES_PER_TOKEN:
            self.served["output_tokens"] += estimated["output_tokens"]
        print(f"seen: {after} of {words:,} words; set aside until she left: {held:,} output tokens")
        print(f"estimated: {estimated['input_tokens']:,} and {estimated['output_tokens']:,} tokens")

    async def compare(self) -> list[str]:
        """Show what has paid for her tokens so far, and what is to be billed; what is wrong with it."""
        lines = await check_bill(self._kit, self._stripe, {"ada": self.served})
        print(f"{'':13}", *(f"{column:>8}" for column in COLUMNS))
        for line in lines:
            print(f"{line.meter:13}", *(f"{getattr(line, column):8,}" for column in COLUMNS))
        return [str(line) for line in lines if not line.is_right]

    async def _ask(self, words: int) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of an answer as they come; who stops reading has hung up."""
        self._chats += 1
        self._talk.append({"role": "user", "content": f"Please go on for {words} words"})
        asked = {"messages": self._talk, "max_tokens": words}
        async with self._service.stream("POST", "/v1/chat/completions", json=asked) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))

    async def _counted(self) -> Counter[str]:
        """What is recorded when all chats are counted, which is a moment after they end."""
        deadline = time.monotonic() + WAIT_S
        while (meters := (await self._kit.usage("ada"))["meters"])["requests"]["recorded"] < self._chats:
            if time.monotonic() > deadline:
                raise TimeoutError("the chat was not counted within a minute")
            await asyncio.sleep(0.02)
        return Counter({meter: meters[meter]["recorded"] for meter in METERS})


async def run(*, lose_one: bool) -> list[str]:
    """Chat, deliver and compare; the differences, each named."""
    for name in [name for name in os.environ if name.startswith(("METERKIT_", "REDIS_URL", "STRIPE_"))]:
        del os.environ[name]  # The user's settings are for the user's own service.
    async with AsyncExitStack() as parts:
        store = f"embedded://{quote(parts.enter_context(tempfile.TemporaryDirectory(prefix='chat-')))}"
        stripe = StripeEmulator()
        kit = MeterKit(
            HERE / "plans.yaml",
            redis_url=store,
            stripe_api_key="sk_test_example",
            stripe_api_base=parts.enter_context(stripe.running()),
            flush=False,
        )
        await parts.enter_async_context(kit)
        service = await parts.enter_async_context(served(store))
        stripe.add_meters(kit.catalog)
        await kit.customers.set_plan("ada", "pro")
        await kit.customers.link("ada", stripe.add_customer(name="Ada"))
        await kit.grants.add("ada", {"ai": 21}, grant_id="inv_1")

        ada = Ada(kit, stripe, service)
        for title in (
            "1. Ada chats, and her plan includes the tokens",
            "2. What her plan includes is used up, and credits pay for the rest",
            "3. Her credits run out in the middle of an answer; it goes on, as overage",
        ):
            print(f"\n{title}")
            await ada.chat(words=300)
            await ada.compare()
        print("\n4. Ada hangs up in the middle of an answer; her usage is estimated")
        await ada.hang_up(words=4_000, after=20)
        print("\n5. Bob's free plan includes 200 tokens, and he asks for up to 900")
        refused = await refuse(kit, service)

        if lose_one:
            print("\n--break: the emulator accepts one event, and then loses it")
            stripe.fail_next("lose")
        report = await kit.flush(everything=True, timeout_s=WAIT_S)
        print(f"\nmeter events delivered to Stripe: {report.delivered}; not delivered: {report.left}")
        print("Comparing, token by token: what Ada was served, what is to be billed, and what Stripe has")
        return [*refused, *await ada.compare()]


async def refuse(kit: MeterKit, service: httpx.AsyncClient) -> list[str]:
    """Have a customer without a plan of his own ask for more than there is; what is not right about it."""
    asked = {"messages": [{"role": "user", "content": "Tell me 900 words"}], "max_tokens": 900}
    answer = await service.post("/v1/chat/completions", json=asked, headers={"x-customer-id": "bob"})
    used = (await kit.usage("bob"))["meters"]["output_tokens"]["used"]
    print(f"answered {answer.status_code} before the model ran; tokens counted: {used}")
    return [] if (answer.status_code, used) == (429, 0) else ["Bob was not refused as he must be."]


@asynccontextmanager
async def served(store: str) -> AsyncGenerator[httpx.AsyncClient]:
    """Ada's client of the service, which runs under uvicorn in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "app:app", "--fd", str(listener.fileno())),
            *("--log-level", "warning", "--timeout-graceful-shutdown", "5"),
            cwd=HERE,
            env=os.environ | {"METERKIT_REDIS_URL": store},
            pass_fds=[listener.fileno()],
        )
    try:
        headers = {"x-customer-id": "ada"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, trust_env=False, timeout=WAIT_S
        ) as client:
            (await client.get("/healthz")).raise_for_status()
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def main() -> int:
    task = asyncio.current_task()
    if task is not None:  # What was started ends with this, also where it is told to stop.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    wrong = await run(lose_one="--break" in sys.argv[1:])
    print("\n".join(wrong) or "Stripe has exactly the tokens that are to be billed.")
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except asyncio.CancelledError:
        sys.exit(143)
