"""Processes that set tokens aside and capture them, off the request or behind the middleware."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Literal

from starlette.types import Receive, Scope, Send

from drivers.delivery import NOW, until
from drivers.llm_apps import listening, read_all
from drivers.worker_process import Commands, client_of
from drivers.workers import Worker, started
from faults.refusals import renew_holds
from llm_payloads.recordings import chat, compact, sse
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock

Way = Literal["kit", "route"]
Plan = Literal["budget", "credit"]
Case = Literal["within", "exact", "beyond"]

CREDIT_MICRO: Final = {"input_tokens": 1_000, "output_tokens": 4_000}
METERS: Final = tuple(CREDIT_MICRO)
INPUT: Final = 4
"""Tokens of the prompt, by estimate."""
OUTPUT: Final = 249
STREAMS: Final = 40
"""How many streams the budget is for, and how many credits there are: each stream sets one aside."""
# Whole numbers of output tokens and of four input tokens: no rest of a credit is too small for what waits.
KINDS: Final[tuple[dict[str, int], ...]] = (
    {"output_tokens": OUTPUT, "input_tokens": INPUT},
    {"output_tokens": 250},
    {"input_tokens": 1_000},
)
PLANS: Final = f"""
schema: 1
currency: usd
default_plan: budget
meters:
  requests:      {{unit: request}}
  input_tokens:  {{unit: token}}
  output_tokens: {{unit: token}}
credits:
  ai: {{costs: {{input_tokens: 1 per 1000, output_tokens: 4 per 1000}}}}
routes:
  - match: "POST /chat"
    consume: {{requests: 1}}
    usage: openai
    reserve: {{output_tokens: {{from: max_tokens, default: 1000, ceiling: 1000}}}}
    on_store_failure: deny
plans:
  budget:
    price: {{amount_cents: 0, interval: month}}
    meters:
      output_tokens: {{included: {STREAMS * OUTPUT}, overage: deny}}
  credit:
    price: {{amount_cents: 0, interval: month}}
    meters:
      input_tokens:  {{included: 0, overage: deny}}
      output_tokens: {{included: 0, overage: deny}}
