"""Tools of MCP servers, one line each: driven by the real servers and the real client."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest

from mcp_apps import PLANS, SERVERS, Ran, agent, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("name", SERVERS)
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


@pytest.mark.parametrize("dollars", [0, 1])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("name", SERVERS)
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
