"""Tools of MCP servers, one line each: driven by the real servers and the real client."""

# Internals: pure tables of bytes; a server shows each only as a count.

from __future__ import annotations

import asyncio
import gzip
import json
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, Final
from weakref import WeakValueDictionary

import httpx
import pytest
from mcp import MCPError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import meterkit
from drivers.app import Served, answering, are_refused_in_child, http_scope, ignore, served
from drivers.llm_apps import answering as in_pieces
from drivers.mcp_apps import (
    COMPLETE,
    FAILED,
    HOSTILE,
    INTERIM,
    JSON,
    LARGE,
    LOG,
    PING,
    PLANS,
    SEARCH,
    SERVERS,
    SSE,
    Ran,
    agent,
    event,
    pretty,
    serving,
)
from drivers.sampled import pairs
from faults.refusals import settled
from llm_usage.framing.incremental import drain
from meterkit import Caller
from meterkit.asgi.mcp import McpLines, McpMessage
from meterkit.asgi.mcp_exchange import McpResponseReader
from meterkit.asgi.route_matching import Router
from meterkit.catalog import Route, loads

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("name", "mode"), pairs(["mcp", "fastmcp stateless json"], ["auto", "legacy"]))
async def test_each_tool_is_counted_by_its_line(name: str, mode: str) -> None:
    ran: Ran = []
    async with serving(name, ran) as (at, url):
        async with agent(url, mode) as client:
            for _ in range(2):
                found = await client.call_tool("search_web", {"q": "x"})
                assert not found.is_error
            for nth in range(5):
                found = await client.call_tool("add", {"a": nth, "b": 1})
                assert found.structured_content == {"result": nth + 1}
            # The servers answer 200, with a result that is an error.
            assert (await client.call_tool("fail", {})).is_error
        assert (await at.counted(meter="searches"), await at.counted(meter="calls")) == ((2, 0), (7, 0))
    assert ran == ["search_web"] * 2 + ["add"] * 5 + ["fail"]


@pytest.mark.parametrize(("name", "mode", "dollars"), pairs([*SERVERS], ["auto", "legacy"], [0, 1]))
async def test_a_client_sees_a_refusal_as_a_result_with_an_offer(name: str, mode: str, dollars: int) -> None:
    ran: Ran = []
    url_of_shop = "https://shop.example/top-up"
    async with serving(name, ran) as (at, url):
        if dollars:
            await at.kit.grants.add("acme", {"usd": dollars}, grant_id="g0")
        async with agent(url, mode) as client:
            refused = await client.call_tool("write", {})
            await at.kit.grants.add("acme", {"usd": 10}, grant_id="g1")
            allowed = await client.call_tool("write", {})
        assert (refused.is_error, allowed.is_error, ran) == (True, False, ["write"])
        told = refused.structured_content
        assert told["x402Version"] == 2
        assert json.loads(refused.content[0].text) == told
        assert [one["amount"] for one in told["accepts"]] == ["1000", "5000"]
        assert {one["extra"]["url"] for one in told["accepts"]} == {url_of_shop}
        offer = {"credit": "usd", "top_up_url": url_of_shop, "amounts_cents": [1000, 5000], "currency": "usd"}
        assert told["problem"]["offer"] == offer


@pytest.mark.parametrize(("name", "mode"), pairs([*SERVERS], ["auto", "legacy"]))
async def test_other_refusals_are_errors_with_the_problem_as_data(name: str, mode: str) -> None:
    async with serving(name, []) as (at, url), agent(url, mode) as client:
        for _ in range(3):
            await client.call_tool("search_web", {"q": "x"})
        for tool, arguments, problem in (
            ("search_web", {"q": "x"}, "https://iana.org/assignments/http-problem-types#quota-exceeded"),
            ("report", {}, "urn:meterkit:problem:feature-not-in-plan"),
        ):
            with pytest.raises(MCPError) as refused:
                await client.call_tool(tool, arguments)
            assert refused.value.code == -32000
            assert refused.value.data["type"] == problem
            assert "offer" not in refused.value.data
        assert (3, 0) == await at.counted(meter="calls")
        await at.kit.customers.set_status("acme", "unpaid")
        suspended = await client.call_tool("write", {})
        assert suspended.is_error
        assert list(suspended.structured_content) == ["problem"]
        assert suspended.structured_content["problem"]["reason"] == "suspended"