"""


def body(spent: Mapping[str, int]) -> bytes:
    """A request that sets :data:`INPUT` and :data:`OUTPUT` aside; the app answers that so much was spent."""
    messages = [{"role": "user", "content": "0123456789ab"}]
    return compact({"model": "m", "messages": messages, "max_tokens": OUTPUT, "spent": spent})


class Chat:
    """A model that answers a first piece, then waits for its turn, then says what it has spent."""

    def __init__(self) -> None:
        self.turn: Callable[[], Awaitable[Any]] = asyncio.Event().wait

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        spent = json.loads(await read_all(receive))["spent"]
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first = sse(chat({"content": "once"}))
        await send({"type": "http.response.body", "body": first, "more_body": True})
        await self.turn()
        figures = {"prompt_tokens": spent["input_tokens"], "completion_tokens": spent["output_tokens"]}
        usage = sse({**chat(None), "usage": {**figures, "total_tokens": sum(figures.values())}})
        await send({"type": "http.response.body", "body": usage, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Reserving(Commands):
    """What the process can do besides; ``way`` is ``kit`` or ``route``, ``case`` what a stream comes to."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__({"plans": PLANS, **options})
        self.chat = Chat()
        self.app = MeterMiddleware(self.chat, kit=self.kit, identify=identify.header("x-customer-id"))
        self.caller = client_of(self.app)
        self.dice = random.Random(0)  # noqa: S311 - repeatable, not secret
        self.told: Counter[str] = Counter()
        self.holding = 0
        self.turn = asyncio.Event()
        self.streams: list[asyncio.Task[None]] = []
        self.spend: dict[str, int] = {}
        self.server: asyncio.Task[None] | None = None

    async def open(self, customer: str, *, way: Way, case: Case, kinds: list[int], times: int) -> int:
        """Begin streams that stay open once they are admitted; how many are."""
        self.told, self.holding, self.turn = Counter(), 0, asyncio.Event()
        self.streams = [
            asyncio.create_task(self._stream(customer, way, case, kinds[n % len(kinds)], self._stay))
            for n in range(times)
        ]
        await until(lambda: self.holding + sum(stream.done() for stream in self.streams) == times)
        return self.holding

    async def close(self) -> dict[str, int]:
        """End the open streams; what they came to: reasons and statuses, ``spent`` and ``beyond`` a meter."""
        self.turn.set()
        await asyncio.gather(*self.streams)
        await self.settled()
        return dict(self.told)

    async def race(
        self, customer: str, *, way: Way, case: Case, kinds: list[int], times: int, turns: int, seed: int
    ) -> dict[str, int]:
        """So many streams at a time, each so many times, as fast as they can; as :meth:`close`."""
        self.told = Counter()
        self.dice.seed(seed)

        async def run(n: int) -> None:
            for turn in range(turns):
                await self._stream(customer, way, case, kinds[(n + turn) % len(kinds)], self._yield)

        await asyncio.gather(*(run(n) for n in range(times)))
        await self.settled()
        return dict(self.told)

    async def hold(self, customer: str, quantities: dict[str, int]) -> bool:
        """Reserve, and keep it; whether it is allowed. Answers while the block goes on."""
        begun = asyncio.Event()
        self.turn = asyncio.Event()

        async def stream() -> None:
            async with self.kit.reserve(customer, quantities) as reservation:
                self.told["admitted"] = reservation.decision.allowed
                begun.set()
                await self.turn.wait()
                await reservation.capture(self.spend)

        self.streams = [asyncio.create_task(stream())]
        await begun.wait()
        return bool(self.told["admitted"])

    async def capture(self, quantities: dict[str, int], *, wait: bool = True) -> str:
        """Capture what :meth:`hold` reserved; without waiting, answers once the capture was sent."""
        lane = await self.kit.store.start()
        self.spend = quantities
        self.turn.set()
        if not wait:
            await until(lambda: lane.unsettled > 0)
            return "sent"
        await asyncio.gather(*self.streams)
        return "captured"

    async def keep(self) -> str:
        await renew_holds(await self.kit.store.start())
        await self.settled()
        return "kept"

    async def listen(self) -> int:
        """Serve the app with uvicorn; the port. The streams stay open."""
        found = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with listening(self.app) as port:
                found.set_result(port)
                await asyncio.Event().wait()

        self.server = asyncio.create_task(serve())
        port: int = await found
        return port

    async def _stay(self) -> None:
        self.holding += 1
        await self.turn.wait()

    async def _yield(self) -> None:
        for _ in range(self.dice.randrange(10)):
            await asyncio.sleep(0)

    async def _stream(
        self, customer: str, way: Way, case: Case, kind: int, turn: Callable[[], Awaitable[Any]]
    ) -> None:
        reserved = KINDS[kind]
        spent = {meter: self._spent(case, meter, quantity) for meter, quantity in reserved.items()}
        if way == "kit":
            async with self.kit.reserve(customer, reserved) as reservation:
                if not reservation.decision.allowed:
                    self.told[str(reservation.decision.reason)] += 1
                    return
                await turn()
                await reservation.capture(spent)
        else:
            self.chat.turn = turn
            headers = {"x-customer-id": customer}
            answer = await self.caller.post("/chat", content=body(spent), headers=headers)
            if not answer.is_success:
                self.told[str(answer.status_code)] += 1
                return
        self.told["admitted"] += 1
        for meter, quantity in spent.items():
            self.told[f"spent {meter}"] += quantity
            self.told[f"beyond {meter}"] += max(0, quantity - reserved[meter])

    def _spent(self, case: Case, meter: str, reserved: int) -> int:
        """In steps of equal worth, whatever the meter."""
        step = CREDIT_MICRO["output_tokens"] // CREDIT_MICRO[meter]
        match case:
            case "within":
                return self.dice.randint(0, reserved // step) * step
            case "exact":
                return reserved
            case "beyond":
                return reserved + self.dice.randint(1, reserved // step) * step


class Purse:
    """What the customer had, and what became of it."""

    def __init__(self, kit: MeterKit, clock: Clock) -> None:
        self.kit = kit
        self.clock = clock

    async def fill(self, plan: Plan) -> None:
        if plan == "credit":
            await self.kit.customers.set_plan("acme", plan)
            # Of two grants, so that one stream may be paid by both.
            await self.kit.grants.add("acme", {"ai": 15}, grant_id="first")
            await self.kit.grants.add("acme", {"ai": STREAMS - 15}, grant_id="second")

    async def rows(self, column: str) -> dict[str, int]:
        meters: dict[str, Any] = {**(await self.kit.usage("acme"))["meters"]}
        return {meter: meters[meter][column] for meter in METERS}

    async def burned_micro(self) -> int:
        ledger = await self.kit.grants.ledger("acme")
        return -sum(entry.quantity for entry in ledger if entry.entry == "burn")


@asynccontextmanager
async def purse(url: str, plan: Plan) -> AsyncGenerator[Purse]:
    """A kit of the test's own, and a customer with a budget or with credits for :data:`STREAMS` streams."""
    clock = Clock(NOW)
    async with MeterKit(
        loads(PLANS), redis_url=url, clock=clock, flush=False, shards=4, store_timeout=60.0
    ) as kit:
        found = Purse(kit, clock)
        await found.fill(plan)
        yield found


def worth(quantities: Mapping[str, int]) -> int:
    return sum(quantity * CREDIT_MICRO[meter] for meter, quantity in quantities.items())


def reservers(count: int, **options: Any) -> AbstractAsyncContextManager[list[Worker]]:
    """Start processes, connected and ready; they hold nothing that is worth an orderly end."""
    return started(count, Reserving, options, kill=True)
