"""Programs of worker processes: kits in processes of their own, and what they can be asked for.

Their options: ``store`` is a URL, ``plans`` the text of a plans file, ``now`` an instant at which the clock
stands, ``settings`` are those of the kit. ``stripe`` is a URL. :class:`Serving` dies at
``crash`` while it delivers.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self, cast

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.delivery import PLANS, STRIPE_KEY, until
from drivers.forked_command import die_at
from drivers.kit_parts import count_excess
from drivers.llm_apps import read_all
from llm_payloads.recordings import compact
from meterkit import Decision, MeterKit, MeterMiddleware, identify
from meterkit.catalog import Catalog, loads
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.outbox.outbox import Outbox
from meterkit.store.reservations import Reservation
from meterkit.testing import Clock


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


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
    """What any process can do; each method takes the arguments of its command."""

    def __init__(self, options: Mapping[str, Any], catalog: Catalog | None = None) -> None:
        given = {"flush": False, "shards": 4, "store_timeout": 60.0} | options.get("settings", {})
        if "stripe" in options:
            given |= {"stripe_api_key": STRIPE_KEY, "stripe_api_base": options["stripe"]}
        if "now" in options:
            given["clock"] = self.clock = Clock(datetime.fromisoformat(options["now"]))
        catalog = catalog or loads(options.get("plans", PLANS))
        self.kit = MeterKit(catalog, redis_url=options["store"], **given)

    async def __aenter__(self) -> Self:
        await self.kit.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kit.stop()

    async def now(self, at: str) -> str:
        self.clock.set(datetime.fromisoformat(at))
        return at

    async def settled(self) -> None:
        """Wait until the store has acknowledged everything."""
        await until(lambda: not any(lane.unsettled for lane in self.kit.store.lanes.values()))


class Serving(Commands):
    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        if "crash" in options:
            streams = self.kit.settings.stripe_transport == "v2-stream"
            transport = StripeStreamTransport if streams else StripeV1Transport
            steps: dict[str, tuple[type, str, str]] = {
                "leased": (transport, "send", "before"),
                "sent": (transport, "send", "after"),
                "acknowledged": (Outbox, "settle", "after"),
            }
            die_at(*steps[options["crash"]])
        self.door = Door()
        who = identify.header("x-customer-id")
        self.client = client_of(MeterMiddleware(self.door, kit=self.kit, identify=who))
        self.requests: list[asyncio.Task[httpx.Response]] = []

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
        await until(lambda: self.door.inside + sum(request.done() for request in self.requests) >= times)
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


class Holding(Commands):
    """A kit that holds and consumes for users of acme."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.held: list[Reservation] = []

    async def consume(self, calls: list[tuple[str, int]], meter: str) -> list[int]:
        """Consume at once for users of acme; what was admitted of each call."""
        decisions = await asyncio.gather(
            *(self.kit.consume("acme", meter, units, subjects={"user": user}) for user, units in calls)
        )
        return [
            units if decision.allowed else 0 for (_, units), decision in zip(calls, decisions, strict=True)
        ]

    async def hold(self, user: str, meter: str, quantity: int) -> bool:
        """Reserve, and keep that; whether it was allowed."""
        reservation = self.kit.reserve("acme", {meter: quantity}, subjects={"user": user})
        await reservation.__aenter__()
        self.held.append(reservation)
        return reservation.decision.allowed

    async def release(self) -> str:
        while self.held:
            await self.held.pop().release()
        return "released"

    async def __aexit__(self, *_: object) -> None:
        await self.release()
        await super().__aexit__()


def said(model: str, entered: int, left: int) -> dict[str, Any]:
    usage = {"prompt_tokens": entered, "completion_tokens": left, "total_tokens": entered + left}
    return {"id": "1", "object": "chat.completion", "model": model, "choices": [], "usage": usage}


class Calling(Commands):
    """A kit behind whose middleware calls of a model stay open until they are ended."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.answers: dict[str, asyncio.Future[bytes]] = {}
        self.requests: dict[str, asyncio.Task[httpx.Response]] = {}
        self.inside: set[str] = set()
        self.refused: dict[str, Decision] = {}
        who = identify.header("x-customer-id", subjects={"user": "x-user-id", "team": "x-team-id"})
        self.client = client_of(
            MeterMiddleware(self._provider, kit=self.kit, identify=who, on_denied=self._on_denied)
        )

    async def _provider(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        call = dict(scope["headers"])[b"x-call"].decode()
        self.inside.add(call)
        body = await self.answers[call]
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _on_denied(self, scope: Scope, decision: Decision) -> None:
        self.refused[dict(scope["headers"])[b"x-call"].decode()] = decision

    async def begin(
        self, customer: str, call: str, model: str, at_most: int, subjects: Mapping[str, str]
    ) -> list[str]:
        """Ask a model for so many tokens at most; the policies that refuse it, none where it is admitted."""
        self.answers[call] = asyncio.get_running_loop().create_future()
        asked = compact({"model": model, "max_tokens": at_most, "messages": []})
        headers = {"x-customer-id": customer, "x-call": call}
        headers |= {f"x-{kind}-id": subject for kind, subject in subjects.items()}
        request = asyncio.create_task(self.client.post("/chat", content=asked, headers=headers))
        await until(lambda: call in self.inside or request.done())
        if not request.done():
            self.requests[call] = request
            return []
        await request
        return [*self.refused.pop(call).violated]

    async def end(self, call: str, model: str, entered: int, left: int) -> int:
        """Have the model answer; the status."""
        self.answers.pop(call).set_result(compact(said(model, entered, left)))
        found = await self.requests.pop(call)
        await self.settled()
        return found.status_code

    async def record(
        self, customer: str, model: str, entered: int, left: int, subjects: Mapping[str, str]
    ) -> str:
        await self.kit.record_usage(customer, said(model, entered, left), subjects=subjects)
        await self.settled()
        return "recorded"

    async def record_words(self, customer: str, quantity: int, subjects: Mapping[str, str]) -> str:
        """Record output tokens of no model."""
        await self.kit.record(customer, "output_tokens", quantity, subjects=subjects)
        await self.settled()
        return "recorded"

    async def consume(self, customer: str, quantity: int, subjects: Mapping[str, str]) -> list[str]:
        """Consume images; the policies that refuse it, none where they are admitted."""
        decision = await self.kit.consume(customer, "images", quantity, subjects=subjects)
        await self.settled()
        return [*decision.violated]


class Unstarted(Serving):
    """A process in which nothing starts the kit: its first request does."""

    async def __aenter__(self) -> Self:
        self.door.open.set()
        return self

    async def count_excess(self) -> None:
        await count_excess(self.kit)

    async def stalls(self) -> int:
        """How often the store did not answer in time."""
        return sum(lane.opened for lane in self.kit.store.lanes.values())

    async def burst(self, customer: str, path: str, times: int, blocked_s: float) -> dict[int, int]:
        """Send requests at once; block the event loop while it connects to the store."""

        async def ask() -> int:
            return (await self.client.get(path, headers={"x-customer-id": customer})).status_code

        asked = [asyncio.create_task(ask()) for _ in range(times)]
        await until(lambda: bool(self.kit.store.lanes))
        time.sleep(blocked_s)  # noqa: ASYNC251 - the fault: a handler that blocks
        return dict(Counter(await asyncio.gather(*asked)))
