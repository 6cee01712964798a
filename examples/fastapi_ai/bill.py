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
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

HERE: Final = Path(__file__).parent
KEY: Final = "sk_test_example"
CREDITS: Final = 21
MICRO: Final = 1_000_000  # The ledger counts millionths of a credit.
METERS: Final = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
BYTES_PER_TOKEN: Final = 4  # How a bill estimates texts: see docs/llm.md.
MINUTE_S: Final = 60
WAIT_S: Final = 60.0

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What has paid for the tokens of one meter so far."""

    recorded: int = 0
    included: int = 0
    credits: int = 0
    overage: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One meter, from what the client saw to what Stripe has."""

    meter: str
    seen: int
    estimated: int
    counted: int
    included: int
    credits: int
    found: int

    @property
    def due(self) -> int:
        """What Stripe is to get, by what the client saw: ``report: overage``."""
        return max(0, self.seen + self.estimated - self.included) - self.credits

    @property
    def agrees(self) -> bool:
        """Whether every token was counted, and Stripe has what it is due."""
        return self.seen + self.estimated == self.counted and self.due == self.found


class Ada:
    """A customer on the plan `pro`: what her client sees, and what meterkit says of her."""

    def __init__(self, kit: MeterKit, service: httpx.AsyncClient) -> None:
        self.seen = dict.fromkeys(METERS, 0)
        self.estimated = dict.fromkeys(METERS, 0)
        self.wrong: list[str] = []
        self._kit = kit
        self._service = service
        self._chats = 0
        self._talk: list[dict[str, str]] = []
        self._paid: dict[str, Paid] = dict.fromkeys(METERS, Paid())

    async def chat(self, title: str, *, words: int) -> None:
        """Go on with the conversation, which is input each time, and read the answer to its end."""
        self._talk.append({"role": "user", "content": f"Please go on for {words} words"})
        text, usage = "", dict.fromkeys(METERS.values(), 0)
        async for chunk in stream(self._service, "ada", self._talk, max_tokens=words):
            text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
            usage = chunk.get("usage", usage)
        self._talk.append({"role": "assistant", "content": text})
        saw = {meter: usage[name] for meter, name in METERS.items()}
        for meter, tokens in saw.items():
            self.seen[meter] += tokens
        await self._settle(title, "client saw", saw)

    async def hang_up(self, title: str, *, words: int, after: int) -> None:
        """Ask for many words, and leave after a few of them: nobody reports what that used."""
        self._talk.append({"role": "user", "content": f"Please go on for {words} words"})
        before, text = self._paid, ""
        async with aclosing(stream(self._service, "ada", self._talk, max_tokens=words)) as chunks:
            async for chunk in chunks:
                text += chunk["choices"][0]["delta"]["content"]
                if len(text.split()) == after:
                    break
            meters = (await self._kit.usage("ada"))["meters"]
        held = {meter: meters[meter]["held"] for meter in METERS}
        await self._settle(title, "set aside", held)
        self.estimated = {meter: self._paid[meter].recorded - before[meter].recorded for meter in METERS}
        sent = tokens_of(sum(len(message["content"].encode()) for message in self._talk))
        self.wrong += expect("input_tokens estimated", self.estimated["input_tokens"], sent, sent)
        # Some words more may have been on their way, but not all.
        read = len(text.encode())
        least, most = tokens_of(read), tokens_of(read * words // after) - 1
        self.wrong += expect("output_tokens estimated", self.estimated["output_tokens"], least, most)
        self.wrong += expect("output_tokens set aside", held["output_tokens"], words, words)

    async def _settle(self, title: str, column: str, told: dict[str, int]) -> None:
        """Wait until the chat is counted, and show what has paid for it."""
        self._chats += 1
        deadline = time.monotonic() + WAIT_S
        while (usage := await self._kit.usage("ada"))["meters"]["requests"]["recorded"] < self._chats:
            if time.monotonic() > deadline:
                raise TimeoutError("the chat was not counted within a minute")
            await asyncio.sleep(0.02)
        spent = await self.spent()
        costs = self._kit.catalog.credits["ai"].costs
        before, self._paid = self._paid, {}
        rows: list[tuple[object, ...]] = []
        for meter in METERS:
            recorded, overage = usage["meters"][meter]["recorded"], usage["meters"][meter]["overage"]
            credits_ = spent[meter] // costs[meter]
            paid = Paid(
                recorded=recorded, included=recorded - credits_ - overage, credits=credits_, overage=overage
            )
            self._paid[meter], was = paid, before[meter]
            parts = (
                paid.included - was.included,
                paid.credits - was.credits,
                paid.overage - was.overage,
            )
            rows.append((meter, told[meter], paid.recorded - was.recorded, *parts))
        show(title, ("meter", column, "counted", "included", "credits", "overage"), rows)
        cents = sum(usage["meters"][meter]["overage_cents"] or 0 for meter in METERS)
        console.print(f"credits left: {usage['balance']['ai']}; overage so far: {cents} cents")

    async def spent(self) -> dict[str, int]:
        """Micro-credits that have paid for each meter, by the ledger."""
        burns = [entry for entry in await self._kit.grants.ledger("ada") if entry.entry == "burn"]
        return {meter: -sum(entry.quantity for entry in burns if entry.meter == meter) for meter in METERS}


async def run(*, lose_one: bool) -> Sequence[str]:
    """Chat, deliver and compare; the differences, each named."""
    for name in [name for name in os.environ if name.startswith(("METERKIT_", "REDIS_URL", "STRIPE_"))]:
        del os.environ[name]  # The user's settings are for the user's own service.
    emulator = StripeEmulator()
    ids = {meter: emulator.add_meter(f"chat_{meter}") for meter in METERS}
    stripe_customer = emulator.add_customer(name="Ada")
    began = int(time.time()) // MINUTE_S * MINUTE_S - MINUTE_S
    async with AsyncExitStack() as parts:
        folder = parts.enter_context(tempfile.TemporaryDirectory(prefix="meterkit-chat-"))
        store = f"embedded://{quote(folder)}/store"
        stripe_url = parts.enter_context(emulator.running())
        stripe = await parts.enter_async_context(
            httpx.AsyncClient(base_url=stripe_url, headers={"authorization": f"Bearer {KEY}"})
        )
        kit = MeterKit(
            HERE / "plans.yaml",
            redis_url=store,
            stripe_api_key=KEY,
            stripe_api_base=stripe_url,
            flush=False,
        )
        await parts.enter_async_context(kit)
        service = await parts.enter_async_context(served(store))

        await kit.customers.set_plan("ada", "pro")
        await kit.customers.link("ada", stripe_customer)
        await kit.grants.add("ada", {"ai": CREDITS}, grant_id="inv_1")
        period = (await kit.usage("ada"))["period"]["id"]
        ada = Ada(kit, service)
        await ada.chat("1. Ada chats, and her plan includes the tokens", words=300)
        await ada.chat("2. What her plan includes is used up, and credits pay for the rest", words=300)
        await ada.chat("3. Her credits run out in the middle of an answer; it goes on, as overage", words=300)
        await ada.hang_up(
            "4. Ada hangs up after 20 of 4,000 words; usage is estimated", words=4_000, after=20
        )
        ada.wrong += await refuse(kit, service)

        if lose_one:
            console.print("--break: the emulator accepts one event, and then loses it")
            emulator.fail_next("lose")
        report = await kit.flush(everything=True, timeout_s=WAIT_S)
        console.print(f"meter events delivered to Stripe: {report.delivered}; not delivered: {report.left}")
        usage = await kit.usage("ada")
        if usage["period"]["id"] != period:
            raise RuntimeError("the billing month ended while this was running; run it again")
        spent, costs = await ada.spent(), kit.catalog.credits["ai"].costs
        span: dict[str, str | int] = {
            "customer": stripe_customer,
            "start_time": began,
            "end_time": began + 60 * MINUTE_S,
        }
        lines = [
            Line(
                meter=meter,
                seen=ada.seen[meter],
                estimated=ada.estimated[meter],
                counted=usage["meters"][meter]["recorded"],
                included=int(usage["meters"][meter]["included"]),
                credits=spent[meter] // costs[meter],
                found=await billed(stripe, ids[meter], span),
            )
            for meter in METERS
        ]
    return [*ada.wrong, *conclude(lines, spent=sum(spent.values()))]


async def refuse(kit: MeterKit, service: httpx.AsyncClient) -> Sequence[str]:
    """Have a customer without a plan of his own ask for more than there is; what is not right about it."""
    asked = {"messages": [{"role": "user", "content": "Tell me 900 words"}], "max_tokens": 900}
    answer = await service.post("/v1/chat/completions", json=asked, headers={"x-customer-id": "bob"})
    tokens = (await kit.usage("bob"))["meters"]["output_tokens"]
    violated = ", ".join(answer.json()["violated-policies"]) if answer.is_error else "served"
    console.print("\n5. Bob's free plan includes 200 tokens, and he asks for up to 900", style="bold")
    console.print(
        f"answered {answer.status_code} ({violated}) before the model ran; tokens counted: {tokens['used']}\n"
    )
    wrong = expect("status of the answer to Bob", answer.status_code, 429, 429)
    return [*wrong, *expect("output_tokens of Bob", tokens["used"], 0, 0)]


async def stream(
    service: httpx.AsyncClient, customer: str, talk: Sequence[dict[str, str]], *, max_tokens: int
) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of an answer as they come; who stops reading has hung up."""
    asked = {"messages": talk, "max_tokens": max_tokens}
    headers = {"x-customer-id": customer}
    async with service.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def served(store: str) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the service, which runs under uvicorn in a process of its own."""
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
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT_S) as client:
            (await client.get("/healthz")).raise_for_status()
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def billed(stripe: httpx.AsyncClient, meter_id: str, span: dict[str, str | int]) -> int:
    """What Stripe has counted."""
    response = await stripe.get(f"/v1/billing/meters/{meter_id}/event_summaries", params=span)
    response.raise_for_status()
    return sum(int(summary["aggregated_value"]) for summary in response.json()["data"])


