"""A kit in a process of its own, behind whose middleware calls of a model stay open until they are ended.

Its argument is that of ``worker_process.py``: ``store``, ``plans`` and ``now``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx

from drivers.delivery import until
from drivers.llm_apps import read_all
from drivers.workers import obey
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock
from tokens.recordings import compact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from meterkit import Decision


def said(model: str, entered: int, left: int) -> dict[str, Any]:
    """What a provider answers."""
    usage = {"prompt_tokens": entered, "completion_tokens": left, "total_tokens": entered + left}
    return {"id": "1", "object": "chat.completion", "model": model, "choices": [], "usage": usage}


class Commands:
    """What the process can do; each method takes the arguments of its command."""

    def __init__(self, kit: MeterKit, clock: Clock) -> None:
        self.kit, self.clock = kit, clock
        self.answers: dict[str, asyncio.Future[bytes]] = {}
        self.requests: dict[str, asyncio.Task[httpx.Response]] = {}
        self.inside: set[str] = set()
        self.refused: dict[str, Decision] = {}
        who = identify.header("x-customer-id", subjects={"user": "x-user-id", "team": "x-team-id"})
        app = MeterMiddleware(self._provider, kit=kit, identify=who, on_denied=self._on_denied)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")

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

    async def _settled(self) -> None:
        lanes = self.kit.store.lanes.values()
        await until(lambda: not any(lane.unsettled for lane in lanes))

    async def nothing(self) -> str:
        return "ready"

    async def now(self, at: str) -> str:
        self.clock.set(datetime.fromisoformat(at))
        return at

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
        await self._settled()
        return found.status_code

    async def record(
        self, customer: str, model: str, entered: int, left: int, subjects: Mapping[str, str]
    ) -> str:
        await self.kit.record_usage(customer, said(model, entered, left), subjects=subjects)
        await self._settled()
        return "recorded"

    async def record_words(self, customer: str, quantity: int, subjects: Mapping[str, str]) -> str:
        """Record output tokens of no model."""
        await self.kit.record(customer, "output_tokens", quantity, subjects=subjects)
        await self._settled()
        return "recorded"

    async def consume(self, customer: str, quantity: int, subjects: Mapping[str, str]) -> list[str]:
        """Consume images; the policies that refuse it, none where they are admitted."""
        decision = await self.kit.consume(customer, "images", quantity, subjects=subjects)
        await self._settled()
        return [*decision.violated]


async def main(options: dict[str, Any]) -> None:
    clock = Clock(datetime.fromisoformat(options["now"]))
    settings: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 60.0, "clock": clock}
    async with MeterKit(loads(options["plans"]), redis_url=options["store"], **settings) as kit:
        commands = Commands(kit, clock)
        await obey(commands)
        await commands.client.aclose()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