def of_session(scope: Scope) -> Caller:
    """The customer, with the session of an older client as its subject."""
    fields = dict(scope["headers"])
    session = fields.get(b"mcp-session-id", b"").decode("latin-1")
    return Caller(fields[b"x-customer-id"].decode(), {"session": session} if session else {})


@pytest.mark.parametrize("name", ["mcp", "fastmcp"])
async def test_a_session_of_an_older_client_has_limits_of_its_own(name: str) -> None:
    ran: Ran = []
    plans = f"{PLANS}    subjects: {{session: {{calls: {{rate: 2/hour}}}}}}\n"
    async with serving(name, ran, plans, who=of_session) as (at, url):
        async with agent(url, "legacy") as first, agent(url, "legacy") as second:
            for nth in range(2):
                assert not (await first.call_tool("add", {"a": nth, "b": 1})).is_error
            with pytest.raises(MCPError) as refused:
                await first.call_tool("add", {"a": 2, "b": 1})
            assert refused.value.data["violated-policies"] == ["session:calls-1h"]
            assert not (await second.call_tool("add", {"a": 3, "b": 1})).is_error
        await settled(at.kit)
        assert (3, 0) == await at.counted(meter="calls")
        found: Any = await at.kit.usage("acme", by="session")
        assert sorted(one.meters["calls"].recorded for one in found) == [1, 2]
    assert ran == ["add"] * 3


async def test_messages_that_no_line_takes_fall_under_the_other_lines() -> None:
    plans = PLANS.replace('  - {match: "MCP *", consume: {other: 1}}\n', "")
    async with served(answering(200), plans=plans) as at:
        await at.client.post("/mcp", json=call(method="tools/list"))
        assert (100, 0) == await at.counted(meter="other")


