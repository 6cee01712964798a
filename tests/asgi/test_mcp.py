"""Tools of MCP servers, one line each: driven by the real servers and the real client."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Final

import pytest
from mcp import MCPError

from drivers.app import answering, served
from drivers.llm_apps import read_all
from drivers.mcp_apps import PLANS, SERVERS, Ran, agent, serving
from drivers.sampled import pairs
from faults.refusals import settled
from meterkit import Caller

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("name", "mode"), pairs([*SERVERS], ["auto", "legacy"]))
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
        assert (2, 0) == await at.counted(meter="searches")
        assert (7, 0) == await at.counted(meter="calls")
    assert ran == ["search_web"] * 2 + ["add"] * 5


@pytest.mark.parametrize(("name", "mode", "dollars"), pairs([*SERVERS], ["auto", "legacy"], [0, 1]))
async def test_the_client_sees_a_refusal_as_a_result_with_an_offer(
    name: str, mode: str, dollars: int
) -> None:
    ran: Ran = []
    async with serving(name, ran) as (at, url):
        if dollars:
            await at.kit.grants.add("acme", {"usd": dollars}, grant_id="g0")
        async with agent(url, mode) as client:
            refused = await client.call_tool("write", {})
            await at.kit.grants.add("acme", {"usd": 10}, grant_id="g1")
            allowed = await client.call_tool("write", {})
        assert (refused.is_error, allowed.is_error) == (True, False)
        told = refused.structured_content
        assert told["x402Version"] == 2
        assert json.loads(refused.content[0].text) == told
        assert [one["amount"] for one in told["accepts"]] == ["1000", "5000"]
        assert {one["extra"]["url"] for one in told["accepts"]} == {"https://shop.example/top-up"}
        assert told["problem"]["offer"] == {
            "credit": "usd",
            "top_up_url": "https://shop.example/top-up",
            "amounts_cents": [1000, 5000],
            "currency": "usd",
        }
        assert ran == ["write"]


BUDGETED: Final = PLANS.replace("{unit: call}", "{unit: call, stripe: {event_name: calls}}").replace(
    "      calls: {rate: 20/hour}\n",
    "      calls: {included: 0, overage: {bill: {per: 1, amount_cents: 300}}}\n"
    "    budget: {amount_cents: 500}\n",
)


def problem_without_offer(refused: Any) -> dict[str, Any]:
    """The problem document of a result that has no member of x402."""
    told = refused.structured_content
    assert refused.is_error
    assert json.loads(refused.content[0].text) == told
    assert "accepts" not in told
    assert list(told) == ["problem"]
    found: dict[str, Any] = told["problem"]
    return found


@pytest.mark.parametrize(("name", "mode"), pairs([*SERVERS], ["auto", "legacy"]))
async def test_a_reached_budget_is_a_result_without_an_offer(name: str, mode: str) -> None:
    ran: Ran = []
    async with serving(name, ran, BUDGETED) as (_, url), agent(url, mode) as client:
        assert not (await client.call_tool("add", {"a": 1, "b": 1})).is_error
        told = problem_without_offer(await client.call_tool("add", {"a": 1, "b": 1}))
    assert (told["status"], told["type"]) == (402, "urn:meterkit:problem:spend-limit-reached")
    assert (told["limit_cents"], told["spent_cents"]) == (500, 300)
    assert ran == ["add"]


@pytest.mark.parametrize(("name", "mode"), pairs([*SERVERS], ["auto", "legacy"]))
async def test_a_suspension_is_a_result_without_an_offer(name: str, mode: str) -> None:
    ran: Ran = []
    async with serving(name, ran) as (at, url), agent(url, mode) as client:
        await at.kit.customers.set_status("acme", "unpaid")
        told = problem_without_offer(await client.call_tool("write", {}))
        await at.kit.customers.set_status("acme", None)
        assert not (await client.call_tool("add", {"a": 1, "b": 1})).is_error
    assert (told["status"], told["type"]) == (402, "urn:meterkit:problem:payment-required")
    assert told["reason"] == "suspended"
    assert ran == ["add"]


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
        assert (3, 0) == await at.counted(meter="calls")


def of_session(scope: Scope) -> Caller:
    """The customer, with the session of an older client as its subject."""
    fields = dict(scope["headers"])
    session = fields.get(b"mcp-session-id", b"").decode("latin-1")
    return Caller(fields[b"x-customer-id"].decode(), {"session": session} if session else {})


@pytest.mark.parametrize("name", ["mcp", "fastmcp"])
async def test_a_session_of_an_older_client_has_limits_of_its_own(name: str, any_store_url: str) -> None:
    ran: Ran = []
    plans = f"{PLANS}    subjects: {{session: {{calls: {{rate: 2/hour}}}}}}\n"
    edge: Any = {"who": of_session, "redis_url": any_store_url}
    async with serving(name, ran, plans, **edge) as (at, url):
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


@pytest.mark.parametrize(("name", "mode"), pairs([*SERVERS], ["auto", "legacy"]))
async def test_a_call_that_fails_is_not_billed(name: str, mode: str) -> None:
    """The servers answer 200, with a result that is an error."""
    ran: Ran = []
    async with serving(name, ran) as (at, url), agent(url, mode) as client:
        assert (await client.call_tool("fail", {})).is_error
        assert (0, 0) == await at.counted(meter="calls")
        await client.call_tool("add", {"a": 1, "b": 1})
        assert (1, 0) == await at.counted(meter="calls")
    assert ran == ["fail", "add"]


async def test_an_attempt_is_billed_where_the_line_says_so() -> None:
    plans = PLANS.replace('/call", consume: {calls: 1}', '/call", charge_on: attempt, consume: {calls: 1}')
    async with serving("mcp", [], plans) as (at, url), agent(url) as client:
        assert (await client.call_tool("fail", {})).is_error
        assert (1, 0) == await at.counted(meter="calls")


async def test_messages_that_no_line_takes_fall_under_the_other_lines() -> None:
    plans = PLANS.replace('  - {match: "MCP *", consume: {other: 1}}\n', "")
    async with served(answering(200), plans=plans) as at:
        await at.client.post("/mcp", json=call(method="tools/list"))
        assert (100, 0) == await at.counted(meter="other")


def call(**changes: Any) -> dict[str, Any]:
    params = {"name": "search_web", "arguments": {"q": "x"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params} | changes


async def test_what_is_allowed_passes_unchanged_with_limit_fields() -> None:
    """The app gets each byte as it was sent, the client each byte as it was answered."""
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            got.append(await read_all(receive))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
            await send({"type": "http.response.body", "body": b"{ ", "more_body": True})
            await send({"type": "http.response.body", "body": b"}"})

    async with served(app, plans=PLANS) as at:
        sent = json.dumps(call(method="ping"), indent=3).encode() + b"\n "
        answer = await at.client.post("/mcp", content=sent)
        assert (got, answer.content, answer.headers["x-own"]) == ([sent], b"{ }", "1")
        answer = await at.client.post("/mcp", json=call())
        policies = '"calls-1h";q=20;qu="call";w=3600, "searches-period";q=3;qu="search"'
        assert policies == answer.headers["ratelimit-policy"]
        assert (await at.client.get("/mcp")).status_code == 200
        assert (await at.client.post("/other", content=b"no JSON")).status_code == 200
        assert (201, 0) == await at.counted(meter="other")


@pytest.mark.parametrize(
    ("changes", "status", "member"),
    [({}, 429, "error"), ({"id": "a"}, 429, "error"), ({"id": None}, 429, "error")],
)
async def test_a_refusal_has_the_fields_and_the_id(changes: dict[str, Any], status: int, member: str) -> None:
    async with served(answering(200), plans=PLANS) as at:
        for _ in range(3):
            await at.client.post("/mcp", json=call())
        refused = await at.client.post("/mcp", json=call(**changes))
        assert (status, call(**changes)["id"]) == (refused.status_code, refused.json()["id"])
        assert refused.json()[member]["data"]["violated-policies"] == ["searches-period"]
        assert refused.headers["content-type"] == "application/json"
        assert refused.headers["ratelimit"].startswith('"searches-period";r=0')
        assert "retry-after" in refused.headers
        without_id = {key: value for key, value in call().items() if key != "id"}
        told = await at.client.post("/mcp", json=without_id)
        assert told.headers["content-type"] == "application/problem+json"


async def test_http_refusals_carry_the_offer() -> None:
    plans = PLANS.replace('"MCP tools/call write"', '"POST /write"')
    async with served(answering(200), plans=plans) as at:
        first = await at.client.post("/write", json={})
        assert (first.status_code, "payment-required" in first.headers) == (429, False)
        assert first.json()["offer"]["amounts_cents"] == [1000, 5000]
        await at.kit.grants.add("acme", {"usd": 1}, grant_id="g1")
        refused = await at.client.post("/write", json={})
        assert refused.status_code == 402
        assert refused.json()["offer"]["top_up_url"] == "https://shop.example/top-up"
        told = json.loads(b64decode(refused.headers["payment-required"]))
        assert told["resource"] == {"url": "http://app/write"}
        assert [one["amount"] for one in told["accepts"]] == ["1000", "5000"]


async def test_another_limit_has_no_offer() -> None:
    async with served(answering(200), plans=PLANS) as at:
        refused = [await at.client.post("/mcp", json=call()) for _ in range(4)][-1]
        assert "offer" not in refused.json()["error"]["data"]


async def test_lines_of_mcp_can_be_exempt() -> None:
    plans = PLANS.replace('"MCP *", consume: {other: 1}', '"MCP *", exempt: true')
    async with served(answering(200), plans=plans) as at:
        free = await at.client.post("/mcp", json=call(method="initialize"), headers={"x-customer-id": ""})
        assert (free.status_code, "ratelimit" in free.headers) == (200, False)
        unknown = await at.client.post("/mcp", json=call(), headers={"x-customer-id": ""})
        assert (unknown.status_code, "www-authenticate" in unknown.headers) == (401, True)


async def test_in_shadow_what_cannot_be_read_passes() -> None:
    async with served(answering(200), plans=f"{PLANS}enforcement: shadow\n") as at:
        assert (await at.client.post("/mcp", content=b"[]")).status_code == 200
        assert (1, 0) == await at.counted(meter="searches")


async def test_switched_off_nothing_is_read() -> None:
    async with served(answering(200), plans=PLANS, settings={"enforcement": "off"}) as at:
        assert (await at.client.post("/mcp", content=b"[]")).status_code == 200


@pytest.mark.parametrize("path", ["/mcp", "//mcp", "/MCP/", "/mcp%2F"])
async def test_paths_are_read_as_the_router_reads_them(path: str) -> None:
    async with served(answering(200), plans=PLANS, paths="loose") as at:
        await at.client.post(f"http://app{path}", json=call())
        assert (1, 0) == await at.counted(meter="searches")


async def test_rates_of_two_lines_of_one_endpoint_are_counted_apart() -> None:
    plans = PLANS.replace(", consume: {searches: 1, calls: 1}", ", rate: 1/hour").replace(
        '/call", consume: {calls: 1}', '/call", rate: 1/hour'
    )
    async with served(answering(200), plans=plans) as at:
        sent = [call(), call(params={"name": "add"}), call(), call(params={"name": "sub"})]
        assert [200, 200, 429, 429] == [(await at.client.post("/mcp", json=one)).status_code for one in sent]