def conclude(lines: Sequence[Line], *, spent: int) -> Sequence[str]:
    """Show the comparison; what differs."""
    show(
        "Comparing, unit by unit: what the client saw or was estimated, and what Stripe has",
        (
            *("meter", "saw", "estimate", "counted", "included", "credits"),
            *("to bill", "Stripe", "match"),
        ),
        [
            (
                *(line.meter, line.seen, line.estimated, line.counted, line.included, line.credits),
                *(line.due, line.found, "yes" if line.agrees else "NO"),
            )
            for line in lines
        ],
    )
    wrong = [
        f"{line.meter}: {line.seen:,} seen by the client, {line.estimated:,} estimated,"
        f" {line.counted:,} counted; {line.due:,} to be billed, but Stripe has {line.found:,}."
        for line in lines
        if not line.agrees
    ]
    if spent != CREDITS * MICRO and any(line.due for line in lines):
        wrong.append(f"credits: {CREDITS} were given, {spent / MICRO} spent, although there is overage")
    return wrong


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    console.print(f"\n{title}", style="bold")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in {"meter", "match"} else "right")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console.print(table)


def expect(what: str, found: int, least: int, most: int) -> Sequence[str]:
    """Say so where a figure is not within its bounds."""
    return [] if least <= found <= most else [f"{what}: found {found:,}; right is {least:,} to {most:,}"]


def tokens_of(size: int) -> int:
    return size // BYTES_PER_TOKEN


async def main() -> int:
    task = asyncio.current_task()
    if task is not None:  # What was started ends with this, also where it is told to stop.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    wrong = await run(lose_one="--break" in sys.argv[1:])
    for difference in wrong:
        console.print(difference, style="bold red")
    if not wrong:
        console.print("\nStripe has exactly the tokens that are to be billed.", style="bold green")
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