def call(**changes: Any) -> dict[str, Any]:
    params = {"name": "search_web", "arguments": {"q": "x"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params} | changes


async def test_a_refusal_has_the_fields_and_the_id() -> None:
    async with served(answering(200), plans=PLANS) as at:
        for _ in range(3):
            await at.client.post("/mcp", json=call())
        for its_id in ("a", None, 1):
            refused = await at.client.post("/mcp", json=call(id=its_id))
            assert (refused.status_code, refused.json()["id"]) == (429, its_id)
        assert refused.json()["error"]["data"]["violated-policies"] == ["searches-period"]
        assert refused.headers["content-type"] == "application/json"
        assert refused.headers["ratelimit"].startswith('"searches-period";r=0')
        assert "retry-after" in refused.headers
        told = await at.client.post("/mcp", json={key: value for key, value in call().items() if key != "id"})
        assert told.headers["content-type"] == "application/problem+json"


async def test_http_refusals_carry_the_offer() -> None:
    async with served(answering(200), plans=PLANS.replace('"MCP tools/call write"', '"POST /write"')) as at:
        for dollars in range(2):
            refused = await at.client.post("/write", json={})
            problem = refused.json()
            assert (refused.status_code, problem["offer"]["amounts_cents"]) == (402, [1000, 5000])
            assert problem["top_up_url"] == problem["offer"]["top_up_url"] == "https://shop.example/top-up"
            told = json.loads(b64decode(refused.headers["payment-required"]))
            assert told["resource"] == {"url": "http://app/write"}
            assert [one["amount"] for one in told["accepts"]] == ["1000", "5000"]
            await at.kit.grants.add("acme", {"usd": 1}, grant_id=f"{dollars}")


@pytest.mark.parametrize(("enforcement", "counted"), [("shadow", 1), ("off", 0)])
async def test_in_shadow_and_off_what_cannot_be_read_passes(enforcement: str, counted: int) -> None:
    async with served(answering(200), plans=PLANS, settings={"enforcement": enforcement}) as at:
        assert (await at.client.post("/mcp", content=b"[]")).status_code == 200
        assert (counted, 0) == await at.counted(meter="searches")


@pytest.mark.parametrize("body", [HOSTILE["name twice, last"], HOSTILE["batch"]])
async def test_a_line_in_shadow_lets_no_unreadable_call_pass(body: bytes) -> None:
    plans = PLANS.replace("routes:\n", 'routes:\n  - {match: "MCP tools/list", enforcement: shadow}\n')
    async with served(answering(200), plans=plans) as at:
        assert (await at.client.post("/mcp", content=body)).status_code == 400


@pytest.mark.parametrize(("path", "status", "counted"), [("/MCP/", 200, 1), ("//mcp", 400, 0)])
@pytest.mark.parametrize("first", ["", '  - {match: "MCP initialize"}\n'])
async def test_no_spelling_of_the_endpoint_makes_calls_free(
    path: str, status: int, counted: int, first: str
) -> None:
    plans = PLANS.replace("routes:\n", f"routes:\n{first}")
    async with served(answering(200), plans=plans) as at:
        assert (await at.client.post(f"http://app{path}", json=call())).status_code == status
        assert (counted, 0) == await at.counted(meter="searches")


async def test_a_message_opens_no_gate_that_its_path_may_lead_to() -> None:
    gate = '  - {match: "MCP initialize"}\n  - {match: "POST /v1/chat", feature: reports}\n'
    async with served(answering(200), plans=PLANS.replace("routes:\n", f"routes:\n{gate}")) as at:
        answer = await at.client.post("/v1/chat%23/%2e%2e/%2e%2e/mcp", json=call(method="initialize"))
        assert answer.status_code == 400


async def test_rates_of_two_lines_of_one_endpoint_are_counted_apart() -> None:
    plans = PLANS.replace(", consume: {searches: 1, calls: 1}", ", rate: 1/hour").replace(
        '/call", consume: {calls: 1}', '/call", rate: 1/hour'
    )
    async with served(answering(200), plans=plans) as at:
        sent = [call(), call(params={"name": "add"}), call(), call(params={"name": "sub"})]
        assert [200, 200, 429, 429] == [(await at.client.post("/mcp", json=one)).status_code for one in sent]


# Bodies that are spelt so that parsers differ: the real servers never run a tool that is billed as less.

HEADERS: Final = {
    "x-customer-id": "acme",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-06-18",
}


async def billed(at: Served) -> int:
    return (await at.counted(meter="searches"))[0]


@pytest.mark.parametrize(
    ("name", "mcp_headers"),
    pairs(["mcp stateless json", "fastmcp stateless json"], [{}, {"mcp-method": "ping", "mcp-name": "add"}]),
)
async def test_a_tool_that_runs_is_billed_as_that_tool(name: str, mcp_headers: dict[str, str]) -> None:
    ran: Ran = []
    async with serving(name, ran, included=1000) as (at, url), httpx.AsyncClient() as client:
        for case, body in HOSTILE.items():
            before = await billed(at)
            ran.clear()
            answer = await client.post(url, content=body, headers=HEADERS | mcp_headers)
            more = await billed(at) - before
            is_error = b'"isError":true' in answer.content or b'"error"' in answer.content
            assert more >= ran.count("search_web") or is_error, (case, answer.text[:300])
            assert "add" not in ran or case == "never", case
        assert await billed(at) > 5


@pytest.mark.parametrize("coding", ["gzip", "identity, gzip"])
async def test_a_body_in_a_coding_is_not_taken_for_less(coding: str) -> None:
    ran: Ran = []
    async with serving("mcp stateless json", ran) as (at, url), httpx.AsyncClient() as client:
        answer = await client.post(url, content=SEARCH, headers=HEADERS | {"content-encoding": coding})
        assert (answer.status_code, answer.json()["error"]["code"], ran) == (413, -32700, [])
        assert await billed(at) == 0


AMBIGUOUS: Final = (
    b"[" + SEARCH + b"," + PING + b"]",
    b"x",
    SEARCH[:-1] + b',"method":"ping"}',
    SEARCH.replace(b'"method"', b'"Method"'),
    SEARCH.replace(b'"name"', b'"Name":"add","name"'),
    HOSTILE["long s"],
    PING[:-1] + b',"PARAMS":{}}',
)


async def test_an_ambiguous_message_is_refused_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("mcp stateless json", []) as (_, url), httpx.AsyncClient() as client:
        for body in AMBIGUOUS * 2:
            answer = await client.post(url, content=body, headers=HEADERS)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32700)
            assert answer.json()["id"] is None
    told = [line for line in caplog.messages if "no message that can be read" in line]
    assert len(told) == len(set(told)) > 1


