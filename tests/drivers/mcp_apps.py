"""Real MCP servers with two tools, and the plans that sell them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Elicit, MCPServer, Resolve
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequests, InputRequiredResult
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.app import Served, served
from drivers.llm_apps import listening

Ran = list[str]

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  searches: {unit: search}
  calls:    {unit: call}
  other:    {unit: message}
  output_tokens: {unit: token}
features: [reports]
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models: {"*": {input_tokens: 0 per 1, output_tokens: 0.001 per 1}}
    top_up: {packs: [5000, 1000], url: "https://shop.example/top-up"}
routes:
  - {match: "MCP tools/call search*", consume: {searches: 1, calls: 1}}
  - {match: "MCP tools/call write", model: own, reserve: {output_tokens: {default: 2000, ceiling: 2000}}}
  - {match: "MCP tools/call report", feature: reports, consume: {calls: 5}}
  - {match: "MCP tools/call", consume: {calls: 1}}
  - {match: "MCP *", consume: {other: 1}}
  - {match: "*", consume: {other: 100}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      searches: {included: 3, overage: deny}
      calls: {rate: 20/hour}
"""


def _tools(server: Any, ran: Ran) -> None:
    def search_web(q: str) -> str:
        ran.append("search_web")
        return f"found {q}"

    def add(a: int, b: int) -> int:
        ran.append("add")
        return a + b

    def fail() -> str:
        ran.append("fail")
        raise ValueError("no")

    def report() -> str:
        ran.append("report")
        return "done"

    def write() -> str:
        ran.append("write")
        return "text"

    for tool in (search_web, add, fail, report, write):
        server.add_tool(tool)


class Answer(BaseModel):
    sure: bool


def ask_first() -> Elicit[Answer]:
    return Elicit("Sure?", Answer)


def ask_second(first: Annotated[Answer, Resolve(ask_first)]) -> Elicit[Answer]:
    """Ask in the second round: it needs the first answer."""
    return Elicit(f"{first.sure}?", Answer)


_QUESTION: Final[InputRequests] = {
    "sure": ElicitRequest(
        params=ElicitRequestFormParams(message="Sure?", requested_schema=Answer.model_json_schema())
    )
}


def _asking_tool_of_mcp(server: Any, ran: Ran) -> None:
    def book(second: Annotated[Answer, Resolve(ask_second)]) -> str:
        ran.append("book")
        return f"booked {second.sure}"

    server.add_tool(book)


def _asking_tool_of_fastmcp(server: Any, ran: Ran) -> None:
    dependencies: Any = pytest.importorskip("fastmcp.server.dependencies")

    def book() -> str | InputRequiredResult:
        asked = int(dependencies.get_context().request_state or 0)
        if asked < 2:
            return InputRequiredResult(input_requests=_QUESTION, request_state=str(asked + 1))
        ran.append("book")
        return "booked True"

    server.add_tool(book)


async def say_yes(context: object, params: object) -> ElicitResult:
    del context, params
    return ElicitResult(action="accept", content={"sure": True})


def mcp_app(ran: Ran, *, path: str = "/mcp", **options: Any) -> Any:
    server = MCPServer("shop")
    _tools(server, ran)
    _asking_tool_of_mcp(server, ran)
    return server.streamable_http_app(streamable_http_path=path, **options)


def fastmcp_app(ran: Ran, **options: Any) -> Any:
    """FastMCP, mounted in Starlette: https://gofastmcp.com/deployment/http"""
    module: Any = pytest.importorskip("fastmcp")
    server = module.FastMCP("shop")
    _tools(server, ran)
    _asking_tool_of_fastmcp(server, ran)
    inner = server.http_app(path="/mcp", **options)
    return Starlette(routes=[Mount("/api", inner)], lifespan=inner.lifespan)


SERVERS: Final[dict[str, tuple[Any, str, dict[str, Any]]]] = {
    "mcp": (mcp_app, "/mcp", {}),
    "mcp stateless json": (mcp_app, "/mcp", {"stateless_http": True, "json_response": True}),
    "fastmcp": (fastmcp_app, "/api/mcp", {}),
    "fastmcp stateless json": (fastmcp_app, "/api/mcp", {"stateless_http": True, "json_response": True}),
}


@asynccontextmanager
async def serving(
    name: str, ran: Ran, plans: str = PLANS, *, included: int = 3, **edge: Any
) -> AsyncGenerator[tuple[Served, str]]:
    """A server behind the middleware under uvicorn, and its address; `edge` are options of `served`."""
    make, path, options = SERVERS[name]
    plans = plans.replace("included: 3", f"included: {included}").replace(
        ": 20/hour", f": {20 * included}/hour"
    )
    lines = plans.replace('"MCP ', f'"MCP {path} ') if path != "/mcp" else plans
    async with (
        served(make(ran, **options), plans=lines, **edge) as at,
        listening(at.app, lifespan="on") as port,
    ):
        yield at, f"http://127.0.0.1:{port}{path}"
    for task in asyncio.all_tasks():  # One for each loop: sse-starlette ends it with the process.
        if getattr(task.get_coro(), "__name__", "") == "_shutdown_watcher":
            task.cancel()


@asynccontextmanager
async def agent(url: str, mode: str = "auto", customer: str = "acme") -> AsyncGenerator[Any]:
    async with httpx2.AsyncClient(headers={"x-customer-id": customer}, timeout=30) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, elicitation_callback=say_yes) as client:
            yield client


