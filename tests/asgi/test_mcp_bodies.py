"""Bodies that are spelt so that parsers differ: the real servers never run a tool that is billed as less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx
import pytest

from drivers.mcp_apps import Ran, serving

if TYPE_CHECKING:
    from drivers.app import Served

pytestmark = pytest.mark.anyio

SEARCH: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search_web","arguments":{"q":"x"}}}'
)
PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
HEADERS: Final = {
    "x-customer-id": "acme",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-06-18",
}


def of(**changes: str) -> bytes:
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
    "NaN": of(params='{"name":"search_web","arguments":{"q":"x","z":NaN}}'),
    "large number": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "9" * 5000 + "}}"),
    "surrogate": of(params='{"name":"search_web","arguments":{"q":"\\ud800"}}'),
    "deep": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 150 + "]" * 150 + "}}"),
    "deeper": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 900 + "]" * 900 + "}}"),
    "deepest": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 9000 + "]" * 9000 + "}}"),
    "many values": of(params='{"name":"search_web","arguments":{"q":"x","z":[' + "1," * 20_000 + "1]}}"),
    "large": of(params='{"name":"search_web","arguments":{"q":"' + "x" * (3 << 20) + '"}}'),
    "large with escapes": of(params='{"name":"search_web","arguments":{"q":"' + "\\n" * (1 << 20) + '"}}'),
    "too large": of(params='{"name":"search_web","arguments":{"q":"' + "x" * (5 << 20) + '"}}'),
    "notification": SEARCH.replace(b'"id":1,', b""),
    "id null": of(id="null"),
    "id text": of(id='"1"'),
    "id object": of(id="{}"),
    "id a float": of(id="1.5"),
    "name a number": of(params='{"name":5,"arguments":{}}'),
    "params a list": of(params='["search_web"]'),
    "name with blanks": of(params='{"name":" search_web ","arguments":{"q":"x"}}'),
    "name in capitals": of(params='{"name":"SEARCH_WEB","arguments":{"q":"x"}}'),
    "method in capitals": of(method='"TOOLS/CALL"'),
    "after a null": of(params='{"name":"add\\u0000","name":"search_web","arguments":{"q":"x"}}'),
    "meta names another": of(params='{"_meta":{"name":"add"},"name":"search_web","arguments":{"q":"x"}}'),
    "empty": b"",
    "no JSON": b"search",
    "two messages": SEARCH + PING,
}


async def billed(at: Served) -> int:
    return (await at.counted(meter="searches"))[0]


@pytest.mark.parametrize(
    "mcp_headers", [{}, {"mcp-method": "ping", "mcp-name": "add"}], ids=["plain", "lying"]
)
@pytest.mark.parametrize("name", ["mcp stateless json", "fastmcp stateless json"])
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


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_a_body_in_a_coding_is_not_taken_for_less(coding: str) -> None:
    ran: Ran = []
    async with serving("mcp stateless json", ran) as (at, url), httpx.AsyncClient() as client:
        answer = await client.post(url, content=SEARCH, headers=HEADERS | {"content-encoding": coding})
        assert (answer.status_code, answer.json()["error"]["code"], ran) == (413, -32700, [])
        assert await billed(at) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"[" + SEARCH + b"," + PING + b"]",
        b"x",
        SEARCH[:-1] + b',"method":"ping"}',
        SEARCH.replace(b'"method"', b'"Method"'),
        SEARCH.replace(b'"name"', b'"Name":"add","name"'),
        HOSTILE["long s"],
        PING[:-1] + b',"PARAMS":{}}',
    ],
)
async def test_an_ambiguous_message_is_refused_and_logged_once(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving("mcp stateless json", []) as (_, url), httpx.AsyncClient() as client:
        for _ in range(3):
            answer = await client.post(url, content=body, headers=HEADERS)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == -32700
            assert answer.json()["id"] is None
    assert sum("no message that can be read" in line for line in caplog.messages) == 1