def saying(*answers: bytes, kind: bytes = JSON, coding: str | None = None) -> ASGIApp:
    """A server that gives one answer after the other, each in pieces of 100 bytes or two."""
    left = list(answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = left.pop(0)
        step = max(100, len(body) // 2)
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        await in_pieces(pieces, kind.decode(), coding=coding)(scope, receive, send)

    return app


@pytest.mark.parametrize(
    ("name", "mode", "rounds"),
    [("mcp", "auto", 3), ("fastmcp stateless json", "auto", 3), ("mcp", "legacy", 1)],
)
async def test_a_call_that_asks_twice_counts_once_but_rates_thrice(name: str, mode: str, rounds: int) -> None:
    """A call of an older client asks within one request."""
    ran: Ran = []
    async with serving(name, ran) as (at, url):
        async with agent(url, mode) as client:
            found = await client.call_tool("book", {})
        assert (found.is_error, found.content[0].text) == (False, "booked True")
        assert (1, 0) == await at.counted(meter="calls")
        assert (await at.kit.check("acme", "calls")).remaining == 20 * 3 - rounds
    assert ran == ["book"]


ROUNDS: Final = {
    "json": partial(saying, INTERIM, INTERIM, COMPLETE),
    "events": partial(saying, event(INTERIM), event(LOG) + event(pretty(INTERIM)), event(COMPLETE), kind=SSE),
    "gzip": partial(saying, *map(gzip.compress, (INTERIM, INTERIM, COMPLETE)), coding="gzip"),
}


@pytest.mark.parametrize("name", ROUNDS)
async def test_a_call_uses_included_quantity_when_it_completes(name: str) -> None:
    """Of three searches that the plan includes, calls that asked twice use one each."""
    async with served(ROUNDS[name](), plans=PLANS) as at:
        for nth, recorded in enumerate([0, 0, 1]):
            answer = await at.client.post("/mcp", json=call(id=nth))
            assert (answer.status_code, recorded, 0) == (200, *await at.counted(meter="searches"))
        assert (await at.kit.usage("acme"))["meters"]["searches"]["remaining"] == 2
        assert (await at.kit.check("acme", "calls")).remaining == 17


MONEY: Final = PLANS.replace(
    "      calls: {rate: 20/hour}\n",
    "      calls: {included: 0, overage: {bill: {per: 1, amount_cents: 300}}}\n"
    "    budget: {amount_cents: 500}\n",
).replace("{unit: call}", "{unit: call, stripe: {event_name: calls}}")


async def test_rounds_leave_a_budget_alone() -> None:
    async with served(saying(INTERIM, INTERIM, COMPLETE, COMPLETE), plans=MONEY) as at:
        for _ in range(3):
            assert "result" in (await at.client.post("/mcp", json=call())).json()
        refused = (await at.client.post("/mcp", json=call())).json()["result"]
        assert refused["structuredContent"]["problem"]["spent_cents"] == 300


@pytest.mark.parametrize(
    ("body", "kind", "recorded"), [(INTERIM, JSON, 0), (event(FAILED), SSE, 0), (event(COMPLETE), SSE, 1)]
)
async def test_leaving_after_an_interim_answer_is_no_success(body: bytes, kind: bytes, recorded: int) -> None:
    """Clients may close a stream once they have the response, before the server ends it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_pieces([body], kind.decode(), ends=False)(scope, receive, send)
        while (await receive())["type"] != "http.disconnect":
            pass

    said: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": SEARCH}]

    async def receive() -> Message:
        return said.pop()

    async with served(app, plans=PLANS) as at:
        await at.app(http_scope("/mcp", method="POST"), receive, ignore)
        assert (recorded, 0) == await at.counted(meter="searches")


@pytest.mark.parametrize("how", ["says", "raises"])
@pytest.mark.parametrize(("session", "kind", "recorded"), [(1, SSE, 1), (0, SSE, 0), (1, JSON, 0)])
async def test_a_tool_of_a_session_runs_on_without_its_client(
    session: int, kind: bytes, recorded: int, how: str
) -> None:
    """The servers of the SDKs only stop to answer then; without a session they stop the tool, too."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if how == "raises":
            await send({"type": "http.response.body", "body": event(LOG), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    said: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": SEARCH}]

    async def receive() -> Message:
        return said.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client is gone")

    scope = http_scope("/mcp", method="POST")
    scope["headers"] = [*scope["headers"], *[(b"mcp-session-id", b"s")] * session]
    async with served(app, plans=PLANS) as at:
        with suppress(OSError):
            await at.app(scope, receive, send)
        await settled(at.kit)
        assert (recorded, 0) == await at.counted(meter="searches")


@pytest.mark.parametrize(
    ("body", "kind"), [(event(pretty(FAILED), end=b"\r\n"), SSE), (LARGE["server_error"], JSON)]
)
async def test_an_error_in_an_answer_is_passed_on_and_not_billed(body: bytes, kind: bytes) -> None:
    async with served(saying(body, kind=kind), plans=PLANS) as at:
        assert (await at.client.post("/mcp", json=call())).content == body
        assert (0, 0) == await at.counted(meter="searches")


ERROR: Final = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"x"}}'
DEEP: Final = b"[" * 100_000
ANSWERS: Final[list[tuple[bytes, bytes, str | None]]] = [
    (COMPLETE, JSON, None),
    (INTERIM, JSON, "interim"),
    (INTERIM.replace(b"input_required", b"task"), JSON, None),
    (FAILED, JSON, "server_error"),
    (FAILED.replace(b"true", b"1"), JSON, None),
    (LARGE["server_error"], JSON, "server_error"),
    (FAILED.replace(b"{", b'{"resultType":"input_required",', 2), JSON, "server_error"),
    (ERROR, JSON, "server_error"),
    (ERROR.replace(b"-32603", b"-32602"), JSON, "client_error"),
    (ERROR.replace(b"-32603", b"-32600"), b"Application/JSON", "client_error"),
    (b"", JSON, None),
    (DEEP, JSON, None),
    (b'{"result":[]}', JSON, None),
    (b'{"error":"x"}', JSON, None),
    (event(INTERIM), SSE, "interim"),
    (event(INTERIM, end=b"\r\n"), b"text/event-stream; charset=utf-8", "interim"),
    (event(pretty(FAILED), end=b"\r"), SSE, "server_error"),
    (event(FAILED.replace(b',"result"', b'\n,"result"')), SSE, "server_error"),
    (event(pretty(LARGE["server_error"]), end=b"\r\n"), SSE, "server_error"),
    (b"\xef\xbb\xbf" + event(FAILED), SSE, "server_error"),
    (b": x\nid: 8\ndata:" + FAILED + b"\nretry: 1\n\n", SSE, "server_error"),
    (event(LOG) * 3 + event(FAILED) + event(LOG), SSE, "server_error"),
    (event(FAILED).rstrip(b"\n"), SSE, "server_error"),
    (event(COMPLETE) + event(LOG), SSE, None),
    (event(LOG), SSE, None),
]


@pytest.mark.parametrize(("coding", "answer"), pairs([b"", b"gzip"], ANSWERS))
def test_an_answer_says_its_outcome(coding: bytes, answer: tuple[bytes, bytes, str | None]) -> None:
    body, kind, expected = answer
    sent = gzip.compress(body, 1) if coding else body
    pieces = range(1, len(sent)) if len(sent) < 300 else (1, len(sent) // 2, len(sent) - 1)
    for cut in [len(sent), *pieces]:
        reader = McpResponseReader([(b"Content-Type", kind), (b"content-encoding", coding)])
        for piece in (sent[:cut], sent[cut:]):
            drain(reader.read(piece))
        assert (reader.close(), reader.close()) == (expected, expected)


CANCELLED: Final = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32800,"message":"Request cancelled"}}'


@pytest.mark.parametrize("error", [CANCELLED, CANCELLED.replace(b"-32800", b"0")])
@pytest.mark.parametrize(("before", "searches"), [([], 0), ([event(LOG)], 1)])
@pytest.mark.parametrize("in_one", [False, True])
async def test_a_cancelled_call_counts_as_if_the_client_left(
    error: bytes, before: list[bytes], searches: int, *, in_one: bool
) -> None:
    """A client could otherwise read what a tool reports on its way, and cancel it before its end."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record("other", 7)
        pieces = [*before, event(error)]
        if in_one:
            await Response(b"".join(pieces), media_type=SSE.decode())(scope, receive, send)
        else:
            await in_pieces(pieces, SSE.decode())(scope, receive, send)

    async with served(app, plans=PLANS) as at:
        meterkit.metrics_app(at.kit)  # It asks for the outcome before the bill does.
        await at.client.post("/mcp", json=call())
        assert (searches, 0) == await at.counted(meter="searches")
        assert (7, 0) == await at.counted(meter="other")


@pytest.mark.parametrize("first", ["", '  - {match: "MCP initialize", exempt: true}\n'])
async def test_a_tool_records_for_its_own_request(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK before 2.0 runs the tools of a session in the context of its first request."""
    context: ContextVar[Any] = ContextVar("request_ctx")
    monkeypatch.setattr("mcp.server.lowlevel.server.request_ctx", context, raising=False)
    calls: asyncio.Queue[tuple[Request, asyncio.Event]] = asyncio.Queue()
    sessions: list[asyncio.Task[None]] = []

    async def session() -> None:
        while True:
            request, done = await calls.get()
            context.set(SimpleNamespace(request=request))
            try:
                meterkit.record("other", 7)
            finally:
                done.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request, done = Request(scope, receive), asyncio.Event()
        if (await request.json())["method"] == "initialize":
            sessions.append(asyncio.create_task(session()))
        else:
            calls.put_nowait((request, done))
            await done.wait()
        await Response(COMPLETE, media_type=JSON.decode())(scope, receive, send)

    async with served(app, plans=PLANS.replace("routes:\n", f"routes:\n{first}")) as at:
        await at.client.post("/mcp", json={"jsonrpc": "2.0", "id": 0, "method": "initialize"})
        await at.client.post("/mcp", json=call(), headers={"x-customer-id": "bob"})
        assert (7, 0) == await at.counted("bob", meter="other")
        assert (0 if first else 1, 0) == await at.counted(meter="other")
        sessions[0].cancel()


async def test_a_tool_of_an_anonymous_caller_names_no_customer(monkeypatch: pytest.MonkeyPatch) -> None:
    context: ContextVar[Any] = ContextVar("request_ctx")
    monkeypatch.setattr("mcp.server.lowlevel.server.request_ctx", context, raising=False)

    async def tool(request: Request) -> None:
        context.set(SimpleNamespace(request=request))
        await at.kit.record(meterkit.current().customer, "other", 7)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # As in a session, whose context is not that of the request.
        await asyncio.create_task(tool(Request(scope, receive)), context=Context())
        await Response(COMPLETE, media_type=JSON.decode())(scope, receive, send)

    plans = PLANS.replace("routes:\n", "anonymous: {plan: free, by: ip}\nroutes:\n")
    async with served(app, plans=plans) as at:
        await at.client.post("/mcp", json=call(), headers={"x-customer-id": ""})
        assert await at.counted("127.0.0.1", meter="other") == (0, 0)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_child_of_a_tool_does_not_record_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    context: ContextVar[Any] = ContextVar("request_ctx")
    monkeypatch.setattr("mcp.server.lowlevel.server.request_ctx", context, raising=False)
    found: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context.set(SimpleNamespace(request=Request(scope, receive)))
        found.append(await are_refused_in_child(meterkit.record))
        await Response(COMPLETE, media_type=JSON.decode())(scope, receive, send)

    async with served(app, plans=PLANS) as at:
        await at.client.post("/mcp", json=call())
    assert found == [True]


async def test_many_combinations_of_lines_are_kept_within_a_bound() -> None:
    lines = [f'  - {{match: "MCP tools/call *{letter}*", rate: 9/hour}}' for letter in "abcdefghi"]
    plans = PLANS.replace("routes:\n", "\n".join(["routes:", *lines, ""]))
    made: WeakValueDictionary[int, Router] = WeakValueDictionary()

    def router_of(routes: Sequence[Route]) -> Router:
        router = made[id(routes)] = Router(routes)
        return router

    lines_of = McpLines(loads(plans).routes, router_of)
    for nth in range(2**9):
        name = "".join(letter for place, letter in enumerate("abcdefghi") if nth >> place & 1)
        found = lines_of.line(McpMessage(method="tools/call", name=name), http_scope("/mcp", method="POST"))
        expected = f"MCP tools/call *{name[0]}*" if name else "MCP tools/call"
        assert found is not None
        assert expected == found.match
    assert len(made) <= 256