SEARCH: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search_web","arguments":{"q":"x"}}}'
)
PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def _of(**changes: str) -> bytes:
    """A search, with members in other words of JSON."""
    members = {
        "jsonrpc": '"2.0"',
        "id": "1",
        "method": '"tools/call"',
        "params": '{"name":"search_web","arguments":{"q":"x"}}',
    }
    return ("{" + ",".join(f'"{name}":{text}' for name, text in (members | changes).items()) + "}").encode()


HOSTILE: Final[dict[str, bytes]] = {
    "plain": SEARCH,
    "escaped method": SEARCH.replace(b"tools/call", b"\\u0074ools\\/call"),
    "escaped name": SEARCH.replace(b"search_web", b"\\u0073earch\\u005fweb"),
    "escaped keys": SEARCH.replace(b'"method"', b'"m\\u0065thod"').replace(b'"name"', b'"n\\u0061me"'),
    "method twice": SEARCH.replace(b'"method"', b'"method":"ping","method"'),
    "method twice, last ping": SEARCH[:-1] + b',"method":"ping"}',
    "method twice, escaped": SEARCH[:-1] + b',"\\u006dethod":"ping"}',
    "params twice": SEARCH[:-1] + b',"params":{"name":"add","arguments":{"a":1,"b":2}}}',
    "name twice": SEARCH.replace(b'"name"', b'"name":"add","name"'),
    "name twice, last": SEARCH.replace(b'"arguments"', b'"name":"add","arguments"'),
    "other letters": SEARCH.replace(b'"name"', b'"Name":"add","name"'),
    "long s": SEARCH.replace(
        b'"params"', '"param\N{LATIN SMALL LETTER LONG S}":{"name":"add"},"params"'.encode()
    ),
    "blanks": b" \r\n\t" + SEARCH.replace(b":", b" : ") + b"\n",
    "order": (
        b'{"params":{"arguments":{"q":"x"},"name":"search_web"},"method":"tools/call","id":1,"jsonrpc":"2.0"}'
    ),
    "batch": b"[" + SEARCH + b"]",
    "batch of two": b"[" + PING + b"," + SEARCH + b"]",
    "byte order mark": b"\xef\xbb\xbf" + SEARCH,
    "utf-16": SEARCH.decode().encode("utf-16"),
    "utf-32": SEARCH.decode().encode("utf-32-le"),
    "NaN": _of(params='{"name":"search_web","arguments":{"q":"x","z":NaN}}'),
    "large number": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "9" * 5000 + "}}"),
    "surrogate": _of(params='{"name":"search_web","arguments":{"q":"\\ud800"}}'),
    "deep": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 150 + "]" * 150 + "}}"),
    "deeper": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 900 + "]" * 900 + "}}"),
    "deepest": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 9000 + "]" * 9000 + "}}"),
    "many values": _of(params='{"name":"search_web","arguments":{"q":"x","z":[' + "1," * 20_000 + "1]}}"),
    "large": _of(params='{"name":"search_web","arguments":{"q":"' + "x" * (3 << 20) + '"}}'),
    "large with escapes": _of(params='{"name":"search_web","arguments":{"q":"' + "\\n" * (1 << 20) + '"}}'),
    "too large": _of(params='{"name":"search_web","arguments":{"q":"' + "x" * (5 << 20) + '"}}'),
    "notification": SEARCH.replace(b'"id":1,', b""),
    "id null": _of(id="null"),
    "id text": _of(id='"1"'),
    "id object": _of(id="{}"),
    "id a float": _of(id="1.5"),
    "name a number": _of(params='{"name":5,"arguments":{}}'),
    "params a list": _of(params='["search_web"]'),
    "name with blanks": _of(params='{"name":" search_web ","arguments":{"q":"x"}}'),
    "name in capitals": _of(params='{"name":"SEARCH_WEB","arguments":{"q":"x"}}'),
    "method in capitals": _of(method='"TOOLS/CALL"'),
    "after a null": _of(params='{"name":"add\\u0000","name":"search_web","arguments":{"q":"x"}}'),
    "meta names another": _of(params='{"_meta":{"name":"add"},"name":"search_web","arguments":{"q":"x"}}'),
    "empty": b"",
    "no JSON": b"search",
    "two messages": SEARCH + PING,
}


INTERIM: Final = (
    b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":'
    b'"elicitation/create","params":{"mode":"form","message":"isError"}}},"requestState":"s"}}'
)
COMPLETE: Final = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[],"isError":false}}'
FAILED: Final = b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError":true}}'
LOG: Final = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":{"result":1}}}'
JSON: Final = b"application/json"
SSE: Final = b"text/event-stream"


def event(data: bytes, *, end: bytes = b"\n") -> bytes:
    """A server-sent event; data of several lines has a field for each."""
    lines = [b"event: message", *(b"data: " + line for line in data.split(b"\n"))]
    return end.join([*lines, b"", b""])


def pretty(message: bytes) -> bytes:
    return json.dumps(json.loads(message), indent=1).encode()


_IMAGE: Final = b"A" * 400_000
LARGE: Final = {
    "interim": INTERIM.replace(b"isError", _IMAGE),
    "server_error": FAILED.replace(b"[]", b'[{"type":"text","text":"' + _IMAGE + b'"}]'),
}
