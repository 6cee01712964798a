"""Bodies that are spelt so that parsers differ: the real servers never run a tool that is billed as less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx
import pytest

from drivers.mcp_apps import Ran, serving
from drivers.mcp_messages import HOSTILE, PING, SEARCH
from drivers.sampled import pairs

if TYPE_CHECKING:
    from drivers.app import Served

pytestmark = pytest.mark.anyio

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
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == -32700
            assert answer.json()["id"] is None
    told = [line for line in caplog.messages if "no message that can be read" in line]
    assert len(told) == len(set(told)) > 1
