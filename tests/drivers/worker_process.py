"""A kit in a process of its own: reads commands as JSON lines, answers each with one.

Its argument is a JSON object: ``store`` and ``stripe`` are URLs, ``plans`` is the text of a plans file,
``now`` an instant at which the clock stands, ``settings`` are those of the kit; ``crash`` names where the
process kills itself with SIGKILL while it delivers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import httpx

from drivers.delivery import PLANS, STRIPE_KEY
from drivers.workers import obey
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.outbox.outbox import Outbox
from meterkit.testing import Clock

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash_at(point: str, *, streams: bool) -> None:
    """Have the process die at a point between two steps of a delivery."""
    transport = StripeStreamTransport if streams else StripeV1Transport
    sent, settled = transport.send, Outbox.settle

    async def send(self: Any, *intents: Any) -> Any:
        if point == "leased":
            die()
        outcome = await sent(self, *intents)
        if point == "sent":
            die()
        return outcome

    async def settle(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = await settled(self, *args, **kwargs)
        if point == "acknowledged":
            die()
        return done

    setattr(transport, "send", send)  # noqa: B010 - a method is replaced, knowingly
    setattr(Outbox, "settle", settle)  # noqa: B010 - a method is replaced, knowingly


class Door:
    """An app whose requests stay inside until they are let out."""

    def __init__(self) -> None:
        self.inside = 0
        self.open = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        self.inside += 1
        await self.open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Commands:
    """What the process can do; each method takes the arguments of its command."""

    def __init__(self, kit: MeterKit, clock: Clock | None) -> None:
        self.kit = kit
        self.clock = clock
        self.door = Door()
        middleware = MeterMiddleware(self.door, kit=kit, identify=identify.header("x-customer-id"))
        transport = httpx.ASGITransport(app=middleware)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://app")
        self.requests: list[asyncio.Task[httpx.Response]] = []

    async def nothing(self) -> str:
        return "ready"

    async def now(self, at: str) -> str:
        assert self.clock is not None
        self.clock.set(datetime.fromisoformat(at))
        return at

    async def consume(
        self, customer: str, meter: str, *, quantity: int = 1, times: int = 1
    ) -> dict[str, int]:
        """Consume at once, so many times; how often each reason was given, ``admitted`` for none."""
        calls = (self.kit.consume(customer, meter, quantity) for _ in range(times))
        return dict(Counter(decision.reason or "admitted" for decision in await asyncio.gather(*calls)))

    async def enter(self, customer: str, *, times: int, path: str = "/") -> int:
        """Send requests that stay in the app; how many are inside."""
        self.door.inside, self.door.open = 0, asyncio.Event()
        headers = {"x-customer-id": customer}
        self.requests = [asyncio.create_task(self.client.get(path, headers=headers)) for _ in range(times)]
        while self.door.inside + sum(request.done() for request in self.requests) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # Either may come next, and nobody tells.
        return self.door.inside

    async def leave(self) -> dict[int, int]:
        """Let them out; how often each status was answered."""
        self.door.open.set()
        return dict(Counter(response.status_code for response in await asyncio.gather(*self.requests)))

    async def send(self, customer: str, path: str, *, times: int, at_once: int = 10) -> dict[int, int]:
        """Send requests that the app answers at once, some of them together; how often each status came."""
        self.door.open.set()
        statuses: Counter[int] = Counter()
        for sent in range(0, times, at_once):
            some = range(min(at_once, times - sent))
            answers = await asyncio.gather(
                *(self.client.get(path, headers={"x-customer-id": customer}) for _ in some)
            )
            statuses.update(answer.status_code for answer in answers)
        return dict(statuses)

    async def allotted(self) -> list[int]:
        """Units of allotments that were granted so far, and how many lines and settlements are not done with.

        A line whose units are used up may ask for more; one that has none and asks for none is forgotten.
        """
        lanes = self.kit.store.lanes.values()
        found = [lane.allotments for lane in lanes if lane.allotments is not None]
        left = sum(len(cast("Any", one)._lines) for one in found) + sum(lane.unsettled for lane in lanes)
        return [sum(one.granted for one in found), left]

    async def record(self, customer: str, meter: str, quantity: int) -> str:
        await self.kit.record(customer, meter, quantity)
        return "recorded"

    async def flush(self, *, everything: bool = True, timeout_s: float = 20.0) -> dict[str, Any]:
        report = await self.kit.flush(everything=everything, timeout_s=timeout_s)
        return {"sealed": report.sealed, "delivered": report.delivered, "left": report.left}


async def main(options: dict[str, Any]) -> None:
    clock = Clock(datetime.fromisoformat(options["now"])) if "now" in options else None
    settings = {"flush": False, "shards": 4, "store_timeout": 60.0} | options.get("settings", {})
    if "crash" in options:
        crash_at(options["crash"], streams=settings.get("stripe_transport") == "v2-stream")
    if "stripe" in options:
        settings |= {"stripe_api_key": STRIPE_KEY, "stripe_api_base": options["stripe"]}
    if clock is not None:
        settings["clock"] = clock
    async with MeterKit(loads(options.get("plans", PLANS)), redis_url=options["store"], **settings) as kit:
        commands = Commands(kit, clock)
        await obey(commands)
        await commands.client.aclose()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
