"""I8 over real sockets: requests whose body comes late, in part, or is asked for first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from drivers.app import Served, served
from drivers.llm_apps import listening, read_all
from drivers.plans import free_plan
from faults.refusals import eventually

pytestmark = pytest.mark.anyio

PLANS = free_plan(
    "{requests: {unit: request}, output_tokens: {unit: token}}",
    """
      requests: {concurrency: 5, included: 1, overage: deny}
      output_tokens: {included: 1000, overage: deny}""",
    """routes:
  - match: "/reserving"
    consume: {requests: 1}
    usage: auto
    reserve: {output_tokens: {from: max_tokens, default: 10, ceiling: 50}}
  - {match: "/plain", consume: {requests: 1}}""",
)
BODY = b'{"max_tokens": 20}'


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Echo:
    """Answers with the request's body; keeps what it has heard."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.over = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        try:
            self.bodies.append(await read_all(receive))
            headers = [(b"content-length", str(len(self.bodies[-1])).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self.bodies[-1]})
        finally:
            self.over.set()


def head(path: str, *, more: str = "", length: int = len(BODY)) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\nconnection: close\r\n{more}"
        f"content-length: {length}\r\n\r\n"
    ).encode()


async def unsettled(at: Served) -> int:
    return at.kit.store.lanes[asyncio.get_running_loop()].unsettled


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
@pytest.mark.parametrize("path", ["/plain", "/reserving"])
async def test_i8_expect_continue_is_answered_before_the_body(
    path: str, protocol: Any, store_url: str
) -> None:
    app = Echo()
    async with served(app, plans=PLANS, redis_url=store_url) as at, listening(at.app, http=protocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(path, more="expect: 100-continue\r\n"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(BODY)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(BODY)
        writer.close()
        await writer.wait_closed()
        assert await at.counted() == (1, 0)


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
async def test_i8_a_client_that_is_refused_need_not_send_its_body(protocol: Any, store_url: str) -> None:
    app = Echo()
    async with served(app, plans=PLANS, redis_url=store_url) as at, listening(at.app, http=protocol) as port:
        await at.kit.record("acme", "requests", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("/plain", more="expect: 100-continue\r\n"))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 429 ")
        writer.close()
        await writer.wait_closed()
        assert app.bodies == []


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
@pytest.mark.parametrize("path", ["/plain", "/reserving"])
async def test_i8_a_client_that_leaves_within_its_body_is_not_billed(
    path: str, protocol: Any, store_url: str
) -> None:
    """F-18: also where the body is read before the app runs."""
    app = Echo()
    async with served(app, plans=PLANS, redis_url=store_url) as at, listening(at.app, http=protocol) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(path, length=1000) + BODY)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await app.over.wait()
        # It has answered all the same; what uvicorn lets it have of the body is uvicorn's affair.
        assert len(app.bodies) == 1
        await eventually(lambda: is_settled(at))
        assert (await at.counted(), await at.counted(meter="output_tokens")) == ((0, 0), (0, 0))


async def is_settled(at: Served) -> bool:
    return await unsettled(at) == 0 and (await at.counted())[1] == 0
