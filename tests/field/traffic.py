"""What customers ask of the app, and what they saw of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import httpx

from field.deployments import Running
from field.endpoints import CHAT_INPUT, CHAT_OUTPUT

BILLED: Final = "globex"
REFUSED: Final = "initech"
INCLUDED: Final = 5
ROUNDS: Final = 12
_READY_S: Final = 120.0


class Visitors:
    """The customers of one deployment.

    Attributes:
        seen: by meter, what those who are billed by use were served.
        statuses: of the one whose plan gives five requests.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.seen: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    async def all_come(self) -> None:
        """Send everything, some of it at once."""
        kinds = (self._echo, self._chat, self._late, self._broken, self._hang_up)
        await asyncio.gather(*(self._again(kind) for kind in kinds), *(self._refused() for _ in range(12)))

    async def _again(self, kind: Callable[[int], Awaitable[None]]) -> None:
        for nth in range(ROUNDS):
            await kind(nth)

    async def _echo(self, nth: int) -> None:
        answer = await self._client.post("/v1/echo", content=b"word " * nth, headers=_named(BILLED))
        assert answer.status_code == httpx.codes.OK, answer.text
        self.seen.update(requests=1, words=answer.json()["words"])

    async def _chat(self, _: int) -> None:
        answer = await self._client.post("/v1/chat", json={"stream": True}, headers=_named(BILLED))
        assert answer.status_code == httpx.codes.OK, answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        self.seen.update(requests=1, input_tokens=CHAT_INPUT, output_tokens=CHAT_OUTPUT)

    async def _late(self, _: int) -> None:
        answer = await self._client.get("/v1/late", headers=_named(BILLED))
        self.seen.update(requests=1, words=answer.json()["words"])

    async def _broken(self, _: int) -> None:
        answer = await self._client.get("/v1/broken", headers=_named(BILLED))
        assert answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
        # What fails is not billed: nothing is seen.

    async def _hang_up(self, _: int) -> None:
        async with self._client.stream("GET", "/v1/drip", headers=_named(BILLED)) as answer:
            assert answer.status_code == httpx.codes.OK
            async with aclosing(_pieces(answer)) as pieces:
                await anext(pieces)
        # The work was done, and some of it read.
        self.seen.update(requests=1)

    async def _refused(self) -> None:
        answer = await self._client.post("/v1/echo", content=b"", headers=_named(REFUSED))
        self.statuses[answer.status_code] += 1


async def _pieces(answer: httpx.Response) -> AsyncGenerator[bytes]:
    async for piece in answer.aiter_bytes():
        yield piece


def visiting(url: str) -> httpx.AsyncClient:
    """A client of the app; a connection for each request: servers close those of requests that failed."""
    once = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=f"{url}/api", timeout=300, limits=once)


def _named(customer: str) -> dict[str, str]:
    return {"x-customer-id": customer}


async def ready(client: httpx.AsyncClient, server: Running) -> None:
    """Wait until the server answers; where it ends first, fail with what it printed."""
    async with asyncio.timeout(_READY_S):
        while True:
            assert not server.ended, server.log.read_text(errors="replace")
            try:
                answer = await client.get("/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                assert answer.status_code == httpx.codes.OK
                return
