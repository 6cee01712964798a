"""Apps of other frameworks behind the middleware: no spelling of a path and no method gets around a gate."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest

from drivers.app import served
from drivers.llm_apps import listening
from field.frameworks import ANY, APPS, CHAT, ITEM, MCP_CALL
from field.matrix import Matrix

pytestmark = pytest.mark.anyio

# Without a line for all that is left: what no line takes passes.
PLANS = """
meters: {requests: {unit: request}}
features: [full]
routes:
  - {match: "POST /v1/chat", feature: full, consume: {requests: 1}}
  - {match: "POST /v1/items/{name}", feature: full, consume: {requests: 1}}
  - {match: "/v1/any", feature: full, consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {rank: 10, price: {amount_cents: 2900, interval: month}, features: [full]}
"""
METHODS = ("POST", "post", "pOsT", "PUT", "GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "BREW", "brew")
HEAD = (
    b"host: x\r\nx-customer-id: acme\r\nauthorization: bearer x\r\norigin: http://o\r\nconnection: close\r\n"
    b"access-control-request-method: POST\r\ncontent-type: application/json\r\n"
    b"accept: application/json, text/event-stream\r\nmcp-protocol-version: 2025-06-18\r\n"
)


def spelt(path: str) -> list[str]:
    """A path as clients may write it: some for each router known to read it so, and combinations of them."""
    first, second = path.rsplit("/", 1)
    paths = [
        *(path, f"{path}/", f"{path}//", f"/{path}", f"//{path}", f"{first}//{second}", path.upper()),
        *(f"{first}/{second.title()}", f"{first}%2F{second}", f"{first}%2f{second}", f"{path}%2F"),
        *(f"%2F{path[1:]}", f"/%76{path[2:]}", f"{first}/%{ord(second[0]):x}{second[1:]}", f"{path}%0A"),
        *(f"{path}%00", f"{path}%20", f"{path}?x=1", f"{path}/?x=1", f"{path};p=1", f"{path}/.", f"/.{path}"),
        *(f"{first}/./{second}", f"/v1/..{path}", f"{first}\\{second}", f"{path}%23f", f"{path}/%23/x"),
        *(path[1:], f"/{path.upper()}//", f"{first}%252F{second}", f"{path}%3Fx", f"/v1/x/%2e%2e{path[3:]}"),
    ]
    paths += [f"{written}#f" for written in (path, f"{path}/", f"/{path}")]
    for host in ("http://h", "HTTP://H", "https://u:p@h:8", "ws://h", "//h"):
        paths += [f"{host}{written}" for written in (path, f"/{path}", f"{path}/", f"{path}#f", path.upper())]
    return paths


TARGETS = [*spelt(CHAT), *spelt(f"{ITEM}/a"), f"{ITEM}/a%2Fb", f"{ITEM}/%23/", f"{ITEM}/%2F", *spelt(ANY)]


async def send(port: int, requests: Sequence[tuple[str, str]]) -> None:
    """Send each request over a connection of its own, some at once."""
    gate = asyncio.Semaphore(16)

    async def one(method: str, target: str) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            line = f"{method} {target} HTTP/1.1\r\n".encode()
            writer.write(line + HEAD + f"content-length: {len(MCP_CALL)}\r\n\r\n".encode() + MCP_CALL)
            await reader.read()
            writer.close()

    await asyncio.gather(*(one(*request) for request in requests))


REQUESTS = [*product(("POST", "post"), TARGETS), *product(METHODS, (CHAT, f"{CHAT}/", f"{ITEM}/a", ANY))]


async def reached(framework: str, protocol: Any, *, plan: str | None) -> int:
    ran: list[str] = []
    async with served(APPS[framework](ran), plans=PLANS) as at:
        await at.kit.customers.set_plan("acme", plan)
        async with listening(at.app, http=protocol, lifespan="auto") as port:
            await send(port, REQUESTS)
    return len(ran)


def _pairs() -> Iterator[object]:
    """Each framework on each server; without ``--whole`` those of F-130 and one more, on one."""
    for (place, framework), (other, protocol) in product(enumerate(APPS), enumerate(("h11", "httptools"))):
        is_chosen = framework in {"litestar", "quart", "blacksheep", "fastmcp"} and place % 2 == other
        yield pytest.param(framework, protocol, marks=[] if is_chosen else pytest.mark.whole)


@pytest.mark.dear("each of 410 spellings is a connection to a real server")
@pytest.mark.parametrize(("framework", "protocol"), [*_pairs()])
async def test_no_spelling_or_method_gets_past_a_gate(framework: str, protocol: Any, matrix: Matrix) -> None:
    """F-130, F-131: Litestar, Quart and BlackSheep ran handlers for paths that matched no line."""
    assert await reached(framework, protocol, plan="free") == 0
    found = await reached(framework, protocol, plan="pro")
    assert found > 0
    sent = len(REQUESTS)
    matrix.note(f"{framework:18} {protocol:9} {found:3} of {sent} spellings reach a handler, 0 pass a gate")
